"""After os.fork the child starts with connections and locks of its own."""

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Something that holds what a child must not share."""

    def after_fork(self) -> None:
        """Called in the child, before anything else runs there."""


_all: "WeakSet[Forked]" = WeakSet()


def renew_after_fork(one: Forked) -> None:
    """Have `after_fork` called in every child of this process, for as long as the object lives."""
    _all.add(one)


def _in_child() -> None:
    for one in list(_all):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
