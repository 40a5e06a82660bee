"""Open files that a reader keeps between calls: a few for each thread, never shared with another process."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Handles:
    """Things that are costly to open, by key; those not used for longest go when their sizes exceed `capacity`.

    Pickled it is empty, and a forked child starts anew: it would share file positions with its parent.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._local = threading.local()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int] = lambda made: 1) -> Any:
        """What `make` once made for this key."""
        kept = self._kept()
        if key in kept:
            kept.move_to_end(key)
            return kept[key][0]
        made = make()
        kept[key] = (made, size(made))
        while len(kept) > 1 and sum(cost for _, cost in kept.values()) > self.capacity:
            close = getattr(kept.popitem(last=False)[1][0], "close", None)
            if close is not None:
                close()
        return made

    def drop(self, key: Hashable) -> None:
        """Forget what was made for this key, which may be in a bad state."""
        self._kept().pop(key, None)

    def _kept(self) -> OrderedDict[Hashable, tuple[Any, int]]:
        if getattr(self._local, "process", None) != os.getpid():
            # What a parent process opened is left to it: closing it here could disturb the parent.
            self._local.inherited = getattr(self._local, "kept", None)
            self._local.process, self._local.kept = os.getpid(), OrderedDict()
        return self._local.kept

    def __reduce__(self) -> tuple[type[Handles], tuple[int]]:
        return Handles, (self.capacity,)
