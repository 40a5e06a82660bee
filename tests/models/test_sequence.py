"""EVLA's masks against truth tables written by hand from the spec (5.1, 5.2)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hypervla.models import sequence

WORDS = torch.tensor([[True, True, True], [True, True, False]])
"""Prompts of three and two tokens, in a batch with two image tokens and two actions: columns w i i w w a a."""
SHOWN = torch.ones(2, 2, dtype=torch.bool)


def table(*rows: str) -> torch.Tensor:
    return torch.tensor([[cell == "1" for cell in row] for row in rows])


def valid() -> torch.Tensor:
    """Of the prompt, and of two actions behind it."""
    return F.pad(sequence.valid_columns(WORDS, SHOWN), (0, 2), value=True)


def test_the_sequence_is_first_token_images_prompt() -> None:
    prompt, images = (torch.full((1, n, 1), x) for n, x in ((3, 1.0), (2, 2.0)))
    prompt[0, 0] = 0
    assert sequence.lay_out(prompt, images).flatten().tolist() == [0, 2, 2, 1, 1]


def test_room_and_pictures_that_are_not_there_hold_nothing() -> None:
    assert torch.equal(valid(), table("1111111", "1111011"))
    shown = SHOWN & torch.tensor([[True], [False]])
    assert torch.equal(sequence.valid_columns(WORDS, shown), table("11111", "10010"))


def test_positions_count_what_is_there() -> None:
    assert sequence.positions(valid()).tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 3, 4, 5]]


def test_joint_everybody_sees_all_that_is_there() -> None:
    mask = sequence.joint_mask(valid())
    assert torch.equal(mask[0, 0], table(*7 * ["1111111"]))
    assert torch.equal(mask[1, 0], table(*7 * ["1111011"]))


CAUSAL = [
    ("1000000", "1100000", "1110000", "1111000", "1111100", "1111110", "1111111"),
    ("1000000", "1100000", "1110000", "1111000", "1111000", "1111010", "1111011"),
]


def test_causal_everybody_sees_what_is_there_up_to_itself() -> None:
    mask = sequence.causal_mask(valid())
    for sample in range(2):
        assert torch.equal(mask[sample, 0], table(*CAUSAL[sample]))


def test_released_nobody_sees_an_action_not_even_its_own() -> None:
    hidden = torch.tensor([[False] * 5 + [True] * 2]).expand(2, -1)
    mask = sequence.released_mask(valid(), hidden)
    assert torch.equal(mask[0, 0], table("1000000", "1100000", "1110000", "1111000", "1111100", "1111100", "1111100"))
    assert torch.equal(mask[1, 0], table("1000000", "1100000", "1110000", "1111000", "1111000", "1111000", "1111000"))


def test_released_literally_a_shorter_sample_shows_an_action_and_hides_padding() -> None:
    _, packed = sequence.pack(torch.zeros(2, 7, 1), valid())
    assert torch.equal(packed, table("1111111", "1111110"))
    mask = sequence.released_mask(packed, sequence.last_columns(packed, 2))
    assert torch.equal(mask[0, 0], table("1000000", "1100000", "1110000", "1111000", "1111100", "1111100", "1111100"))
    assert torch.equal(  # w i i w a a and padding: the first action, in column 4, is seen
        mask[1, 0], table("1000000", "1100000", "1110000", "1111000", "1111100", "1111100", "1111100")
    )
    alone = sequence.released_mask(packed[1:, :6], sequence.last_columns(packed[1:, :6], 2))
    assert torch.equal(alone[0, 0], table("100000", "110000", "111000", "111100", "111100", "111100"))


def test_packing_puts_each_column_at_its_position() -> None:
    columns = torch.arange(14.0).view(2, 7, 1)
    packed, there = sequence.pack(columns, valid())
    assert packed.flatten(1).tolist() == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 12, 13, 11]]
    assert there.sum(1).tolist() == [7, 6]
    back = sequence.take(packed, sequence.positions(valid()))
    assert torch.equal(back[valid()], columns[valid()])
