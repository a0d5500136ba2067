"""Ending signals: they all end a command the same way, children can be ended, and protected blocks run to their end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orchestration.local.signals import ENDING, held_signals, interrupt_on_signals, uninterrupted

ASK = "import signal; print(signal.getsignal(signal.SIGINT))"
PARENT = """
import subprocess, sys
if sys.argv[1] == "ours":
    from orchestration.local.signals import interrupt_on_signals
    interrupt_on_signals()
subprocess.run([sys.executable, "-c", sys.argv[2]])
"""


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    """Put pytest's own handlers back."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("handlers", "child_hears"), [("none", False), ("ours", True)])
def test_children_of_a_background_command_receive_sigint(handlers: str, child_hears: bool) -> None:
    # Without our handlers the child of a background command ignores SIGINT, and Dagster then ignores SIGTERM as well.
    printed = subprocess.run(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-c", PARENT, handlers, ASK],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("default_int_handler" in printed.stdout) is child_hears


@pytest.mark.parametrize("number", ENDING)
def test_every_ending_signal_interrupts(number: int) -> None:
    interrupt_on_signals()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_a_protected_block_is_interrupted_after_its_end() -> None:
    interrupt_on_signals()
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("whole")
    assert done == ["whole"]


def test_signals_during_a_stop_are_recorded_and_do_not_interrupt_it() -> None:
    interrupt_on_signals()
    messages = []
    with held_signals(on_signal=lambda: messages.append("still stopping")) as received:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGINT, signal.SIGTERM] and messages == ["still stopping"] * 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
