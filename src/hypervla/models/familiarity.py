"""How far a task context is from those of the training: Mahalanobis' distance of the context embedding."""

from __future__ import annotations

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
    """The context embeddings of training as a normal distribution."""

    mean: Float[Tensor, " D"]
    whitening: Float[Tensor, "D D"]
    """Turns what differs from the mean into numbers of variance 1."""
    limit: float
    """The distance that 99.9 % of the contexts are within."""

    @staticmethod
    def fit(embeddings: Float[Tensor, "N D"], held_back: Float[Tensor, "M D"] | None = None) -> KnownContexts:
        """Of N embeddings; the limit holds for M others as well, where there are any."""
        mean = embeddings.double().mean(0)
        centred = embeddings.double() - mean
        covariance = centred.T @ centred / max(len(embeddings) - 1, 1)
        scale = SHRINKAGE * covariance.diagonal().mean().clamp_min(1e-12)
        covariance += scale * torch.eye(len(mean), dtype=torch.double)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        known = KnownContexts(mean.float(), whitening.float(), 0.0)
        judges = [embeddings] if held_back is None else [embeddings, held_back]
        limit = max(float(known.distance(some).quantile(WITHIN)) for some in judges)
        return KnownContexts(known.mean, known.whitening, limit)

    def distance(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Of each embedding, in standard deviations."""
        return ((embeddings.to(self.mean) - self.mean) @ self.whitening.T).norm(dim=-1)

    def to_tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "whitening": self.whitening, "limit": torch.tensor([self.limit])}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> KnownContexts:
        """The inverse of `to_tensors`. Raises KeyError for others."""
        return KnownContexts(tensors["mean"], tensors["whitening"], float(tensors["limit"]))
