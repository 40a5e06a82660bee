"""Mahalanobis' distance, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypervla.models.familiarity import KnownContexts


def fit(points: torch.Tensor, held_back: torch.Tensor | None = None) -> KnownContexts:
    """Of one task."""
    return KnownContexts.fit(points, ["go"] * len(points), held_back)


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    """Points that differ more in one direction than in the other, and not at all in the third."""
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return points * torch.tensor([10.0, 1.0, 0.0]) + torch.tensor([1.0, 2.0, 3.0])


def test_the_distance_is_mahalanobis_own() -> None:
    points = cloud(5_000)
    known, others = fit(points), cloud(10, seed=1)
    flat = points[:, :2].double().numpy()
    inverse = np.linalg.inv(np.cov(flat.T))
    wanted = [np.sqrt((x - flat.mean(0)) @ inverse @ (x - flat.mean(0))) for x in others[:, :2].double().numpy()]
    np.testing.assert_allclose(known.distance(others), wanted, rtol=0.03)


def test_999_of_1000_known_contexts_are_within_the_limit() -> None:
    points, held_back = cloud(4_000), cloud(1_000, seed=2)
    assert (fit(points).distance(points) > fit(points).limit).float().mean() <= 1e-3
    known = fit(points, 1.5 * held_back)
    assert (known.distance(1.5 * held_back) > known.limit).sum() == 1


@pytest.mark.parametrize("away", [[0.0, 8.0, 0.0], [0.0, 0.0, 3.0]])
def test_what_leaves_the_cloud_is_beyond_the_limit(away: list[float]) -> None:
    known = fit(cloud(1_000))
    assert known.distance(torch.tensor([[1.0, 2.0, 3.0]]) + torch.tensor([away])) > known.limit


def test_a_single_context_is_known() -> None:
    known = fit(torch.ones(1, 3))
    assert known.distance(torch.ones(1, 3)) <= known.limit
    assert known.distance(torch.zeros(1, 3)) > known.limit


def test_tensors_and_back() -> None:
    known = fit(cloud(100))
    again = KnownContexts.from_tensors(known.to_tensors())
    assert torch.equal(again.distance(cloud(5, seed=3)), known.distance(cloud(5, seed=3)))
    assert again.limit == pytest.approx(known.limit)


def two_tasks() -> tuple[torch.Tensor, list[str]]:
    """Far apart, in the direction in which each of them differs little."""
    apart = torch.tensor([0.0, 100.0, 0.0])
    return torch.cat([cloud(500), cloud(500, seed=1) + apart]), ["go"] * 500 + ["come"] * 500


def test_what_lies_between_two_tasks_is_of_neither() -> None:
    points, tasks = two_tasks()
    known, one = KnownContexts.fit(points, tasks), fit(points)
    between = torch.tensor([[1.0, 52.0, 3.0]])
    assert known.distance(between) > 10 * known.limit
    assert one.distance(between) < one.limit
    np.testing.assert_allclose(known.distance(points[:500]), fit(points[:500]).distance(points[:500]), rtol=0.1)


def test_tasks_of_one_context_each_count_as_one() -> None:
    points = cloud(50)
    assert torch.equal(KnownContexts.fit(points, range(50)).distance(points), fit(points).distance(points))


def test_contexts_of_before_there_were_tasks_are_read() -> None:
    known = fit(cloud(100))
    old = {"mean": known.means[0], "whitening": known.whitening, "limit": torch.tensor([known.limit])}
    assert torch.equal(KnownContexts.from_tensors(old).distance(cloud(5)), known.distance(cloud(5)))
