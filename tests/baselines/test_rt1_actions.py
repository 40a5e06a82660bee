"""RT-1's bins, and what they mean for a robot's columns (spec 6)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hypervla.baselines.rt1 import RT1, RT1_X
from hypervla.baselines.rt1_actions import ARM_4, ARM_7, ActionTokens
from hypervla.contracts import UserError


def test_bins_are_the_published_ones() -> None:
    actions = torch.tensor([[0.0, 1.0, -1.5, np.pi / 2, -np.pi / 2, 0.0, 1.0], [0.999, -1, 3, 0, 9, -9, 0.0]])
    assert RT1.actions.encode(actions).tolist() == [
        [1, 127, 255, 0, 255, 0, 127, 0, 127, 127, 127],
        [1, 254, 0, 255, 127, 255, 0, 255, 127, 127, 127],
    ]
    assert RT1_X.actions.encode(actions)[0].tolist() == [1, 255, 383, 63, 511, 0, 255, 0, 255, 255, 255]


@pytest.mark.parametrize("columns", [ARM_7, ARM_4, (*ARM_7, "base_rotation"), ("base_displacement_y",)])
def test_decoding_loses_less_than_a_bin(columns: tuple[str, ...]) -> None:
    tokens = ActionTokens(columns=columns, bins=64, rotation_delta=(-1.0, 1.0), base_rotation=(-1.0, 1.0))
    actions = torch.rand(500, len(columns)) * 2 - 1
    if "gripper_closedness" in columns:
        actions[:, columns.index("gripper_closedness")].abs_()
    decoded = tokens.decode(tokens.encode(actions))
    assert ((decoded - actions).abs() <= 2 / 63 + 1e-6).all()


def test_absent_dimensions_are_neutral_and_count_where_any_column_does() -> None:
    tokens = ActionTokens(columns=ARM_4, bins=16)
    assert tokens.encode(torch.tensor([1.0, 1.0, 1.0, 0.5])).tolist() == [1, 15, 15, 15, 7, 7, 7, 7, 7, 7, 7]
    counts = tokens.counts(torch.tensor([[True, False, True, True], [False] * 4]))
    assert counts.tolist() == [[True, True, False] + [True] * 8, [False] * 11]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ("world_vector_x", "gripper")}, "no action dimension 'gripper'.*gripper_closedness"),
        ({"columns": ("terminate_episode",)}, "no action dimension 'terminate_episode'"),
        ({"columns": ("world_vector_x",) * 2}, "a dimension of its own"),
        ({"columns": ()}, "a dimension of its own"),
        ({"bins": 2}, "at least 3 bins"),
        ({"world_vector": (1.0, 1.0)}, "below the highest"),
    ],
)
def test_actions_that_are_none_of_rt1s_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(RT1.actions, **changes)
