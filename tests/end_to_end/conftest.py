"""The one demo that all tests here look at: it takes minutes, so it is run once."""

import os
import signal
from collections.abc import Iterator

import pytest
from demo_support import Installation, new_installation, wait_for


@pytest.fixture(scope="session")
def interrupted_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, str]]:
    """A demo that was killed in the middle and run again to its end; with what the second run printed."""
    installation = new_installation(tmp_path_factory.mktemp("demo"))
    process, output = installation.start("demo")
    try:
        # Base model is the stage after the dataset: the kill falls into its run, with every service up.
        wait_for(
            lambda: "Training dataset" in output.read_text() and "Base model" not in output.read_text(), process, output
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = installation.run("demo")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield installation, done.stdout
    finally:
        installation.run("down", seconds=120)
