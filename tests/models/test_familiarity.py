"""Mahalanobis' distance, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypervla.models.familiarity import KnownContexts


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    """Points that differ more in one direction than in the other, and not at all in the third."""
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return points * torch.tensor([10.0, 1.0, 0.0]) + torch.tensor([1.0, 2.0, 3.0])


def test_the_distance_is_mahalanobis_own() -> None:
    points = cloud(5_000)
    known, others = KnownContexts.fit(points), cloud(10, seed=1)
    flat = points[:, :2].double().numpy()
    inverse = np.linalg.inv(np.cov(flat.T))
    wanted = [np.sqrt((x - flat.mean(0)) @ inverse @ (x - flat.mean(0))) for x in others[:, :2].double().numpy()]
    np.testing.assert_allclose(known.distance(others), wanted, rtol=0.03)


def test_999_of_1000_known_contexts_are_within_the_limit() -> None:
    points, held_back = cloud(4_000), cloud(1_000, seed=2)
    assert (KnownContexts.fit(points).distance(points) > KnownContexts.fit(points).limit).float().mean() <= 1e-3
    known = KnownContexts.fit(points, 1.5 * held_back)
    assert (known.distance(1.5 * held_back) > known.limit).sum() == 1


@pytest.mark.parametrize("away", [[0.0, 8.0, 0.0], [0.0, 0.0, 3.0]])
def test_what_leaves_the_cloud_is_beyond_the_limit(away: list[float]) -> None:
    known = KnownContexts.fit(cloud(1_000))
    assert known.distance(torch.tensor([[1.0, 2.0, 3.0]]) + torch.tensor([away])) > known.limit


def test_a_single_context_is_known() -> None:
    known = KnownContexts.fit(torch.ones(1, 3))
    assert known.distance(torch.ones(1, 3)) <= known.limit
    assert known.distance(torch.zeros(1, 3)) > known.limit


def test_tensors_and_back() -> None:
    known = KnownContexts.fit(cloud(100))
    again = KnownContexts.from_tensors(known.to_tensors())
    assert torch.equal(again.distance(cloud(5, seed=3)), known.distance(cloud(5, seed=3)))
    assert again.limit == pytest.approx(known.limit)
