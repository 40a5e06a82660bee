"""How far a task context is from those of the training: Mahalanobis' distance of the context embedding, from the
nearest task (as Lee et al., 2018, tell inputs that are of no known class)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SHRINKAGE = 1e-3
"""Share of the mean variance that is added to every direction, so that one in which no context differs has a scale."""
WITHIN = 0.999
"""Share of the known contexts that lie within the limit."""


@dataclass(frozen=True)
class KnownContexts:
    """The context embeddings of training: a normal distribution around each task's mean, equally wide for all."""

    means: Float[Tensor, "K D"]
    whitening: Float[Tensor, "D D"]
    """Turns what differs from a mean into numbers of variance 1."""
    limit: float
    """The distance that 99.9 % of the contexts are within."""

    @staticmethod
    def fit(
        embeddings: Float[Tensor, "N D"],
        tasks: Sequence[Hashable],
        held_back: Float[Tensor, "M D"] | None = None,
    ) -> KnownContexts:
        """Of N embeddings and what task each is of; the limit holds for M others as well, where there are any.

        Where the tasks have too few contexts each to tell how these differ, all count as one task.
        """
        points = embeddings.double()
        order = {task: place for place, task in enumerate(dict.fromkeys(tasks))}
        if len(points) - len(order) < points.shape[1]:
            order = dict.fromkeys(order, 0)
        of = torch.tensor([order[task] for task in tasks])
        known = len(set(order.values()))
        means = torch.zeros(known, points.shape[1], dtype=torch.double).index_add_(0, of, points)
        means /= of.bincount(minlength=known)[:, None]
        centred = points - means[of]
        covariance = centred.T @ centred / max(len(points) - known, 1)
        scale = SHRINKAGE * covariance.diagonal().mean().clamp_min(1e-12)
        covariance += scale * torch.eye(points.shape[1], dtype=torch.double)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        fitted = KnownContexts(means.float(), whitening.float(), 0.0)
        judges = [embeddings] if held_back is None else [embeddings, held_back]
        limit = max(float(fitted.distance(some).quantile(WITHIN)) for some in judges)
        return KnownContexts(fitted.means, fitted.whitening, limit)

    def distance(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Of each embedding from the nearest task, in standard deviations."""
        away = (embeddings.to(self.means)[:, None] - self.means) @ self.whitening.T
        return away.norm(dim=-1).min(dim=-1).values

    def to_tensors(self) -> dict[str, Tensor]:
        return {"means": self.means, "whitening": self.whitening, "limit": torch.tensor([self.limit])}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> KnownContexts:
        """The inverse of `to_tensors`, of before there was more than one mean as well. Raises KeyError for others."""
        means = tensors["means"] if "means" in tensors else tensors["mean"].unsqueeze(0)
        return KnownContexts(means, tensors["whitening"], float(tensors["limit"]))
