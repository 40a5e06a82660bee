"""Sizes and costs of a model: generated, learned and activated parameters, FLOPs per control step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from hypervla.models.hypervla import HyperVLA, HyperVLAConfig


@dataclass(frozen=True)
class Figure:
    """One line of `hypervla info`: what it counts, what the paper says, and why the two differ."""

    key: str
    meaning: str
    paper: str
    difference: str


FIGURES = (
    Figure("generated", "weights generated per task", "0.1 M", "0.1 M leaves out image projection and position table"),
    Figure("hypernetwork", "hypernetwork without frozen encoders", "30 M", "1.39 M context side + 129 × 201,500 heads"),
    Figure("backbone", "shared vision backbone", "86 M", "DINOv2-base, mask token included"),
    Figure("instruction_encoder", "frozen text encoder", "100 M", "T5-base encoder with its embedding table"),
    Figure("activated", "parameters read per control step", "86 M", "backbone + generated"),
    Figure("total", "all parameters while training", "302 M", "backbone counted twice (frozen copy for the context)"),
    Figure("flops_per_step", "operations per control step", "4.7e10", "2 per multiply-add, element-wise ones left out"),
)


def describe(config: HyperVLAConfig) -> dict[str, int]:
    """Parameters and FLOPs per control step (2 per multiply-add, one observation, weights already generated).

    Nothing is downloaded: the model is built without storage.
    """
    with torch.device("meta"):
        model = HyperVLA(config, pretrained=False)
    generated, backbone = model.policy.layout.size, _size(model.backbone)
    context_backbone = _size(model.context_backbone) if model.context_backbone is not None else 0
    hypernetwork, text = _size(model.hypernetwork), _size(model.instruction_encoder)
    return {
        "generated": generated,
        "hypernetwork": hypernetwork,
        "backbone": backbone,
        "instruction_encoder": text,
        "activated": backbone + generated,
        "total": backbone + context_backbone + hypernetwork + text,
        "flops_per_step": flops_per_step(model),
    }


def flops_per_step(model: HyperVLA) -> int:
    """What one control step computes: backbone and base policy on one observation. The model lives on `meta`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = model.config
    size = config.backbone.image_size
    images = torch.empty(1, 1, config.cameras, size, size, 3, dtype=torch.uint8, device="meta")
    proprio = torch.empty(1, 1, config.policy.proprio_size, device="meta") if config.policy.proprio_size else None
    weights = torch.empty(1, model.policy.layout.size, device="meta")
    # The written-out attention: counters skip some fused kernels (spec 1.10, point 8).
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.policy(weights, model.tokens(images), proprio)
    return counter.get_total_flops()


def table(name: str, config: HyperVLAConfig) -> Table:
    """The counts; for the paper's model beside the published figures, with one line on each difference."""
    counts, published = describe(config), name == "paper"
    shown = Table(title=f"{name}: sizes and cost")
    shown.add_column("what")
    shown.add_column("here", justify="right")
    if published:
        shown.add_column("published", justify="right")
        shown.add_column("why they differ")
    for figure in FIGURES:
        row = [f"{figure.meaning} ({figure.key})", f"{counts[figure.key]:,}"]
        shown.add_row(*row, *([figure.paper, figure.difference] if published else []))
    return shown


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
