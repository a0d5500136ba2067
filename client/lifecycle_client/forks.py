"""Gives a forked child its own connections and locks."""

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """An object that holds connections or locks, which a forked child must not share."""

    def after_fork(self) -> None:
        """Called in the child, before any other code runs there."""


_all: "WeakSet[Forked]" = WeakSet()


def renew_after_fork(instance: Forked) -> None:
    """Call `after_fork` in every forked child of this process, for as long as the object lives."""
    _all.add(instance)


def _in_child() -> None:
    for instance in list(_all):
        instance.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
