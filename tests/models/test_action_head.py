"""What the base policy's last numbers mean, by hand-computed values (spec 1.5)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from hypervla.models.action_head import LinearHead, ReleasedHead, masked_mean
from hypervla.models.generated import Weights

HEAD = ReleasedHead(horizon=2, action_size=3, gripper_index=1)
"""The gripper stands in the middle, so that its place matters."""
HEADS = [HEAD, LinearHead(horizon=2, action_size=3)]

numbers = st.floats(-20, 20, width=32)


def passing_through(head) -> Weights:
    """Weights under which the head's raw outputs are the features themselves."""
    kernels = {spec.name: spec for spec in head.layout(6) if spec.kind == "kernel"}
    columns = torch.split(torch.eye(6), [spec.shape[1] for spec in kernels.values()], dim=1)
    weights = {name: column[None] for name, column in zip(kernels, columns, strict=True)}
    return weights | {s.name: torch.zeros(1, *s.shape) for s in head.layout(6) if s.kind == "bias"}


def loss_of(head, raw: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(F) losses of raw outputs (F O)."""
    return head.loss(passing_through(head), raw[None], target[None], mask[None])[0]


def decode(head, raw: Tensor) -> Tensor:
    """(F H A) chunks of raw outputs (F O)."""
    return head.decode(passing_through(head), raw[None])[0]


def loss(head, raw, target, mask) -> list[float]:
    tensors = torch.tensor(raw, dtype=torch.float32), torch.tensor(target, dtype=torch.float32), torch.tensor(mask)
    return loss_of(head, *tensors).tolist()


ALL = [[True, True, True], [True, True, True]]
NONE = [[False, False, False], [False, False, False]]


def test_the_released_loss_of_a_hand_computed_sample() -> None:
    raw = [[0.0, 5.0, 0.0, 0.0, 0.0, 2.0]]  # arm of step 0, arm of step 1, gripper of both
    target = [[[1.0, 0.5, 9.0], [2.0, 1.0, 0.0]]]  # 9 counts as 5; the gripper's 0.5 is a soft label
    arm = 2 * (1 + (5 * math.tanh(1.0) - 5) ** 2 + 4 + 0) / 4
    gripper = (math.log(2) + math.log(1 + math.exp(-2.0))) / 2
    assert loss(HEAD, raw, target, [ALL]) == pytest.approx([arm + gripper], rel=1e-6)


def test_only_what_the_mask_keeps_counts_and_the_mean_is_over_that() -> None:
    raw = [[0.0] * 6]
    target = [[[1.0, 1.0, 2.0], [100.0, 100.0, 100.0]]]
    first = [[[True, True, True], [False, False, False]]]
    assert loss(HEAD, raw, target, first) == pytest.approx([2 * (1 + 4) / 2 + math.log(2)], rel=1e-6)
    assert loss(HEADS[1], raw, target, first) == pytest.approx([3 * (1 + 1 + 4) / 3], rel=1e-6)


def test_the_linear_loss_of_a_hand_computed_sample() -> None:
    assert loss(HEADS[1], [[1.0, 2, 3, 4, 5, 6]], [[[0.0] * 3] * 2], [ALL]) == pytest.approx([3 * 91 / 6])


@pytest.mark.parametrize("head", HEADS)
def test_an_all_masked_sample_contributes_nothing_and_pulls_at_nothing(head) -> None:
    raw = torch.full((1, 6), 3.0, requires_grad=True)
    value = loss_of(head, raw, torch.full((1, 2, 3), 7.0), torch.tensor([NONE]))
    value.sum().backward()
    assert value.tolist() == [0.0]
    assert not raw.grad.any()


@given(arrays(np.float32, (2, 3), elements=numbers), arrays(np.bool_, (2, 3)))
def test_the_masked_mean_is_the_mean_of_the_kept(x: np.ndarray, kept: np.ndarray) -> None:
    wanted = x[kept].mean() if kept.any() else 0.0
    assert float(masked_mean(torch.from_numpy(x), torch.from_numpy(kept))) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
@given(data=st.data())
def test_each_sample_has_its_own_loss_whatever_its_company(head, data: st.DataObject) -> None:
    raw = torch.from_numpy(data.draw(arrays(np.float32, (3, 6), elements=numbers)))
    target = torch.from_numpy(data.draw(arrays(np.float32, (3, 2, 3), elements=st.floats(0, 1, width=32))))
    mask = torch.from_numpy(data.draw(arrays(np.bool_, (3, 2, 3))))
    alone = torch.cat([loss_of(head, raw[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss_of(head, raw, target, mask), alone)


def test_chunks_are_step_major_with_the_gripper_in_its_place() -> None:
    raw = torch.tensor([0.1, 0.2, 0.3, 0.4, -1.0, 1.0])
    squashed = (5 * torch.tanh(raw[:4] / 5)).tolist()
    wanted = torch.tensor([[squashed[0], 0.0, squashed[1]], [squashed[2], 1.0, squashed[3]]])
    torch.testing.assert_close(decode(HEAD, raw[None])[0], wanted)
    assert decode(HEADS[1], torch.arange(6.0)[None])[0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize(("logit", "gripper"), [(0.0, 1.0), (-1e-6, 0.0), (1e-6, 1.0), (-50.0, 0.0)])
def test_a_gripper_logit_of_zero_or_more_opens(logit: float, gripper: float) -> None:
    raw = torch.tensor([0.0, 0.0, 0.0, 0.0, logit, logit])
    assert decode(HEAD, raw[None])[0, :, HEAD.gripper_index].tolist() == [gripper, gripper]


@given(arrays(np.float32, (4, 6), elements=st.floats(-1e6, 1e6, width=32)))
def test_the_arm_stays_within_five_standard_deviations(raw: np.ndarray) -> None:
    assert decode(HEAD, torch.from_numpy(raw)).abs().max() <= 5.0


@pytest.mark.parametrize("head", HEADS)
def test_the_layout_holds_as_many_outputs_as_the_head_reads(head) -> None:
    assert sum(spec.size for spec in head.layout(width=4)) == (4 + 1) * 6


@pytest.mark.parametrize("head", HEADS)
def test_outputs_that_decode_to_the_target_cost_nothing(head) -> None:
    raw = torch.tensor([[0.5, -0.5, 1.0, 2.0, 40.0, -40.0]])
    assert float(loss_of(head, raw, decode(head, raw), torch.tensor([ALL]))) < 1e-6
