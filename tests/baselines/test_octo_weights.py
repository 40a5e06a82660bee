"""Octo's published weights mean here what they mean there, come back unchanged, and damage is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests import tiny
from torch import nn

from hypervla.baselines.octo import OCTO_BASE, OCTO_SMALL, Octo, OctoCamera, OctoConfig, SmallStem
from hypervla.baselines.octo_weights import from_flax, places, read_published, to_flax
from hypervla.contracts import UserError
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.npz import write_npz

SMALLEST = OctoConfig(
    instruction_encoder=InstructionEncoder("t5", "", length=3, width=5),
    views=(OctoCamera("primary", 16), OctoCamera("wrist", 8)),
    head=DiffusionHead(horizon=2, action_size=3, steps=5, time=6, hidden=8, blocks=2),
    width=8,
    layers=2,
    heads=2,
    mlp=16,
    stem=SmallStem(channels=(32, 32), features=8),
    max_window=3,
)
KERNEL = "octo_transformer/task_language_projection/kernel"


def published_tree() -> dict[str, tuple[int, ...]]:
    """Names and shapes of octo-small-1.5 without T5."""
    tree: dict[str, tuple[int, ...]] = {
        "task_language_projection/kernel": (768, 384),
        "task_language_projection/bias": (384,),
        "task_language_pos_embedding": (1, 16, 384),
        "readout_action_pos_embedding": (1, 10, 1, 384),
    }
    for camera, tokens in (("primary", 256), ("wrist", 64)):
        stem = f"observation_tokenizers_{camera}/SmallStem16_0"
        tree |= {f"obs_{camera}_projection/kernel": (512, 384), f"obs_{camera}_projection/bias": (384,)}
        tree |= {f"obs_{camera}_pos_embedding": (1, 10, tokens, 384)}
        for i, (before, after) in enumerate([(6, 32), (32, 96), (96, 192), (192, 384)]):
            tree |= {f"{stem}/StdConv_{i}/kernel": (3, 3, before, after), f"{stem}/StdConv_{i}/bias": (after,)}
            tree |= {f"{stem}/GroupNorm_{i}/scale": (after,), f"{stem}/GroupNorm_{i}/bias": (after,)}
        tree |= {f"{stem}/embedding/kernel": (1, 1, 384, 512), f"{stem}/embedding/bias": (512,)}
    root = "BlockTransformer_0/Transformer_0"
    tree |= {f"{root}/encoder_norm/scale": (384,), f"{root}/encoder_norm/bias": (384,)}
    for i in range(12):
        block = f"{root}/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        tree |= {f"{block}/LayerNorm_{k}/{kind}": (384,) for k in (0, 1) for kind in ("scale", "bias")}
        tree |= {f"{attention}/{name}/kernel": (384, 6, 64) for name in ("query", "key", "value")}
        tree |= {f"{attention}/{name}/bias": (6, 64) for name in ("query", "key", "value")}
        tree |= {f"{attention}/out/kernel": (6, 64, 384), f"{attention}/out/bias": (384,)}
        tree |= {f"{block}/MlpBlock_0/Dense_0/kernel": (384, 1536), f"{block}/MlpBlock_0/Dense_0/bias": (1536,)}
        tree |= {f"{block}/MlpBlock_0/Dense_1/kernel": (1536, 384), f"{block}/MlpBlock_0/Dense_1/bias": (384,)}
    head = {"time_preprocess/kernel": (16, 1)}
    layers = {"cond_encoder/Dense_0": (32, 64), "cond_encoder/Dense_1": (64, 32), "reverse_network/Dense_0": (444, 256)}
    layers |= {"reverse_network/Dense_1": (256, 28)}
    for i in range(3):
        block = f"reverse_network/MLPResNetBlock_{i}"
        layers |= {f"{block}/Dense_0": (256, 1024), f"{block}/Dense_1": (1024, 256)}
        head |= {f"{block}/LayerNorm_0/scale": (256,), f"{block}/LayerNorm_0/bias": (256,)}
    for name, shape in layers.items():
        head |= {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}
    inside = {f"octo_transformer/{name}": shape for name, shape in tree.items()}
    return inside | {f"heads_action/diffusion_model/{name}": shape for name, shape in head.items()}


def wave(number: int, *shape: int) -> np.ndarray:
    """Numbers that anyone can compute again."""
    flat = np.sin(np.arange(prod(shape)) * (0.37 + 0.11 * number) + number)
    return flat.astype(np.float32).reshape(shape)


def speckle(number: int, *shape: int) -> np.ndarray:
    """Pixels that anyone can compute again."""
    k = np.arange(prod(shape))
    return ((k * k * 7 + k * (31 + number)) % 256).astype(np.uint8).reshape(shape)


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 is not among the weights; its tokens are given here."""
    monkeypatch.setattr(InstructionEncoder, "build", lambda _config, _pretrained: nn.Identity())


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    shapes = {place.name: place.shape for place in places(SMALLEST)}
    return {
        name: 0.5 * wave(number, *shapes[name]) + np.float32(name.endswith("scale"))
        for number, name in enumerate(sorted(shapes))
    }


