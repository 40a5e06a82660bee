"""The bridge from RT-1-X's JAX weights, on arrays made by the published names and shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hypervla.baselines.rt1 import RT1_X, RT1Config, RT1Policy, RT1Transformer
from hypervla.baselines.rt1_sentence import SentenceEncoder
from hypervla.baselines.rt1_vision import FilmEfficientNet
from hypervla.baselines.rt1_weights import names, read_published
from hypervla.contracts import UserError
from hypervla.models.instruction_encoders import MINILM

NET = "image_tokenizer/EfficientNetWithFilm_0"
BLOCK = f"{NET}/MBConvBlock_0"
LAYER = "params/Transformer_0/TransformerBlock_1"
PUBLISHED = {
    f"params/{NET}/Stem_0/conv2d/kernel": (3, 3, 3, 40),
    f"params/{NET}/Stem_0/batch_normalization/scale": (40,),
    f"batch_stats/{NET}/Stem_0/batch_normalization/mean": (40,),
    f"params/{BLOCK}/depthwise_conv2d/depthwise_kernel": (3, 3, 40, 1),
    f"params/{BLOCK}/SqueezeExcite_0/reduce_conv2d_0/kernel": (1, 1, 40, 10),
    f"params/{BLOCK}/SqueezeExcite_0/expand_conv2d_0/bias": (40,),
    f"params/{BLOCK}/project_conv2d_0/kernel": (1, 1, 40, 24),
    f"batch_stats/{BLOCK}/batch_normalization_1/var": (24,),
    f"params/{NET}/MBConvBlock_2/expand_conv2d_0/kernel": (1, 1, 24, 144),
    f"params/{NET}/MBConvBlock_2/batch_normalization_2/bias": (32,),
    f"params/{NET}/FilmConditioning_25/Dense_1/kernel": (512, 384),
    f"params/{NET}/Head_0/conv2d/kernel": (1, 1, 384, 1536),
    f"params/{NET}/Head_0/batch_normalization/bias": (1536,),
    "params/image_tokenizer/Conv_0/kernel": (1, 1, 1536, 512),
    "params/image_tokenizer/FilmConditioning_0/Dense_0/bias": (512,),
    "params/image_tokenizer/TokenLearnerModuleV11_0/LayerNorm_0/scale": (512,),
    "params/image_tokenizer/TokenLearnerModuleV11_0/token_masking/Dense_1/kernel": (64, 81),
    "params/Transformer_0/Dense_0/kernel": (512, 512),
    "params/Transformer_0/Dense_1/kernel": (1380, 512),
    "params/Transformer_0/Dense_2/kernel": (512, 512),
    f"{LAYER}/LayerNorm_1/bias": (512,),
    f"{LAYER}/MultiHeadDotProductAttention_0/query/kernel": (512, 8, 256),
    f"{LAYER}/MultiHeadDotProductAttention_0/value/bias": (8, 256),
    f"{LAYER}/MultiHeadDotProductAttention_0/out/kernel": (8, 256, 512),
    f"{LAYER}/Dense_2/kernel": (512, 512),
}
"""Some of every kind, as Flax names and shapes them."""
LEAVES = 735
"""Arrays in the published tree."""


def small() -> RT1Config:
    return replace(
        RT1_X,
        vision=FilmEfficientNet(32, width=0.2, depth=0.1, features=16, tokens=3, padding="same", source=None),
        transformer=RT1Transformer(layers=2, heads=2, key=12, feed_forward="swiglu", images_see_actions=False),
        window=2,
    )


def published(model: RT1Policy) -> dict[str, np.ndarray]:
    """Random arrays by the published names, of Flax's shapes."""
    random, parameters, arrays = np.random.default_rng(0), model.trained_parameters(), {}
    for ours, theirs, _ in names(model):
        shape = tuple(parameters[ours].shape)
        if "depthwise_kernel" in theirs:
            shape = (*shape[2:], *shape[:2])
        elif len(shape) == 4:
            shape = (*shape[2:], shape[1], shape[0])
        elif "/out/kernel" in theirs:
            shape = (2, 12, 16)
        elif "Attention" in theirs and "/out/" not in theirs:
            shape = (16, 2, 12) if theirs.endswith("kernel") else (2, 12)
        elif len(shape) == 2:
            shape = shape[::-1]
        arrays[theirs] = random.standard_normal(shape).astype(np.float32)
    return arrays


@pytest.fixture
def model() -> RT1Policy:
    return small().build(pretrained=False)


@pytest.fixture
def arrays(model: RT1Policy) -> dict[str, np.ndarray]:
    return published(model)


def test_every_weight_of_rt1_x_has_its_published_name_and_shape() -> None:
    with torch.device("meta"):
        full = RT1_X.build(pretrained=False)
    rows = {theirs: (ours, turn) for ours, theirs, turn in names(full)}
    parameters = full.trained_parameters()
    assert len(rows) == LEAVES == len(parameters)
    for name, shape in PUBLISHED.items():
        ours, turn = rows[name]
        assert turn(np.zeros(shape, np.float32)).shape == tuple(parameters[ours].shape), name


