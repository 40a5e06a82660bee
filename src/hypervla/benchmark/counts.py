"""Sizes and costs of a model: generated, learned and activated parameters, FLOPs per control step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from hypervla.models.hypervla import HyperVLA
from hypervla.models.interface import ModelConfig


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


def describe(config: ModelConfig) -> dict[str, Any]:
    """Parameters and FLOPs per control step (2 per multiply-add, one observation, weights already generated), and the
    parameters of the model's own parts.

    Nothing is downloaded: the model is built without storage.
    """
    with torch.device("meta"):
        model = config.build(pretrained=False)
    parts = dict(model.parts())
    return {
        "generated": model.policy.layout.size if isinstance(model, HyperVLA) else 0,
        "hypernetwork": parts.get("hypernetwork", 0),
        "backbone": parts.get("backbone", 0),
        "instruction_encoder": parts.get("instruction_encoder", 0),
        "activated": model.activated(),
        "total": sum(parts.values()),
        "flops_per_step": flops_per_step(model),
        "parts": parts,
    }


def flops_per_step(model: Any) -> int:
    """What one control step computes on one observation. The model lives on `meta`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model.requires_grad_(False)
    # The written-out attention: counters skip some fused kernels (spec 1.10, point 8).
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        if isinstance(model, HyperVLA):
            _act(model)
        else:
            model.infer(*model.example(1))
    return counter.get_total_flops()


def _act(model: HyperVLA) -> None:
    """One control step of a compiled task policy: backbone and base policy."""
    config = model.config
    size = config.image_size
    images = torch.empty(1, 1, config.cameras, size, size, 3, dtype=torch.uint8, device="meta")
    proprio = torch.empty(1, 1, config.proprio_size, device="meta") if config.proprio_size else None
    weights = torch.empty(1, model.policy.layout.size, device="meta")
    model.policy.act(model.policy.layout.split(weights), model.tokens(images), proprio)


def table(name: str, config: ModelConfig) -> Table:
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
    for part, count in counts["parts"].items():
        if part not in counts:
            shown.add_row(f"of all parameters: {part.replace('_', ' ')}", f"{count:,}")
    return shown
