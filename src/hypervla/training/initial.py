"""Starting a run from the weights of another: what fits is kept, what does not starts afresh and is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypervla import checkpoint
from hypervla.baselines.openvla import OpenVLAConfig
from hypervla.contracts import UserError
from hypervla.models.evla import EvlaConfig
from hypervla.models.hypervla import HyperVLAConfig, heads_by_weight
from hypervla.models.interface import ModelConfig, family

ADAPTED = ".base_layer"
"""In the name of a linear map that has an adapter beside it."""


@dataclass(frozen=True)
class Start:
    """What became of a checkpoint's weights in a new run."""

    kept: int
    """Tensors taken over."""
    fresh: tuple[str, ...]
    """Tensors of the new model that keep their random start, each with the reason."""
    dropped: tuple[str, ...]
    """Tensors of the checkpoint that the new model has no place for."""

    def __str__(self) -> str:
        lines = [f"{self.kept} tensors start from the checkpoint."]
        lines += [f"starts afresh: {name}" for name in self.fresh]
        lines += [f"not used: {name}" for name in self.dropped]
        return "\n".join(lines)


def with_sources(config: ModelConfig, initial: Path) -> ModelConfig:
    """The model with what a checkpoint does not hold read from where the initial one reads it: OpenVLA's published
    weights, and the tokenizer of a language model."""
    start: Any = checkpoint.read_card(initial).config
    if not isinstance(config, OpenVLAConfig | EvlaConfig) or type(start) is not type(config):
        return config
    language = replace(config.model.language, tokenizer=start.model.language.tokenizer)
    config = replace(config, model=replace(config.model, language=language))
    return replace(config, source=start.source) if isinstance(start, OpenVLAConfig) else config


@torch.no_grad()
def start_from(folder: Path, model: Any, *, vision_only: bool = False) -> Start:
    """Copy the checkpoint's weights into the model wherever name and shape agree; generated tensors count one by one.
    With `vision_only` the shared vision backbone alone, and nothing else is listed.

    Raises UserError when nothing agrees, since the checkpoint is then of another model.
    """
    about = checkpoint.read_card(folder)
    start, ours = about.config, model.config
    if (
        isinstance(start, OpenVLAConfig)
        and isinstance(ours, OpenVLAConfig)
        and start.frozen
        and start.source == ours.source
    ):
        return Start(kept=len(model.trained_parameters()), fresh=(), dropped=())  # they were read from there
    saved = _pieces(about.config, checkpoint.read_weights(folder / checkpoint.WEIGHTS, about.digest))
    wanted = {
        name.replace(ADAPTED, ""): value for name, value in _pieces(model.config, model.trained_parameters()).items()
    }
    if vision_only:
        saved = {name: value for name, value in saved.items() if model.role(name) == "backbone"}
        wanted = {name: value for name, value in wanted.items() if model.role(name) == "backbone"}
    fitting = {name for name, value in wanted.items() if name in saved and saved[name].shape == value.shape}
    if not fitting:
        raise UserError(
            f"{folder} holds another model ({family(about.config)}): none of its "
            f"{len(saved)} tensors fits this recipe's; choose a checkpoint of the same kind of model."
        )
    for name in fitting:
        wanted[name].copy_(saved[name])
    return Start(
        kept=len(fitting),
        fresh=tuple(
            f"{name} {_reason(saved.get(name), value)}" for name, value in wanted.items() if name not in fitting
        ),
        dropped=tuple(sorted(saved.keys() - wanted.keys())),
    )


def _pieces(config: ModelConfig, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors by name, those that a hypernetwork's heads stack taken apart (as views)."""
    return heads_by_weight(config, parameters) if isinstance(config, HyperVLAConfig) else parameters


def _reason(saved: Tensor | None, wanted: Tensor) -> str:
    if saved is None:
        return f"{tuple(wanted.shape)}, which the checkpoint lacks"
    return f"{tuple(wanted.shape)}, {tuple(saved.shape)} in the checkpoint"
