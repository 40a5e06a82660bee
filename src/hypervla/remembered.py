"""What was made once is made again only when it has been forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """The latest values by key, at most `most` of them: what has not been asked for longest is forgotten first."""

    def __init__(self, most: int) -> None:
        self.most, self.hits, self.misses = most, 0, 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def one(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of this key; `make` gives it when it is not there."""
        (value,) = self.many([key], lambda missing: [make()])
        return value

    def many(self, keys: Sequence[Key], make: Callable[[list[int]], Sequence[Value]]) -> list[Value]:
        """The value of each key. `make` gets the places of those that are not there, each once, and gives their values;
        nothing is remembered when it fails."""
        found: dict[Key, Value] = {}
        with self._lock:
            for key in keys:
                if key in self._values:
                    self._values.move_to_end(key)
                    found[key] = self._values[key]
            missing = list({key: place for place, key in reversed(list(enumerate(keys))) if key not in found}.values())
            self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        missing.sort()
        if missing:  # outside the lock: others may look things up while this is made
            made = dict(zip((keys[place] for place in missing), make(missing), strict=True))
            with self._lock:
                self._values |= made
                while len(self._values) > self.most:
                    self._values.popitem(last=False)
            found |= made
        return [found[key] for key in keys]
