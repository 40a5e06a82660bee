"""The published JAX weights of RT-1-X, brought over as a flat npz: names of the Flax tree joined by '/', for example
`params/Transformer_0/Dense_0/kernel` and `batch_stats/…/mean` (spec 7).

Such a file is made once, where JAX is: restore the checkpoint, walk its tree, `numpy.savez(path, **flat)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hypervla.baselines.rt1 import RT1Policy
from hypervla.contracts import UserError
from hypervla.models.npz import read_npz

Turn = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, str, Turn]
"""Our name, the published name, and what turns the published array into ours."""

VISION, NETWORK = "image_tokenizer", "image_tokenizer/EfficientNetWithFilm_0"


def read_published(path: Path, model: RT1Policy) -> dict[str, Tensor]:
    """The published weights by the names of `model.trained_parameters()`.

    Raises UserError for a file that is no npz of plain arrays, or holds another model's: with tensors missing, unknown,
    of other shapes or not finite.
    """
    parameters, arrays = model.trained_parameters(), read_npz(path)
    rows = list(names(model))
    if set(parameters) != {ours for ours, *_ in rows}:
        raise UserError(
            "The published weights are those of a SwiGLU transformer that hears precomputed sentence embeddings: load "
            "them into the recipe rt1_x, whose sentences an EmbeddingTable embeds."
        )
    wanted = {theirs for _, theirs, _ in rows}
    missing, foreign = sorted(wanted - arrays.keys()), sorted(arrays.keys() - wanted)
    if missing or foreign:
        raise UserError(
            f"{path} holds another model than the recipe: {len(missing)} tensors are missing {missing[:2]} and "
            f"{len(foreign)} unknown {foreign[:2]}."
        )
    weights = {}
    for ours, theirs, turn in rows:
        shape, array = tuple(parameters[ours].shape), arrays[theirs]
        try:
            turned = np.ascontiguousarray(turn(array), np.float32)
        except ValueError as error:  # an array of another number of axes
            raise UserError(
                f"{path} holds '{theirs}' of shape {array.shape}, which no {ours} has ({error})."
            ) from error
        if turned.shape != shape:
            raise UserError(
                f"{path} holds '{theirs}' of shape {array.shape}; turned it is {turned.shape}, not {shape}."
            )
        weights[ours] = torch.from_numpy(turned)
    return weights


def names(model: RT1Policy) -> Iterator[Row]:
    """All rows of RT-1-X; TensorFlow's RT-1 has no such file."""
    yield from _vision(model)
    theirs = "params/Transformer_0"
    yield from _dense("transformer.input", f"{theirs}/Dense_0")
    yield from _dense("transformer.position", f"{theirs}/Dense_1")
    yield from _dense("output", f"{theirs}/Dense_2")
    for number in range(len(model.transformer.layers)):
        ours, block = f"transformer.layers.{number}", f"{theirs}/TransformerBlock_{number}"
        yield from _norm(f"{ours}.norm1", f"{block}/LayerNorm_0")
        yield from _norm(f"{ours}.norm2", f"{block}/LayerNorm_1")
        for name in ("query", "key", "value"):
            attention = f"{block}/MultiHeadDotProductAttention_0/{name}"
            yield f"{ours}.{name}.weight", f"{attention}/kernel", lambda x: x.reshape(len(x), -1).T
            yield f"{ours}.{name}.bias", f"{attention}/bias", np.ravel
        attention = f"{block}/MultiHeadDotProductAttention_0/out"
        yield f"{ours}.out.weight", f"{attention}/kernel", lambda x: x.reshape(-1, x.shape[-1]).T
        yield f"{ours}.out.bias", f"{attention}/bias", _same
        for number_there, name in enumerate(("up", "gate", "down")):
            yield f"{ours}.feed_forward.{name}.weight", f"{block}/Dense_{number_there}/kernel", np.transpose


