"""Signals of the command line: SIGINT, SIGTERM and SIGHUP all end a command the same way, and never half-way through a start or a stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None]


def interrupt_on_signals() -> None:
    """Let each ending signal raise KeyboardInterrupt in the main thread.

    A shell without job control starts background commands with SIGINT ignored; children inherit that, and Dagster makes its SIGTERM
    handler a copy of the SIGINT one, so that nothing but SIGKILL would end it. A handler set here becomes the default in children.
    """
    for number in ENDING:
        signal.signal(number, _interrupt)


@contextmanager
def held_signals(on_signal: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Put ending signals off until the block is left; yields the list of those that came. The caller decides what they mean.

    Outside of the main thread, where Python allows no handlers, nothing is put off.
    """
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        on_signal()

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, note) for number in ENDING}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Run a short block to its end; a signal that came meanwhile interrupts right after it."""
    with held_signals() as came:
        yield
    if came:
        raise KeyboardInterrupt


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
