"""Parameter groups, learning-rate schedule and the moving average of the weights (spec 1.6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hypervla.models.interface import Model, Role


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for up to three groups with one schedule. Defaults are the published HyperVLA run's."""

    rate: float = 3e-4
    backbone_rate: float = 3e-5
    decay: float = 0.05
    """Weight decay of the parameters whose role is to decay; nothing else does."""
    clip: float = 1.0
    """Largest norm of all gradients together."""
    warmup: int = 2_000
    schedule: Literal["inverse sqrt", "linear tail", "constant", "cosine"] = "inverse sqrt"
    """After the warm-up: peak/sqrt(1 + t/10,000); the peak until the last 30 % of the steps and then down to 0; the
    peak; or half a cosine down to 0."""
    ema_decay: float = 0.999
    ema_start: int | None = 5_000
    """Before this step the moving average is a copy of the weights; None never averages."""


def make_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.AdamW:
    """One group for each role that the model gives its parameters, with its peak rate in `peak`."""
    groups: dict[Role, list[Tensor]] = {"decayed": [], "plain": [], "backbone": []}
    for name, parameter in model.trained_parameters().items():
        if parameter.requires_grad:
            groups[model.role(name)].append(parameter)
    settings: dict[Role, tuple[float, float]] = {
        "decayed": (config.rate, config.decay),
        "plain": (config.rate, 0.0),
        "backbone": (config.backbone_rate, 0.0),
    }
    return torch.optim.AdamW(
        [
            {"params": groups[role], "peak": rate, "weight_decay": decay}
            for role, (rate, decay) in settings.items()
            if groups[role]
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def rate_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate at `step` as a share of the peak; 0 at step 0, as in the released code."""
    if step < config.warmup:
        return step / config.warmup
    if config.schedule == "inverse sqrt":
        return (1 + (step - config.warmup) / 10_000) ** -0.5
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, steps - config.warmup)))
    return min(1.0, (steps - step) / (0.3 * steps))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], parameters: Mapping[str, Tensor], config: OptimizerConfig, step: int
) -> None:
    """Move the average towards the weights after `step`. It is empty as long as it would be a plain copy."""
    if config.ema_start is None or step < config.ema_start - 1:
        average.clear()
    elif not average or step < config.ema_start:
        average.update({name: value.detach().clone() for name, value in parameters.items()})
    else:
        for name, value in parameters.items():
            average[name].lerp_(value, 1 - config.ema_decay)
