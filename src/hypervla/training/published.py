"""Weights of the original codes into checkpoints of ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypervla import checkpoint
from hypervla.baselines import octo_weights, rt1_weights
from hypervla.baselines.octo import OctoConfig
from hypervla.baselines.openvla import OpenVLAConfig
from hypervla.baselines.rt1 import RT1_X, RT1Config
from hypervla.contracts import UserError
from hypervla.data.normalize import Normalizer, Robot
from hypervla.embodiment import Embodiment
from hypervla.models import released_weights
from hypervla.models.backbones import DinoV2
from hypervla.models.evla import EvlaConfig
from hypervla.models.hypervla import HyperVLAConfig
from hypervla.models.interface import ModelConfig, family
from hypervla.models.npz import read_npz, write_npz
from hypervla.models.pretrained_parts import load_parts
from hypervla.models.safetensors_folder import check_published, find_folder
from hypervla.models.vision_language import VisionLanguage, VisionLanguageModel
from hypervla.runtime.provenance import code_commit

Read = Callable[[str, Any], tuple[ModelConfig, Mapping[str, Tensor]]]


def _hypervla(source: str, config: HyperVLAConfig) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """Released weights were trained with Flax's rule for the position table, so they are run with it."""
    if not isinstance(config.backbone, DinoV2):
        raise UserError(
            f"The released HyperVLA sees through a DINOv2, but this recipe has a {type(config.backbone).__name__}: "
            f"choose a recipe such as paper."
        )
    flax = replace(config, backbone=replace(config.backbone, position_rule="flax"))
    return flax, released_weights.from_flax(read_npz(Path(source)), flax)


def _octo(source: str, config: OctoConfig) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    return config, octo_weights.read_published(Path(source), config)


def _rt1(source: str, config: RT1Config) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """The recipe's bins are those of actions normalised to ±1; the published weights speak in the published ones."""
    published = RT1_X.actions
    actions = replace(config.actions, world_vector=published.world_vector, rotation_delta=published.rotation_delta)
    config = replace(config, actions=actions)
    with torch.device("meta"):
        model = config.build(pretrained=False)
    return config, rt1_weights.read_published(Path(source), model)


RT1_X_UNITS = {"widowx": (0.05 / 1.75,) * 3 + (0.25 / 1.4,) * 3}
"""What one unit of RT-1-X's world vector and rotation is on a robot, in metres and radians, as SIMPLER drives it (spec
6); the gripper's command follows from the robot."""


def published_normalizer(config: ModelConfig, embodiment: Embodiment) -> Normalizer | None:
    """How published weights speak of a robot's actions where that does not come from statistics of data.

    Raises UserError for a robot that RT-1-X's units are not known of.
    """
    if not isinstance(config, RT1Config):
        return None
    if embodiment.name not in RT1_X_UNITS:
        raise UserError(
            f"What RT-1-X's numbers mean for {embodiment.name} is not known, only for {', '.join(RT1_X_UNITS)}: train "
            f"the recipe on data of {embodiment.name} instead."
        )
    units = np.array([*RT1_X_UNITS[embodiment.name], 1.0], np.float32)
    return Normalizer(
        action_mean=np.zeros_like(units),
        action_std=units,
        proprio_mean=np.zeros(embodiment.proprio_size, np.float32),
        proprio_std=np.ones(embodiment.proprio_size, np.float32),
        gripper=embodiment.gripper,
    )


def _openvla(source: str, config: OpenVLAConfig) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """Its weights stay where they are; the checkpoint names their folder and holds none."""
    folder = find_folder(source).resolve()
    with torch.device("meta"):
        model = VisionLanguageModel(config.model, pretrained=False)
    check_published(str(folder), model)
    return replace(config, model=_told_by(folder, config.model), source=str(folder), frozen=True), {}


def _told_by(folder: Path, config: VisionLanguage) -> VisionLanguage:
    """The configuration with the folder's own tokenizer, where it has one."""
    if not (folder / "tokenizer_config.json").is_file():
        return config
    return replace(config, language=replace(config.language, tokenizer=str(folder)))


def _evla(source: str, config: EvlaConfig) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """Vision and language model as others published them; what joins them, and the action tokens, start at random."""
    model = config.build(pretrained=False)
    load_parts(source, model.model)
    language = (Path(source) / "language").resolve()
    return replace(config, model=_told_by(language, config.model)), model.trained_parameters()


READERS: Mapping[type, Read] = {
    HyperVLAConfig: _hypervla,
    OctoConfig: _octo,
    RT1Config: _rt1,
    OpenVLAConfig: _openvla,
    EvlaConfig: _evla,
}
UNTAUGHT = (EvlaConfig,)
"""Models whose published parts have never moved a robot: their checkpoints are there to train from."""


def import_weights(config: Any, source: str, robot: Robot | None, out: Path) -> int:
    """A checkpoint of the published weights in `source`, for one robot (none for those that move no robot yet); returns
    how many tensors it holds.

    Raises UserError for weights of another model, a folder in use, or a model that nobody has published.
    """
    if (out / checkpoint.CARD).exists():
        raise UserError(f"{out} already holds a checkpoint: choose another --out.")
    if type(config) not in READERS:
        raise UserError(
            f"The weights that others published are not read into the model {family(config)}: there are readers for "
            f"HyperVLA (paper), Octo (octo_small, octo_base), RT-1-X (rt1_x), OpenVLA (openvla) and the parts of EVLA "
            f"(evla)."
        )
    if isinstance(config, UNTAUGHT) != (robot is None):
        raise UserError(
            "Say which robot the weights move: either --robot NAME or --data DIR."
            if robot is None
            else "These weights move no robot yet: leave out --robot, --data and --statistics, and train on the "
            "checkpoint with --init."
        )
    config, weights = READERS[type(config)](source, config)
    checkpoint.save(
        out,
        weights,
        config=config,
        robots={} if robot is None else {robot.embodiment.name: robot.to_json()},
        provenance={"imported": source, "step": 0, "commit": code_commit()},
        dtype=torch.float32,
    )
    return len(weights)


def export_weights(folder: Path, out: Path) -> int:
    """A checkpoint as the flat npz of the original code's parameter tree; returns how many arrays it holds.

    Raises UserError for a model whose original has no such file.
    """
    card = checkpoint.read_card(folder)
    config: Any = card.config
    writers: Mapping[type, Callable[[Mapping[str, Tensor], Any], dict[str, np.ndarray]]] = {
        HyperVLAConfig: released_weights.to_flax,
        OctoConfig: octo_weights.to_flax,
    }
    if type(config) not in writers:
        raise UserError(f"{folder} holds the model {family(config)}, which is not exported: HyperVLA and Octo are.")
    weights = checkpoint.read_weights(folder / checkpoint.WEIGHTS, card.digest)
    floats = {name: value.float() for name, value in weights.items()}
    arrays = writers[type(config)](floats, config)
    write_npz(out, arrays)
    return len(arrays)