def test_arrays_come_turned_to_our_order(model: RT1Policy, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "rt1x.npz", **arrays)
    weights = read_published(tmp_path / "rt1x.npz", model)
    assert weights.keys() == model.trained_parameters().keys()
    attention = "params/Transformer_0/TransformerBlock_1/MultiHeadDotProductAttention_0"
    assert weights["transformer.layers.1.key.weight"][12 + 5, 7] == arrays[f"{attention}/key/kernel"][7, 1, 5]
    assert weights["transformer.layers.1.key.bias"][12 + 5] == arrays[f"{attention}/key/bias"][1, 5]
    assert weights["transformer.layers.1.out.weight"][7, 12 + 5] == arrays[f"{attention}/out/kernel"][1, 5, 7]
    assert weights["transformer.position.weight"][7, 20] == arrays["params/Transformer_0/Dense_1/kernel"][20, 7]
    depthwise = arrays[f"params/{BLOCK}/depthwise_conv2d/depthwise_kernel"]
    ours = "vision.efficientnet.encoder.blocks.0.depthwise_conv.depthwise_conv.weight"
    assert weights[ours][4, 0, 1, 2] == depthwise[1, 2, 4, 0]
    stem = weights["vision.efficientnet.embeddings.convolution.weight"]
    assert stem[3, 1, 0, 2] == arrays[f"params/{NET}/Stem_0/conv2d/kernel"][0, 2, 1, 3]
    film = arrays[f"params/{NET}/FilmConditioning_2/Dense_1/kernel"]
    assert weights["vision.films.2.multiply.weight"].T.equal(torch.from_numpy(film))
    variance = arrays[f"batch_stats/{NET}/Head_0/batch_normalization/var"]
    assert weights["vision.efficientnet.encoder.top_bn.running_var"].equal(torch.from_numpy(variance))


def test_swiglus_first_matrix_is_the_one_that_is_activated(
    model: RT1Policy, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "rt1x.npz", **arrays)
    for name, value in read_published(tmp_path / "rt1x.npz", model).items():
        model.trained_parameters()[name].data.copy_(value)
    kernels = [arrays[f"params/Transformer_0/TransformerBlock_0/Dense_{i}/kernel"].astype(np.float64) for i in range(3)]
    x = np.random.default_rng(1).standard_normal((1, 4, 16))
    first = x @ kernels[0]
    expected = (first / (1 + np.exp(-first)) * (x @ kernels[1])) @ kernels[2]
    found = model.transformer.layers[0].feed_forward(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_files_of_another_model_are_refused(model: RT1Policy, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path, name = tmp_path / "rt1x.npz", "params/Transformer_0/Dense_2/kernel"

    def refused(message: str, **changes: np.ndarray) -> None:
        np.savez(path, **{key: value for key, value in (arrays | changes).items() if value.size})
        with pytest.raises(UserError, match=message):
            read_published(path, model)

    refused("1 tensors are missing.*Dense_2/kernel", **{name: np.zeros(0)})
    refused("1 unknown.*extra", **{"params/extra": np.zeros(2)})
    refused("of shape", **{name: arrays[name][:, :-1]})
    refused("of shape", **{f"params/{NET}/Stem_0/conv2d/kernel": np.zeros(3)})
    refused("of shape", **{"params/image_tokenizer/FilmConditioning_0/Dense_0/bias": np.zeros((4, 4))})
    refused("NaN", **{name: arrays[name] * np.nan})
    refused("as int64", **{name: np.ones(arrays[name].shape, np.int64)})
    refused("without pickle", **{name: np.array([{}], object)})


def test_files_that_are_no_npz_are_refused(model: RT1Policy, tmp_path: Path) -> None:
    path = tmp_path / "rt1x.npz"
    with pytest.raises(UserError, match="There is no file"):
        read_published(path, model)
    path.write_bytes(b"\x80\x04nothing")
    with pytest.raises(UserError, match="not an npz of plain arrays"):
        read_published(path, model)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="not an npz of plain arrays"):
        read_published(path, model)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="a single array"):
        read_published(path, model)


@pytest.mark.parametrize(
    "changes",
    [{"sentence": SentenceEncoder(MINILM)}, {"transformer": RT1Transformer(layers=2, heads=2, key=12)}],
    ids=["text encoder", "linear"],
)
def test_a_recipe_with_other_parts_is_refused(changes: dict, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "rt1x.npz", **arrays)
    with torch.device("meta"):
        other = replace(small(), **changes).build(pretrained=False)
    with pytest.raises(UserError, match="load them into the recipe rt1_x"):
        read_published(tmp_path / "rt1x.npz", other)
