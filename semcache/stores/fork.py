"""No connection crosses a fork.

SQLite forbids to use, in a child, a connection that its parent opened; and while one is open at the fork, the child
believes to hold locks that it does not, so that even connections of its own are unsafe. So each store closes its
connections before the fork, and parent and child open others when they need them.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Protocol
from weakref import WeakSet


class Forking(Protocol):
    """What must be told of a fork."""

    def before_fork(self) -> None:
        """Close what must not be inherited, and hold what must not change meanwhile."""
        ...

    def after_fork_in_parent(self) -> None:
        """Let go."""
        ...

    def after_fork_in_child(self) -> None:
        """Begin anew, with locks of one's own."""
        ...


@cache
def forking() -> WeakSet[Forking]:
    """Return the set of those that are told; the hooks are installed with the first call."""
    known: WeakSet[Forking] = WeakSet()
    told: list[Forking] = []

    def before() -> None:
        told[:] = known
        for each in told:
            each.before_fork()

    def in_parent() -> None:
        for each in told:
            each.after_fork_in_parent()
        told.clear()

    def in_child() -> None:
        for each in told:
            each.after_fork_in_child()
        told.clear()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
    return known
