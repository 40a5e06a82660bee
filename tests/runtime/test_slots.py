"""Weights that change between calls: each row is its own, and its stamp tells what it holds."""

from __future__ import annotations

import numpy as np

from hypervla.runtime.slots import NamedWeights, Slots


def rows(*numbers: float) -> NamedWeights:
    flat = np.array(numbers, np.float32)
    return {"a": np.repeat(flat[:, None], 3, 1), "b": -flat[:, None, None]}


def held(slots: Slots) -> list[float]:
    assert all(array.flags.c_contiguous for array in slots.named.values())
    assert np.array_equal(slots.named["a"][:, 2], -slots.named["b"][:, 0, 0])
    return slots.named["a"][:, 0].tolist()


def test_a_row_is_put_where_it_belongs_and_others_stay() -> None:
    slots = Slots(rows(1, 2, 3))
    before = slots.stamps.copy()
    slots.put(1, rows(9))
    assert held(slots) == [1, 9, 3]
    assert (slots.stamps != before).tolist() == [False, True, False]


def test_no_stamp_comes_twice() -> None:
    slots, other = Slots(rows(1, 2)), Slots(rows(1, 2))
    seen = [*slots.stamps, *other.stamps]
    for _ in range(3):
        slots.put(0, rows(1))
        slots.append(rows(5))
        seen += [slots.stamps[0], slots.stamps[-1]]
    assert len(set(seen)) == len(seen)
    assert min(seen) > 0, "0 is no content"


def test_it_grows_and_shrinks() -> None:
    slots = Slots(rows(0))
    for number in range(1, 20):
        slots.append(rows(number))
        assert len(slots) == number + 1
        assert held(slots) == list(range(number + 1))
    slots.pop()
    slots.append(rows(50))
    assert held(slots) == [*range(19), 50]


def test_rows_are_kept_as_the_engine_takes_them() -> None:
    def doubled(weights: NamedWeights) -> NamedWeights:
        return {name.upper(): 2 * array for name, array in weights.items()}

    slots = Slots(rows(1, 2), doubled)
    slots.put(0, rows(4))
    slots.append(rows(5))
    assert slots.named["A"][:, 0].tolist() == [8, 4, 10]
    assert set(slots.named) == {"A", "B"}
