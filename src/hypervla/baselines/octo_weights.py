"""The published weights of Octo, in and out: a flat npz of the Flax parameter tree, names joined by '/' (spec 3 and 7).

`scripts/octo_to_npz.py` makes such a file from a published checkpoint. Its T5 is left unread: it was frozen, so the
instruction encoder loads the same one. So are the tokenizers of cameras that the model does not have; a published model
without its wrist camera is `replace(OCTO_SMALL, views=OCTO_SMALL.views[:1])`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hypervla.baselines.octo import Octo, OctoConfig
from hypervla.contracts import UserError
from hypervla.models.npz import read_npz
from hypervla.models.released_weights import CONVOLUTION, LAYER, Place, linear, norm, plain

Shape = tuple[int, ...]
TREE, HEAD = "octo_transformer", "heads_action/diffusion_model"
UNREAD = re.compile(f"{TREE}/task_tokenizers_language/hf_model/.+")
CAMERA = re.compile(f"{TREE}/(?:observation_tokenizers_([^/]+)|obs_([^/]+)_(?:projection|pos_embedding))(?:/.+)?")
DENOISER = {
    "time.0": "cond_encoder/Dense_0",
    "time.1": "cond_encoder/Dense_1",
    "input": "reverse_network/Dense_0",
    "output": "reverse_network/Dense_1",
}
"""The parts of the head besides blocks and frequencies: our names, the published ones."""


def read_published(path: Path, config: OctoConfig) -> dict[str, Tensor]:
    """`from_flax` of the file that the script writes. Raises UserError also for a file that is no such npz."""
    return from_flax(read_npz(path), config)


def from_flax(arrays: Mapping[str, np.ndarray], config: OctoConfig) -> dict[str, Tensor]:
    """The published tree as the `trained_parameters` of this model, in float32.

    Raises UserError for a tree with tensors missing, unknown or of other shapes.
    """
    own, table = trained_shapes(config), {place.name: place for place in places(config)}
    missing = sorted(table.keys() - arrays.keys())
    foreign = sorted(name for name in arrays.keys() - table.keys() if not unread(name, config))
    if missing or foreign:
        raise UserError(
            f"The file holds another model than the recipe: {len(missing)} tensors are missing {missing[:2]} and "
            f"{len(foreign)} unknown {foreign[:2]}; scripts/octo_to_npz.py makes a complete one of an Octo 1.5."
        )
    for name, place in table.items():
        if arrays[name].shape != place.shape:
            raise UserError(
                f"The file holds another model than the recipe: '{name}' has shape {arrays[name].shape}, but the "
                f"recipe is made for {place.shape}."
            )
    parameters = {name: torch.empty(shape) for name, shape in own.items()}
    for name, place in table.items():
        place.bring(arrays[name], parameters[place.ours])
    assert sum(prod(place.shape) for place in table.values()) == sum(value.numel() for value in parameters.values())
    return parameters


def to_flax(parameters: Mapping[str, Tensor], config: OctoConfig) -> dict[str, np.ndarray]:
    """The `trained_parameters` of this model as the published tree without T5, in float32.

    Raises UserError for parameters with tensors missing, unknown or of other shapes.
    """
    own, came = trained_shapes(config), {name: tuple(value.shape) for name, value in parameters.items()}
    if wrong := sorted(name for name in own.keys() | came.keys() if own.get(name) != came.get(name)):
        raise UserError(
            f"The parameters are another model's than the recipe's, {len(wrong)} of them: '{wrong[0]}' came as "
            f"{came.get(wrong[0], 'missing')}, wanted {own.get(wrong[0], 'nothing of that name')}."
        )
    return {place.name: place.take(parameters[place.ours]) for place in places(config)}


def unread(name: str, config: OctoConfig) -> bool:
    """Whether a tensor of the tree belongs to T5, or to a camera that this model does not have."""
    camera = CAMERA.fullmatch(name)
    if camera is None:
        return UNREAD.fullmatch(name) is not None
    return (camera[1] or camera[2]) not in {view.name for view in config.views}


def trained_shapes(config: OctoConfig) -> dict[str, Shape]:
    """The names and shapes of this model's `trained_parameters`."""
    with torch.device("meta"):
        model = Octo(config, pretrained=False)
    return {name: tuple(value.shape) for name, value in model.trained_parameters().items()}


