"""What is remembered, what is forgotten, and what is counted."""

from __future__ import annotations

import pytest

from hypervla.remembered import Remembered


def squares(asked: list[int]):
    """A way to make values that notes which keys it was asked for."""

    def make(keys: list[int]):
        def values(missing: list[int]) -> list[int]:
            asked.extend(keys[place] for place in missing)
            return [keys[place] ** 2 for place in missing]

        return values

    return make


def test_what_is_there_is_not_made_again() -> None:
    asked: list[int] = []
    memory, make = Remembered[int, int](9), squares(asked)
    for keys in ([3, 1, 3], [1, 2], [3]):
        assert memory.many(keys, make(keys)) == [key**2 for key in keys]
    assert asked == [3, 1, 2], "each once, in the order in which they came"
    assert (memory.hits, memory.misses, len(memory)) == (3, 3, 3)


def test_what_was_not_asked_for_longest_is_forgotten() -> None:
    asked: list[int] = []
    memory, make = Remembered[int, int](2), squares(asked)
    for key in (1, 2, 1, 3, 1, 2):
        assert memory.many([key], make([key])) == [key**2]
    assert asked == [1, 2, 3, 2]
    assert len(memory) == 2


def test_more_than_fit_are_all_given() -> None:
    memory = Remembered[int, int](2)
    keys = list(range(5))
    assert memory.many(keys, squares([])(keys)) == [0, 1, 4, 9, 16]
    assert len(memory) == 2


def test_a_failure_is_not_remembered() -> None:
    memory = Remembered[str, int](2)
    with pytest.raises(ZeroDivisionError):
        memory.one("a", lambda: 1 // 0)
    assert memory.one("a", lambda: 7) == 7