# The published tree


def test_the_published_tree_has_these_names_and_shapes() -> None:
    assert {place.name: place.shape for place in places(OCTO_SMALL)} == published_tree()


def test_the_published_trees_have_the_published_number_of_parameters() -> None:
    for config, total in ((OCTO_SMALL, 27_042_060), (OCTO_BASE, 92_830_092)):
        assert sum(prod(place.shape) for place in places(config)) == total


# What the weights mean: the numbers below came out of the published JAX code for these waves and speckles.

READOUT = [
    [[-0.125868, -0.336027, -2.209466], [-0.249923, 0.0116, -2.168679]],
    [[-0.240248, -0.271395, -2.017371], [-0.271309, -0.020909, -2.296561]],
    [[-0.553888, 0.184024, -1.177695], [-0.489506, 0.489926, -1.088111]],
    [[-0.970472, 0.492238, -1.012271], [-0.199409, 0.318025, -1.059621]],
]
"""The first three of eight features at both steps. The samples have, in turn: instruction and both observations; both
kinds of goal but only the present; the goal's image only; nothing but the present."""
LOSS = 27.39005
CHUNK = [
    [[-1.387004, 5.0, 5.0], [-4.316336, -5.0, -5.0]],
    [[-1.058535, 5.0, 5.0], [-4.725076, -5.0, -5.0]],
    [[-1.5843, 5.0, 5.0], [-2.268148, -5.0, -5.0]],
    [[-1.746547, 5.0, 5.0], [-1.691422, -5.0, -5.0]],
]


