"""Weights of the released JAX code mean here what they mean there, come back unchanged, and damage is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor

from hypervla.contracts import UserError
from hypervla.models.action_head import LinearHead, ReleasedHead
from hypervla.models.backbones import ConvNet, DinoV2
from hypervla.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hypervla.models.hypervla import HyperVLAConfig, PolicyConfig
from hypervla.models.instruction_encoders import T5_BASE, InstructionEncoder
from hypervla.models.npz import read_npz, write_npz
from hypervla.models.released_weights import from_flax, places, to_flax

PAPER = HyperVLAConfig(
    backbone=DinoV2(position_rule="flax"),
    instruction_encoder=T5_BASE,
    hypernetwork=HypernetworkConfig(),
    policy=PolicyConfig(),
    head=ReleasedHead(horizon=4, action_size=7, gripper_index=6),
)
TINY = replace(
    PAPER,
    backbone=DinoV2(image_size=224, width=16, layers=2, heads=2, patch=56, grid=5, position_rule="flax"),
    instruction_encoder=InstructionEncoder("t5", "", length=5, width=12),
    hypernetwork=HypernetworkConfig(width=8, layers=2, heads=2, mlp=16),
    policy=PolicyConfig(width=8, layers=2, heads=2, mlp=16),
)


def layer(width: int, heads: int, mlp: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one transformer layer there."""
    split, attention = (heads, width // heads), "MultiHeadDotProductAttention_0"
    return {
        **{f"LayerNorm_{i}/{name}": (width,) for i in (0, 1) for name in ("scale", "bias")},
        **{f"{attention}/{name}/kernel": (width, *split) for name in ("query", "key", "value")},
        **{f"{attention}/{name}/bias": split for name in ("query", "key", "value")},
        f"{attention}/out/kernel": (*split, width),
        f"{attention}/out/bias": (width,),
        "MlpBlock_0/Dense_0/kernel": (width, mlp),
        "MlpBlock_0/Dense_0/bias": (mlp,),
        "MlpBlock_0/Dense_1/kernel": (mlp, width),
        "MlpBlock_0/Dense_1/bias": (width,),
    }


def released_tree() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published run's parameters, as the released code initialises them."""
    tree: dict[str, tuple[int, ...]] = {
        "task_token_projection/kernel": (768, 128),
        "task_token_projection/bias": (128,),
        "task_pos_embedding": (1, 32, 128),
        "initial_image_projection/kernel": (768, 128),
        "initial_image_projection/bias": (128,),
        "initial_image_pos_embedding": (1, 1, 128),
        "layer_pos_embedding": (1, 1, 128),
        "context_encoder/encoder_norm/scale": (128,),
        "context_encoder/encoder_norm/bias": (128,),
    }
    for i in range(6):
        tree |= {f"context_encoder/encoderblock_{i}/{name}": shape for name, shape in layer(128, 4, 512).items()}
    generated = {
        "encoder/image_embedding_projection/kernel": 768 * 64,
        "encoder/image_embedding_projection/bias": 64,
        "encoder/pos_embedding": 257 * 64,
        "encoder/Transformer_0/encoder_norm/scale": 64,
        "encoder/Transformer_0/encoder_norm/bias": 64,
        "action_head/continuous_head/kernel": 64 * 24,
        "action_head/continuous_head/bias": 24,
        "action_head/discrete_head/kernel": 64 * 4,
        "action_head/discrete_head/bias": 4,
    }
    for i in range(4):
        path = f"encoder/Transformer_0/encoderblock_{i}"
        generated |= {f"{path}/{name}": prod(shape) for name, shape in layer(64, 4, 128).items()}
    for path, size in generated.items():
        name = f"output_head_{path.replace('/', '_')}"
        tree |= {f"{name}/kernel": (128, size), f"{name}/bias": (size,)}
    shared = {"embeddings_cls_token": 768, "embeddings_mask_token": 768, "embeddings_position_embeddings": 1370 * 768}
    patches = "embeddings_patch_embeddings_projection"
    shared |= {f"{patches}_kernel": 14 * 14 * 3 * 768, f"{patches}_bias": 768, "layernorm_scale": 768}
    shared |= {"layernorm_bias": 768}
    for i in range(12):
        path = f"encoder_layer_{i}"
        shared |= {f"{path}_{norm}_{kind}": 768 for norm in ("norm1", "norm2") for kind in ("scale", "bias")}
        shared |= {f"{path}_layer_scale{k}_lambda1": 768 for k in (1, 2)}
        for dense in ("attention_query", "attention_key", "attention_value", "output_dense"):
            shared |= {f"{path}_attention_{dense}_kernel": 768 * 768, f"{path}_attention_{dense}_bias": 768}
        shared |= {f"{path}_mlp_fc1_kernel": 768 * 3072, f"{path}_mlp_fc1_bias": 3072}
        shared |= {f"{path}_mlp_fc2_kernel": 3072 * 768, f"{path}_mlp_fc2_bias": 768}
    return tree | {f"encoder_image_encoder_{name}": (size,) for name, size in shared.items()}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that anyone can draw again from a tensor's released name."""
    std = 0.3
    if name.endswith("patch_embeddings_projection_kernel"):
        std = 0.02
    if name.endswith("position_embeddings"):
        std = 1.0
    x = std * np.random.RandomState(crc32(name.encode())).standard_normal(shape)
    return (x + name.endswith(("scale", "scale/bias", "lambda1"))).astype(np.float32)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return {place.name: drawn(place.name, place.shape) for place in places(TINY)}


def part(parameters: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(name): value for key, value in parameters.items() if key.startswith(name)}


# The published tree


def test_the_published_tree_has_these_names_and_shapes() -> None:
    assert {place.name: place.shape for place in places(PAPER)} == released_tree()


def test_the_published_tree_has_the_papers_number_of_parameters() -> None:
    assert sum(prod(place.shape) for place in places(PAPER)) == 27_384_604 + 86_580_480


# What the weights mean: the numbers below came out of the released code for the weights that `drawn` draws.

EMBEDDING = [
    [0.201018, -1.062314, 0.105108, 0.41631, 0.327921, -0.011567, -0.034261, 0.015919],
    [0.037794, -0.9632, -0.202765, 0.439318, 0.469974, 0.286902, 0.040003, -0.015923],
]
"""Of two contexts, the first with 3 instruction tokens, the second with 5."""
ACTIONS = [
    [
        [1.471362, -0.523648, 1.756636, -0.08685, 0.891477, 0.172549, 1],
        [-0.744565, -1.726889, 0.510966, -1.893836, 1.13264, -2.033354, 0],
        [-0.362181, -0.381226, -1.513479, 0.479707, -0.862242, 0.077603, 1],
        [-0.585457, -0.820873, 1.75128, -1.152019, 2.212889, 1.325527, 0],
    ],
    [
        [0.384797, -0.05725, 0.08812, -0.315392, 0.871616, 0.415488, 1],
        [0.765235, -1.408098, 1.0698, -0.488232, 1.015174, -1.437957, 0],
        [0.022833, -0.145834, -2.1983, 0.208745, 0.0242, 0.951916, 1],
        [0.244564, -0.001168, 0.858674, -1.184501, 2.66556, 0.010906, 0],
    ],
]
CLASS_TOKENS = [[0.161914, 1.00042, -1.788098, -0.254933], [-0.570715, 0.704433, -2.50554, 0.17559]]
"""The first four entries."""


def test_the_released_weights_give_the_released_embeddings_and_actions(arrays: dict[str, np.ndarray]) -> None:
    parameters, policy = from_flax(arrays, TINY), TINY.base_policy()
    network = Hypernetwork(TINY.hypernetwork, policy.layout, 5, 12, 1, 16)
    network.load_state_dict(part(parameters, "hypernetwork."))
    backbone = TINY.backbone.build(pretrained=False).eval()
    backbone.load_state_dict(part(parameters, "backbone."))
    cells = np.random.RandomState(0).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    images = torch.from_numpy(cells.repeat(28, 1).repeat(28, 2))
    text, image = (
        torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
        for seed, shape in ((1, (2, 5, 12)), (2, (2, 1, 16)))
    )
    heard = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    with torch.no_grad():
        embedding = network.embed(text, heard, image, torch.ones(2, 1, dtype=torch.bool))
        tokens, vector = backbone(images)
        chunks = policy.act(policy.layout.split(network.generate(embedding)), tokens.unsqueeze(1), None)[:, 0]
    np.testing.assert_allclose(embedding, EMBEDDING, atol=2e-6)
    np.testing.assert_allclose(vector[:, :4], CLASS_TOKENS, atol=1e-5)
    np.testing.assert_allclose(chunks, ACTIONS, atol=1e-5)


# There and back


def test_released_weights_come_back_as_they_were(arrays: dict[str, np.ndarray]) -> None:
    back = to_flax(from_flax(arrays, TINY), TINY)
    assert back.keys() == arrays.keys()
    assert all(back[name].shape == arrays[name].shape for name in arrays)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_our_weights_come_back_as_they_were(arrays: dict[str, np.ndarray]) -> None:
    parameters = {name: torch.randn_like(value) for name, value in from_flax(arrays, TINY).items()}
    back = from_flax(to_flax(parameters, TINY), TINY)
    assert back.keys() == parameters.keys()
    assert all(torch.equal(back[name], parameters[name]) for name in parameters)


def test_weights_of_another_precision_become_float32(arrays: dict[str, np.ndarray]) -> None:
    parameters = from_flax({name: array.astype(np.float64) for name, array in arrays.items()}, TINY)
    assert all(value.dtype == torch.float32 for value in parameters.values())
    halves = {name: value.to(torch.bfloat16) for name, value in parameters.items()}
    assert all(array.dtype == np.float32 for array in to_flax(halves, TINY).values())


def test_a_written_npz_is_read_back(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_npz(tmp_path / "weights.npz", arrays)
    read = read_npz(tmp_path / "weights.npz")
    assert read.keys() == arrays.keys()
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]


# Refusals


def test_a_tree_of_another_model_is_refused(arrays: dict[str, np.ndarray]) -> None:
    name = "context_encoder/encoderblock_1/MlpBlock_0/Dense_0/kernel"
    with pytest.raises(UserError, match=f"1 tensors are missing .*{name}"):
        from_flax({key: array for key, array in arrays.items() if key != name}, TINY)
    with pytest.raises(UserError, match=r"1 unknown \['goal_image_pos_embedding'\]"):
        from_flax(arrays | {"goal_image_pos_embedding": np.zeros(3)}, TINY)
    with pytest.raises(UserError, match=rf"'{name}' has shape \(16, 8\), but the recipe is made for \(8, 16\)"):
        from_flax(arrays | {name: arrays[name].T}, TINY)
    with pytest.raises(UserError, match="has shape .* but the recipe is made for"):
        from_flax(arrays, replace(TINY, policy=replace(TINY.policy, width=16)))
    with pytest.raises(UserError, match="tensors are missing"):
        from_flax(arrays, replace(TINY, policy=replace(TINY.policy, layers=3)))


def test_parameters_of_another_model_are_refused(arrays: dict[str, np.ndarray]) -> None:
    parameters, name = from_flax(arrays, TINY), "hypernetwork.instruction.weight"
    with pytest.raises(UserError, match=f"1 of them: '{name}' came as missing"):
        to_flax({key: value for key, value in parameters.items() if key != name}, TINY)
    with pytest.raises(UserError, match=rf"'{name}' came as \(8, 3\), wanted \(8, 12\)"):
        to_flax(parameters | {name: torch.zeros(8, 3)}, TINY)
    with pytest.raises(UserError, match="'extra' came as .*, wanted nothing of that name"):
        to_flax(parameters | {"extra": torch.zeros(2)}, TINY)


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"head": LinearHead(4, 7)}, "a ReleasedHead with the gripper last"),
        ({"head": ReleasedHead(4, 7, 0)}, "a ReleasedHead with the gripper last"),
        ({"cameras": 2}, "one camera"),
        ({"policy": PolicyConfig(proprio_size=3)}, "no proprio"),
        ({"context_image": "shared"}, "a frozen copy of it for the initial image"),
        ({"context_feature": "patches"}, "its class token"),
        ({"backbone": DinoV2(frozen=True)}, "a DINOv2 that is trained"),
        ({"backbone": ConvNet(), "context_image": "shared"}, "a DINOv2 that is trained"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_recipe_the_released_code_does_not_know_is_refused(changes: dict, lacking: str) -> None:
    with pytest.raises(UserError, match=f"need a model with .*{lacking}"):
        list(places(replace(PAPER, **changes)))


def test_a_file_that_is_no_npz_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    with pytest.raises(UserError, match="There is no file"):
        read_npz(path)
    path.write_bytes(pickle.dumps({"a": np.zeros(3)}))
    with pytest.raises(UserError, match="without pickle"):
        read_npz(path)
    np.savez(path, a=np.array([{}], object))
    with pytest.raises(UserError, match="without pickle"):
        read_npz(path)
    np.savez(path, a=np.arange(3))
    with pytest.raises(UserError, match="'a' as int64, but weights are floating-point"):
        read_npz(path)
    for number in (1e300, np.nan, np.inf):
        np.savez(path, a=np.array([0.0, number]))
        with pytest.raises(UserError, match="NaN or infinite numbers in 'a'"):
            read_npz(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="a single array"):
        read_npz(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_npz_is_refused_wherever_it_is_cut_or_scratched(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "weights.npz"
    (np.savez_compressed if compressed else np.savez)(path, a=np.arange(40.0), b=np.ones(3))
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="not an npz of plain arrays"):
            read_npz(path)
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(UserError):
            read_npz(path)


# The script that makes the npz


def exported(repository: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, repository / "scripts/hypervla_to_npz.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
        branch[last] = array
    return tree


class DeviceArray:
    """An array of JAX's, to pickle."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __reduce__(self) -> tuple:
        return sys.modules["jax._src.array"].__dict__["_reconstruct_array"], (*self.value.__reduce__(), {})


@pytest.fixture
def jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of JAX as pickling its arrays takes."""

    def _reconstruct_array() -> None: ...

    _reconstruct_array.__module__, _reconstruct_array.__qualname__ = "jax._src.array", "_reconstruct_array"
    for name in ("jax", "jax._src", "jax._src.array"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["jax._src.array"].__dict__["_reconstruct_array"] = _reconstruct_array


@pytest.mark.usefixtures("jax")
@pytest.mark.parametrize("protocol", [4, pickle.HIGHEST_PROTOCOL])
def test_the_averaged_weights_of_a_run_become_an_npz(
    arrays: dict[str, np.ndarray], repository: Path, tmp_path: Path, protocol: int
) -> None:
    tree = nested({name: DeviceArray(array) for name, array in arrays.items()})
    (tmp_path / "EMA_params.pkl").write_bytes(pickle.dumps({"EMA_0.999": tree}, protocol))
    done = exported(repository, tmp_path / "EMA_params.pkl", tmp_path / "weights.npz")
    assert done.returncode == 0, done.stderr
    assert f"{len(arrays)} tensors" in done.stdout
    read = read_npz(tmp_path / "weights.npz")
    assert read.keys() == arrays.keys()
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)


def test_plain_arrays_of_any_order_and_precision_are_exported(repository: Path, tmp_path: Path) -> None:
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "h": np.ones(2, ">f4"), "e": np.zeros((0, 3), "f2")}
    (tmp_path / "EMA_params.pkl").write_bytes(pickle.dumps({"EMA_0.999": arrays}, 4))
    done = exported(repository, tmp_path / "EMA_params.pkl", tmp_path / "weights.npz")
    assert done.returncode == 0, done.stderr
    read = read_npz(tmp_path / "weights.npz")
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.path,)


def itself() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    tree["EMA_0.999"] = tree
    return tree


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda folder: {"EMA_0.999": {"a": Trap(folder / "sprung")}}, "it asks for pathlib.Path"),
        (lambda _: {"EMA_0.999": {"a": np.array([{}], object)}}, "its instruction EMPTY_LIST makes something else"),
        (lambda _: {"EMA_0.999": {"a": np.arange(3)}}, "it holds numbers of kind 'i8'"),
        (lambda _: {"EMA_0.999": {"a": "word"}}, "holds 'a', which is no array"),
        (lambda _: {"EMA_0.99": {}}, "holds no 'EMA_0.999'"),
        (lambda _: itself(), "recursion"),
        (lambda _: {"EMA_0.999": {"a": 2.0}}, "its instruction BINFLOAT makes something else"),
    ],
    ids=["program", "objects", "integers", "words", "another average", "itself", "a number"],
)
def test_a_pickle_of_anything_else_is_refused_and_not_run(
    repository: Path, tmp_path: Path, content: Any, message: str
) -> None:
    (tmp_path / "EMA_params.pkl").write_bytes(pickle.dumps(content(tmp_path), 4))
    done = exported(repository, tmp_path / "EMA_params.pkl", tmp_path / "weights.npz")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["EMA_params.pkl"], "nothing ran, and nothing was written"


def test_a_truncated_pickle_and_a_folder_without_jax_are_refused(repository: Path, tmp_path: Path) -> None:
    whole = pickle.dumps({"EMA_0.999": {"a": np.ones(9)}}, 4)
    for name, content in {"cut": whole[:-20], "empty": b"", "text": b"weights"}.items():
        (tmp_path / name).write_bytes(content)
        done = exported(repository, tmp_path / name, tmp_path / "weights.npz")
        assert done.returncode == 1
        assert "is not a pickle of named arrays" in done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "10").mkdir()
    done = exported(repository, tmp_path / "10", tmp_path / "weights.npz")
    assert "Orbax checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "weights.npz").exists()


def test_a_small_file_that_unpacks_to_much_is_refused_before_it_does(tmp_path: Path) -> None:
    path, about = tmp_path / "bomb.npz", {"descr": "<f4", "fortran_order": False, "shape": (2**27,)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as members, members.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, about)
        for _ in range(512):
            file.write(bytes(2**20))
    with pytest.raises(UserError, match="would unpack to 0.5 GiB, which no file of weights does"):
        read_npz(path)