def _vision(model: RT1Policy) -> Iterator[Row]:
    encoder, ours = model.vision.efficientnet.encoder, "vision.efficientnet"
    yield f"{ours}.embeddings.convolution.weight", f"params/{NETWORK}/Stem_0/conv2d/kernel", _conv
    yield from _batch_norm(f"{ours}.embeddings.batchnorm", f"{NETWORK}/Stem_0/batch_normalization")
    for number, block in enumerate(encoder.blocks):
        yield from _block(f"{ours}.encoder.blocks.{number}", f"{NETWORK}/MBConvBlock_{number}", block.expand)
        yield from _film(f"vision.films.{number}", f"params/{NETWORK}/FilmConditioning_{number}")
    yield f"{ours}.encoder.top_conv.weight", f"params/{NETWORK}/Head_0/conv2d/kernel", _conv
    yield from _batch_norm(f"{ours}.encoder.top_bn", f"{NETWORK}/Head_0/batch_normalization")
    yield "vision.projection.weight", f"params/{VISION}/Conv_0/kernel", _conv
    yield from _film("vision.film", f"params/{VISION}/FilmConditioning_0")
    learner = f"params/{VISION}/TokenLearnerModuleV11_0"
    yield from _norm("vision.learner.norm", f"{learner}/LayerNorm_0")
    yield from _dense("vision.learner.up", f"{learner}/token_masking/Dense_0")
    yield from _dense("vision.learner.down", f"{learner}/token_masking/Dense_1")


def _block(ours: str, theirs: str, expands: bool) -> Iterator[Row]:
    """One MBConv block; its batch normalisations are counted through, and the first has no expansion."""
    layers = [
        ("depthwise_conv.depthwise_conv", "depthwise_conv2d/depthwise_kernel", "depthwise_conv.depthwise_norm", _depth),
        ("projection.project_conv", "project_conv2d_0/kernel", "projection.project_bn", _conv),
    ]
    if expands:
        layers.insert(0, ("expansion.expand_conv", "expand_conv2d_0/kernel", "expansion.expand_bn", _conv))
    for number, (convolution, kernel, norm, turn) in enumerate(layers):
        yield f"{ours}.{convolution}.weight", f"params/{theirs}/{kernel}", turn
        yield from _batch_norm(f"{ours}.{norm}", f"{theirs}/batch_normalization_{number}")
    for name in ("reduce", "expand"):
        convolution = f"params/{theirs}/SqueezeExcite_0/{name}_conv2d_0"
        yield f"{ours}.squeeze_excite.{name}.weight", f"{convolution}/kernel", _conv
        yield f"{ours}.squeeze_excite.{name}.bias", f"{convolution}/bias", _same


def _dense(ours: str, theirs: str) -> Iterator[Row]:
    yield f"{ours}.weight", f"{theirs}/kernel", np.transpose
    yield f"{ours}.bias", f"{theirs}/bias", _same


def _film(ours: str, theirs: str) -> Iterator[Row]:
    yield from _dense(f"{ours}.add", f"{theirs}/Dense_0")
    yield from _dense(f"{ours}.multiply", f"{theirs}/Dense_1")


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield f"{ours}.weight", f"{theirs}/scale", _same
    yield f"{ours}.bias", f"{theirs}/bias", _same


def _batch_norm(ours: str, theirs: str) -> Iterator[Row]:
    yield from _norm(ours, f"params/{theirs}")
    yield f"{ours}.running_mean", f"batch_stats/{theirs}/mean", _same
    yield f"{ours}.running_var", f"batch_stats/{theirs}/var", _same


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _conv(x: np.ndarray) -> np.ndarray:
    """(y, x, in, out) → (out, in, y, x)."""
    return x.transpose(3, 2, 0, 1)


def _depth(x: np.ndarray) -> np.ndarray:
    """(y, x, channels, 1) → (channels, 1, y, x)."""
    return x.transpose(2, 3, 0, 1)