@torch.no_grad()
def test_the_published_code_computes_the_same(arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    weights, model = from_flax(arrays, SMALLEST), Octo(SMALLEST, pretrained=False)
    for name, parameter in model.trained_parameters().items():
        parameter.copy_(weights[name])
    shown = np.uint8([0, 1, 1, 0])[:, None, None, None]

    def pair(primary: np.ndarray, wrist: np.ndarray) -> torch.Tensor:
        """Both cameras at the first one's size; four equal pixels average to one."""
        return torch.from_numpy(np.stack([primary, wrist.repeat(2, -3).repeat(2, -2)], -4))

    tensors = (
        pair(speckle(0, 4, 2, 16, 16, 3), speckle(1, 4, 2, 8, 8, 3)),
        torch.tensor([[True, True], [False, True], [True, True], [False, True]]),
        pair(speckle(2, 4, 16, 16, 3) * shown, speckle(3, 4, 8, 8, 3) * shown),
        torch.from_numpy(wave(4, 4, 3, 5)),
        torch.tensor([True, True, False, False]),
    )
    close = {"rtol": 1e-4, "atol": 2e-5}
    features = model.features(*tensors)
    torch.testing.assert_close(features[..., :3], torch.tensor(READOUT), **close)

    head, time, noise = SMALLEST.head, torch.arange(8).view(1, 8) % 5, torch.from_numpy(wave(7, 1, 8, 2, 3))
    at = head.loss_at
    monkeypatch.setattr(DiffusionHead, "loss", lambda _head, *given: at(*given, time, noise))
    mask = torch.from_numpy(wave(6, 4, 2, 2, 3) < 0.5)
    loss = model.loss_of_tensors(torch.from_numpy(4 * wave(5, 4, 2, 2, 3)), mask, *tensors)
    torch.testing.assert_close(loss, torch.tensor(LOSS), **close)

    noises = torch.from_numpy(wave(8, 6, 1, 1, 6))[:5].expand(5, 1, 4, 6)
    chunk = head.sample(model.head(), features[:, -1].unsqueeze(0), noises)
    torch.testing.assert_close(chunk[0], torch.tensor(CHUNK), **close)


# There and back


def test_weights_come_back_unchanged(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_npz(tmp_path / "octo.npz", arrays)
    back = to_flax(read_published(tmp_path / "octo.npz", SMALLEST), SMALLEST)
    assert back.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_ours_come_back_unchanged() -> None:
    parameters = tiny.seeded(Octo, SMALLEST, False).trained_parameters()
    back = from_flax(to_flax(parameters, SMALLEST), SMALLEST)
    assert back.keys() == parameters.keys()
    assert all(torch.equal(back[name], value) for name, value in parameters.items())


def test_t5_and_cameras_that_the_model_does_not_have_are_left_unread(arrays: dict[str, np.ndarray]) -> None:
    t5 = {"octo_transformer/task_tokenizers_language/hf_model/shared/embedding": np.zeros((4, 5), np.float32)}
    alone = replace(SMALLEST, views=SMALLEST.views[:1])
    whole, part = from_flax(arrays, SMALLEST), from_flax(arrays | t5, alone)
    assert {name for name in whole if "wrist" not in name} == part.keys()
    assert all(torch.equal(whole[name], value) for name, value in part.items())


# Damage


def test_missing_and_unknown_tensors_are_named(arrays: dict[str, np.ndarray]) -> None:
    fewer = {name: value for name, value in arrays.items() if name != KERNEL}
    with pytest.raises(UserError, match=f"1 tensors are missing \\['{KERNEL}'\\] and 0 unknown"):
        from_flax(fewer, SMALLEST)
    for name in (
        "octo_transformer/obs_primary_other",
        "heads_value/kernel",
        "octo_transformer/obs_primary_projection/x",
    ):
        with pytest.raises(UserError, match=f"1 unknown \\['{name}'\\]"):
            from_flax(arrays | {name: np.zeros(3, np.float32)}, SMALLEST)
    three = (*SMALLEST.views, OctoCamera("overhead", 16))
    with pytest.raises(UserError, match="are missing \\['octo_transformer/obs_overhead_pos_embedding'"):
        from_flax(arrays, replace(SMALLEST, views=three))


def test_another_shape_is_named(arrays: dict[str, np.ndarray]) -> None:
    for shape in ((8, 5), (5, 8, 1), (40,), ()):
        damaged = arrays | {KERNEL: np.zeros(shape, np.float32)}
        with pytest.raises(UserError, match=f"'{KERNEL}' has shape .*, but the recipe is made for \\(5, 8\\)"):
            from_flax(damaged, SMALLEST)


def test_a_pickle_is_refused_and_not_run(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(pickle.dumps(arrays))
    with pytest.raises(UserError, match="is not an npz of plain arrays"):
        read_published(tmp_path / "weights.npz", SMALLEST)
    np.savez(tmp_path / "objects.npz", **{KERNEL: np.array([{}], object)})  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="without pickle"):
        read_published(tmp_path / "objects.npz", SMALLEST)


def test_parameters_of_another_model_are_not_exported() -> None:
    parameters = dict(tiny.seeded(Octo, SMALLEST, False).trained_parameters())
    wide = torch.zeros(8, 6)
    with pytest.raises(UserError, match="'instruction.weight' came as \\(8, 6\\), wanted \\(8, 5\\)"):
        to_flax(parameters | {"instruction.weight": wide}, SMALLEST)
    with pytest.raises(UserError, match="'extra' came as \\(8, 6\\), wanted nothing of that name"):
        to_flax(parameters | {"extra": wide}, SMALLEST)


# The script


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    module = ModuleType("octo_to_npz")
    path = repository / "scripts/octo_to_npz.py"
    exec(compile(path.read_text(), path, "exec"), module.__dict__)
    return module


def test_the_script_explains_itself(repository: Path) -> None:
    command = [sys.executable, repository / "scripts/octo_to_npz.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "octo-small-1.5" in done.stdout


def test_the_script_flattens_a_tree_and_leaves_t5_out(script: ModuleType) -> None:
    one = np.ones(2, np.float32)
    language = {"task_tokenizers_language": {"hf_model": {"shared": one}}, "task_language_projection": {"bias": one}}
    tree = {"octo_transformer": language, "heads_action": {"kernel": one}}
    assert [name for name, _ in script.flat(tree)] == [
        "octo_transformer/task_language_projection/bias",
        "heads_action/kernel",
    ]
    with pytest.raises(ValueError, match="'heads_action/step', which is no array"):
        dict(script.flat({"heads_action": {"step": 3}}))


CARDS = {
    "holds no config.json": None,
    "holds an Octo 1.0": json.dumps({"model": {"repeat_task_tokens": False, "use_correct_attention": True}}),
    "holds an Octo 1.0, whose attention": json.dumps({"model": {}}),
    "is not of an Octo": json.dumps([3]),
    "is not of an Octo (JSONDecodeError": "{",
    "holds no folder of a step": json.dumps({"model": {"repeat_task_tokens": True, "use_correct_attention": True}}),
}


@pytest.mark.parametrize("reason", CARDS)
def test_the_script_refuses_what_is_no_octo_1_5_in_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    card = CARDS[reason]
    if card is not None:
        (tmp_path / "config.json").write_text(card)
    monkeypatch.setattr(sys, "argv", ["octo_to_npz.py", str(tmp_path), str(tmp_path / "out.npz")])
    with pytest.raises(SystemExit) as refusal:
        script.main()
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out.npz").exists()


def test_the_script_takes_the_last_step(script: ModuleType, tmp_path: Path) -> None:
    for name in ("9", "300000", "300000/default", "other"):
        (tmp_path / name).mkdir()
    assert script.last_step(tmp_path) == tmp_path / "300000/default"
    (tmp_path / "300001").mkdir()
    assert script.last_step(tmp_path) == tmp_path / "300001"
