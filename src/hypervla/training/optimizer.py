"""Parameter groups, learning-rate schedule and the moving average of the weights (spec 1.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hypervla.models.hypervla import HyperVLA


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for two groups with one schedule. Defaults are the published run's."""

    hypernetwork_rate: float = 3e-4
    backbone_rate: float = 3e-5
    kernel_head_decay: float = 0.05
    """Weight decay of the heads that generate kernels; nothing else decays."""
    clip: float = 1.0
    """Largest norm of all gradients together."""
    warmup: int = 2_000
    schedule: Literal["inverse sqrt", "linear tail"] = "inverse sqrt"
    """After the warm-up: peak/sqrt(1 + t/10,000), or the peak until the last 30 % of the steps and then down to 0."""
    ema_decay: float = 0.999
    ema_start: int = 5_000
    """Before this step the moving average is a copy of the weights."""


def make_optimizer(model: HyperVLA, config: OptimizerConfig) -> torch.optim.AdamW:
    """Three groups, each with its peak rate in `peak`: kernel heads, the rest of the hypernetwork, the backbone."""
    groups: dict[str, list[nn.Parameter]] = {"kernel heads": [], "hypernetwork": [], "backbone": []}
    for name, parameter in model.trained_parameters().items():
        kernel_head = name.startswith("hypernetwork.kernel_heads.")
        groups["kernel heads" if kernel_head else name.split(".")[0]].append(parameter)
    decay, rate = config.kernel_head_decay, config.hypernetwork_rate
    return torch.optim.AdamW(
        [
            {"params": groups["kernel heads"], "peak": rate, "weight_decay": decay},
            {"params": groups["hypernetwork"], "peak": rate, "weight_decay": 0.0},
            {"params": groups["backbone"], "peak": config.backbone_rate, "weight_decay": 0.0},
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
    return min(1.0, (steps - step) / (0.3 * steps))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], parameters: Mapping[str, Tensor], config: OptimizerConfig, step: int
) -> None:
    """Move the average towards the weights after `step`; before `ema_start` it is a plain copy."""
    if not average or step < config.ema_start:
        average.update({name: value.detach().clone() for name, value in parameters.items()})
    else:
        for name, value in parameters.items():
            average[name].lerp_(value, 1 - config.ema_decay)