def places(config: OctoConfig) -> Iterator[Place]:
    """All published tensors that this model has."""
    width, words = config.width, config.instruction_encoder
    yield from linear("instruction", f"{TREE}/task_language_projection", (words.width,), (width,))
    yield table("instruction_position", f"{TREE}/task_language_pos_embedding", (words.length, width))
    yield table("readout_position", f"{TREE}/readout_action_pos_embedding", (config.max_window, 1, width))
    for view in config.views:
        yield from camera(config, view.name, config.stem.tokens(view.image_size))
    yield from transformer(config)
    yield from denoiser(config)


def camera(config: OctoConfig, name: str, tokens: int) -> Iterator[Place]:
    """One camera's stem, projection and position table."""
    ours, stem = f"cameras.{name}", f"{TREE}/observation_tokenizers_{name}/SmallStem16_0"
    features, width = config.stem.features, config.width
    inputs = (6, *config.stem.channels)
    for i, channels in enumerate(config.stem.channels):
        kernel = (3, 3, inputs[i], channels)
        yield from convolution(f"{ours}.stem.convolutions.{i}", f"{stem}/StdConv_{i}", kernel)
        yield from norm(f"{ours}.stem.norms.{i}", f"{stem}/GroupNorm_{i}", channels)
    yield from convolution(f"{ours}.stem.embedding", f"{stem}/embedding", (1, 1, inputs[-1], features))
    yield from linear(f"{ours}.projection", f"{TREE}/obs_{name}_projection", (features,), (width,))
    yield table(f"{ours}.position", f"{TREE}/obs_{name}_pos_embedding", (config.max_window, tokens, width))


def transformer(config: OctoConfig) -> Iterator[Place]:
    width, split = config.width, (config.heads, config.width // config.heads)
    root = f"{TREE}/BlockTransformer_0/Transformer_0"
    for i in range(config.layers):
        ours, theirs = f"transformer.layers.{i}", f"{root}/encoderblock_{i}"
        for part in ("query", "key", "value"):
            yield from linear(f"{ours}.{part}", f"{theirs}/{LAYER[part]}", (width,), split)
        yield from linear(f"{ours}.out", f"{theirs}/{LAYER['out']}", split, (width,))
        yield from linear(f"{ours}.up", f"{theirs}/{LAYER['up']}", (width,), (config.mlp,))
        yield from linear(f"{ours}.down", f"{theirs}/{LAYER['down']}", (config.mlp,), (width,))
        for part in ("norm1", "norm2"):
            yield from norm(f"{ours}.{part}", f"{theirs}/{LAYER[part]}", width)
    yield from norm("transformer.norm", f"{root}/encoder_norm", width)


def denoiser(config: OctoConfig) -> Iterator[Place]:
    """The head, whose tensors have the published shapes but for the frequencies."""
    for spec in config.head.layout(config.width):
        part, kind = spec.name.removeprefix("head.").rsplit(".", 1)
        shape = (*spec.shape, 1) if part == "frequency" else spec.shape
        yield plain(f"head.tensors.{spec.name.replace('.', '/')}", f"{HEAD}/{denoiser_part(part)}/{kind}", shape)


def denoiser_part(ours: str) -> str:
    """The published path of a part such as `blocks.0.wide`."""
    if ours == "frequency":
        return "time_preprocess"
    if ours in DENOISER:
        return DENOISER[ours]
    _, number, name = ours.split(".")
    inner = {"norm": "LayerNorm_0", "wide": "Dense_0", "narrow": "Dense_1"}[name]
    return f"reverse_network/MLPResNetBlock_{number}/{inner}"


def convolution(ours: str, theirs: str, kernel: Shape) -> Iterator[Place]:
    yield Place(f"{theirs}/kernel", kernel, f"{ours}.weight", kernel, CONVOLUTION)
    yield plain(f"{ours}.bias", f"{theirs}/bias", kernel[-1:])


def table(ours: str, theirs: str, shape: Shape) -> Place:
    """A position table, which is published with an axis of one entry before it."""
    return plain(ours, theirs, (1, *shape))
