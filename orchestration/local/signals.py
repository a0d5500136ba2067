"""Signals: SIGINT, SIGTERM and SIGHUP all end a command the same way, and never in the middle of a start or a stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None]


def interrupt_on_signals() -> None:
    """Let each ending signal raise KeyboardInterrupt in the main thread.

    A shell without job control starts background commands with SIGINT ignored. Children inherit that, and Dagster copies its SIGINT
    handler for SIGTERM, so that only SIGKILL would end it. A handler that is set here becomes the default in children.
    """
    for number in ENDING:
        signal.signal(number, _interrupt)


@contextmanager
def held_signals(on_signal: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Hold back ending signals while the block runs; yields the list of signals received. The caller decides what to do about them.

    Outside the main thread, where Python allows no handlers, nothing is held back.
    """
    received: list[int] = []

    def record(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        on_signal()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, record) for number in ENDING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Run a short block to its end. A signal received meanwhile interrupts right after it."""
    with held_signals() as received:
        yield
    if received:
        raise KeyboardInterrupt


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
