"""Arithmetic on weights that are an argument: every tensor has a leading axis N, one entry for each weight set."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import WeightLayout, WeightSpec
from hypervla.models.layers import LAYER_NORM_EPS, lecun_normal_

Weights = dict[str, Tensor]
POSITION_STD = 0.02


class StaticWeights(nn.Module):
    """The weights of a layout as ordinary parameters: what a network has that no hypernetwork writes."""

    def __init__(self, layout: WeightLayout) -> None:
        super().__init__()
        self.layout = layout
        self.tensors = nn.ParameterDict(
            {spec.name.replace(".", "/"): nn.Parameter(initial_weight(spec)) for spec in layout.specs}
        )

    def forward(self) -> Weights:
        """The weights with N = 1."""
        return {spec.name: self.tensors[spec.name.replace(".", "/")].unsqueeze(0) for spec in self.layout.specs}


def dense(name: str, inputs: int, outputs: int, xavier: bool = False) -> tuple[WeightSpec, WeightSpec]:
    """Kernel and bias of one linear map; a LeCun-normal kernel unless `xavier`."""
    return (
        WeightSpec(f"{name}.kernel", (inputs, outputs), "kernel", fan=(inputs, outputs), xavier=xavier),
        WeightSpec(f"{name}.bias", (outputs,), "bias"),
    )


def norm(name: str, width: int) -> tuple[WeightSpec, WeightSpec]:
    """Scale and bias of one LayerNorm."""
    return WeightSpec(f"{name}.scale", (width,), "scale"), WeightSpec(f"{name}.bias", (width,), "bias")


def linear(weights: Weights, name: str, x: Float[Tensor, "N *rest I"]) -> Float[Tensor, "N *rest O"]:
    """x @ kernel + bias, each of the N leading entries with its own kernel."""
    kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]
    y = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, -2), kernel)
    return y.unflatten(1, x.shape[1:-1])


def layer_norm(weights: Weights, name: str, x: Float[Tensor, "N *rest D"]) -> Float[Tensor, "N *rest D"]:
    """LayerNorm with a scale and bias of each leading entry's own."""
    shape = (x.shape[0],) + (1,) * (x.dim() - 2) + (x.shape[-1],)  # len() would fix N when it is exported
    normed = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
    return normed * weights[f"{name}.scale"].view(shape) + weights[f"{name}.bias"].view(shape)


def fixed_noise(device: torch.device) -> torch.Generator | None:
    """Where a policy that samples takes its noise from while acting: always the same, so that one observation gives
    one chunk, whatever was asked before."""
    return None if device.type == "meta" else torch.Generator(device).manual_seed(0)


def initial_weight(spec: WeightSpec, bias_only: bool = False) -> Tensor:
    """An ordinary random initialisation of one tensor; `bias_only` leaves kernels and positions zero."""
    if spec.kind == "scale":
        return torch.ones(spec.shape)
    if bias_only or (spec.kind == "bias" and not _is_mlp_bias(spec.name)):
        return torch.zeros(spec.shape)
    if spec.kind == "bias":
        return torch.randn(spec.shape) * 1e-6
    if spec.kind == "position":
        return torch.randn(spec.shape) * POSITION_STD
    assert spec.fan is not None
    if spec.xavier:
        return nn.init.xavier_uniform_(torch.empty(spec.shape))
    return lecun_normal_(torch.empty(spec.shape), spec.fan[0])


def _is_mlp_bias(name: str) -> bool:
    return name.endswith((".up.bias", ".down.bias"))
