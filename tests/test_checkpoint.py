"""A checkpoint is the model it was made of, or it is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypervla import checkpoint
from hypervla.checkpoint import CARD, WEIGHTS
from hypervla.contracts import UserError
from hypervla.data.normalize import Robot
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLA, HyperVLAConfig
from hypervla.training.recipes import RECIPES
from tests import tiny
from tests.fakes import POINT

VARIANCE = HypernetworkConfig(width=8, layers=1, heads=2, mlp=16, initialisation="variance")


@pytest.fixture(params=["convolutional", "paper-shaped"])
def config(request: pytest.FixtureRequest, text_folder: Path, vision_folder: Path) -> HyperVLAConfig:
    if request.param == "convolutional":
        return tiny.convolutional(text_folder, hypernetwork=VARIANCE)
    return tiny.paper_shaped(text_folder, vision_folder, hypernetwork=VARIANCE)


@pytest.fixture
def saved(tmp_path: Path, text_folder: Path) -> Path:
    tiny.save_checkpoint(tmp_path / "checkpoint", tiny.convolutional(text_folder))
    return tmp_path / "checkpoint"


def test_a_loaded_model_is_the_saved_one(config: HyperVLAConfig, tmp_path: Path) -> None:
    model, batch = tiny.save_checkpoint(tmp_path, config), tiny.random_batch(config)
    loaded, about, _ = checkpoint.load(tmp_path)
    assert about.config == config
    assert about.robots == {"point": json.loads(json.dumps(Robot(POINT, tiny.NORMALIZER).to_json()))}
    assert not loaded.training
    mine = loaded.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in model.state_dict().items())
    model.requires_grad_(False)  # torch multiplies differently, by a rounding, where gradients may be wanted
    weights = model.generate(batch.instructions, batch.initial_images)
    assert torch.equal(loaded.generate(batch.instructions, batch.initial_images), weights)
    named, images = model.policy.layout.split(weights), batch.images[:, :, 0]
    proprio = None if batch.proprio is None else batch.proprio[:, :, 0]
    assert torch.equal(
        loaded.policy.act(named, loaded.tokens(images), proprio), model.policy.act(named, model.tokens(images), proprio)
    )


def test_half_precision_rounds_and_nothing_more(config: HyperVLAConfig, tmp_path: Path) -> None:
    model = tiny.save_checkpoint(tmp_path, config, dtype=torch.float16)
    loaded, _, _ = checkpoint.load(tmp_path)
    mine = dict(loaded.named_parameters())
    for name, parameter in model.trained_parameters().items():
        assert torch.equal(mine[name], parameter.half().float()), name


def test_frozen_encoders_are_not_in_the_file(config: HyperVLAConfig, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, config)
    weights = checkpoint.read_weights(tmp_path / WEIGHTS, checkpoint.read_card(tmp_path).digest)
    assert {name.split(".")[0] for name in weights} == {"backbone", "hypernetwork"}


def test_the_backbone_alone_is_the_models_backbone(config: HyperVLAConfig, tmp_path: Path) -> None:
    model, images = tiny.save_checkpoint(tmp_path, config), tiny.random_batch(config).images[:, 0, 0, 0]
    backbone, _, digest = checkpoint.load_backbone(tmp_path)
    with torch.no_grad():
        assert torch.equal(backbone(images)[0], model.backbone(images)[0])
    loaded, about, weights = checkpoint.load(tmp_path)
    assert digest == about.backbone_digest(weights, loaded.backbone)


def digest_of(folder: Path, config: HyperVLAConfig, touch: Callable[[HyperVLA], torch.Tensor] | None = None) -> str:
    """The backbone's digest of a checkpoint of `config`, one of its tensors moved by `touch`."""
    model = tiny.seeded(HyperVLA, config)
    if touch is not None:
        with torch.no_grad():
            touch(model).view(-1)[0] += 1e-3
    checkpoint.save(
        folder, model.trained_parameters(), config=config, robots={}, provenance={},
        dtype=torch.float32,
    )  # fmt: skip
    return checkpoint.load_backbone(folder)[2]


def test_the_backbones_digest_is_of_what_a_task_policy_relies_on(text_folder: Path, tmp_path: Path) -> None:
    config = tiny.convolutional(text_folder)
    digest = digest_of(tmp_path, config)
    unrelated = [
        digest_of(tmp_path, config),
        digest_of(tmp_path, config, lambda model: model.hypernetwork.kernel_heads.bias),
        digest_of(tmp_path, replace(config, hypernetwork=VARIANCE)),
    ]
    related = [
        digest_of(tmp_path, config, lambda model: model.backbone.norm.bias),
        digest_of(tmp_path, replace(config, head=replace(config.head, gripper_index=0))),
        digest_of(tmp_path, replace(config, policy=replace(config.policy, heads=4))),
    ]
    assert set(unrelated) == {digest}
    assert len({digest, *related}) == 4


# Refusals


def refused(folder: Path, match: str) -> None:
    """Every way to load this folder ends in the same single sentence."""
    for load in (checkpoint.load, checkpoint.load_backbone):
        with pytest.raises(UserError, match=match) as error:
            load(folder)
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)


@given(data=st.data())
def test_a_flipped_bit_anywhere_in_the_weights_is_refused(data: st.DataObject, small: Path) -> None:
    path, whole = small / WEIGHTS, (small / WEIGHTS).read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << bit
    try:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or foreign"):
            checkpoint.read_weights(path, checkpoint.read_card(small).digest)
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("small")
    tiny.save_checkpoint(folder, tiny.convolutional(text_folder))
    return folder


@pytest.mark.parametrize("left", [0, 7, 1000])
def test_truncated_weights_are_refused(saved: Path, left: int) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:left])
    refused(saved, "damaged or foreign")


@pytest.mark.parametrize(("name", "match"), [(CARD, "is missing"), (WEIGHTS, "is missing: the checkpoint is incomp")])
def test_a_missing_file_is_named(saved: Path, name: str, match: str) -> None:
    (saved / name).unlink()
    refused(saved, f"{name} {match}|{name} is missing")


def test_another_models_weights_are_refused_even_when_whole(saved: Path, text_folder: Path, tmp_path: Path) -> None:
    larger = tiny.convolutional(text_folder, backbone=replace(tiny.convolutional(text_folder).backbone, widths=(4, 16)))
    tiny.save_checkpoint(tmp_path / "other", larger)
    card, other = json.loads((saved / CARD).read_text()), json.loads((tmp_path / "other" / CARD).read_text())
    (saved / CARD).write_text(json.dumps(card | {"weights_sha256": other["weights_sha256"]}))
    (saved / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    refused(saved, "holds another model: 'stages|holds another model: 'backbone.stages")


def test_another_layers_weights_are_counted(saved: Path) -> None:
    card = json.loads((saved / CARD).read_text())
    card["model"]["backbone"]["widths"] = [4, 8, 16]
    (saved / CARD).write_text(json.dumps(card))
    refused(saved, r"holds another model: \d+ tensors are missing \[.*\] and 0 unknown")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda card: "", "is not a hypervla checkpoint card"),
        (lambda card: json.dumps(card)[:200], "is not a hypervla checkpoint card"),
        (lambda card: "[1, 2]", "is not a hypervla checkpoint card"),
        (lambda card: '{"architectures": ["LlamaForCausalLM"]}', "is not a hypervla checkpoint card"),
        (lambda card: json.dumps(card | {"format": 99}), "of checkpoint format 99, but this version of hypervla reads"),
        (lambda card: json.dumps(card | {"model": {"type": "Llama"}}), "is not a hypervla checkpoint card"),
        (lambda card: json.dumps(card | {"model": "llama"}), "is not a hypervla checkpoint card"),
        (lambda card: json.dumps(card | {"model": card["model"]["policy"]}), "is not a hypervla checkpoint card"),
        (
            lambda card: json.dumps(card | {"robots": {"x": {"embodiment": {"name": "x"}}}}),
            "is not a hypervla checkpoint",
        ),
        (lambda card: json.dumps(card | {"robots": []}), "is not a hypervla checkpoint card"),
        (lambda card: json.dumps(card | {"model": card["model"] | {"new": 1}}), "is not a hypervla checkpoint card"),
    ],
)
def test_a_damaged_or_foreign_card_is_refused(saved: Path, damage: Callable[[dict], str], match: str) -> None:
    (saved / CARD).write_text(damage(json.loads((saved / CARD).read_text())))
    refused(saved, match)


def test_weights_replaced_without_their_card_are_refused(saved: Path, text_folder: Path, monkeypatch) -> None:
    """A kill between the two moves of `save` leaves no mixture that a later command would accept."""
    write = checkpoint.write_atomically

    def killed_before_the_card(path: Path, data: bytes) -> None:
        if path.name == CARD:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", killed_before_the_card)
    with pytest.raises(KeyboardInterrupt):
        tiny.save_checkpoint(saved, tiny.convolutional(text_folder), seed=1)
    refused(saved, "damaged or foreign")


def test_locate_names_near_matches(tmp_path: Path) -> None:
    assert checkpoint.locate(tmp_path) == tmp_path
    with pytest.raises(UserError, match="There is no checkpoint folder 'embeded'.*embedded"):
        checkpoint.locate("embeded")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; a checkpoint is the folder"):
        checkpoint.locate(tmp_path / "file")
    with pytest.raises(UserError, match="neither a folder here nor to be had from the Hugging Face hub"):
        checkpoint.locate("nobody/no-such-checkpoint")


# The card


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES)
def test_every_recipes_model_survives_json(make) -> None:
    config = make().model
    through = checkpoint.config_from_json(json.loads(json.dumps(checkpoint.config_to_json(config))))
    assert through == config
    assert hash(through) == hash(config)


def test_a_frozen_backbone_comes_from_its_source_and_counts_in_the_digest(
    text_folder: Path, vision_folder: Path, tmp_path: Path
) -> None:
    config = tiny.paper_shaped(text_folder, vision_folder, context_image="shared")
    config = replace(config, backbone=replace(config.backbone, frozen=True))
    model = tiny.save_checkpoint(tmp_path, config)
    weights = checkpoint.read_weights(tmp_path / WEIGHTS, checkpoint.read_card(tmp_path).digest)
    assert {name.split(".")[0] for name in weights} == {"hypernetwork"}
    backbone, about, digest = checkpoint.load_backbone(tmp_path)
    assert all(torch.equal(value, model.backbone.get_parameter(name)) for name, value in backbone.named_parameters())
    assert digest == about.backbone_digest(weights, checkpoint.load(tmp_path)[0].backbone)
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    assert digest != about.backbone_digest(weights, backbone)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "backbone", "image_size"), "192"),
        (("model", "backbone", "widths"), ["a", 8]),
        (("model", "backbone", "widths"), [8] * 99 + ["a"]),
        (("model", "hypernetwork", "layers"), 1.5),
        (("model", "hypernetwork", "heads"), 3),
        (("model", "policy", "heads"), 0),
        (("model", "context_image"), "foo"),
        (("weights_sha256",), 5),
    ],
)
def test_a_card_with_values_of_another_type_is_refused(hypervla_folder: Path, path: tuple, value: object) -> None:
    card = json.loads((hypervla_folder / checkpoint.CARD).read_text())
    inner = card
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (hypervla_folder / checkpoint.CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match="is not a hypervla checkpoint card"):
        checkpoint.read_card(hypervla_folder)


def test_sizes_that_cannot_be_built_are_refused(hypervla_folder: Path) -> None:
    card = json.loads((hypervla_folder / checkpoint.CARD).read_text())
    card["model"]["backbone"]["widths"] = [-4, 8]
    (hypervla_folder / checkpoint.CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match="describes a model that cannot be built"):
        checkpoint.load(hypervla_folder)


def test_weights_that_only_their_digest_vouches_for_are_refused(hypervla_folder: Path) -> None:
    card = json.loads((hypervla_folder / checkpoint.CARD).read_text())
    (hypervla_folder / checkpoint.WEIGHTS).write_bytes(b"nothing")
    card["weights_sha256"] = hashlib.sha256(b"nothing").hexdigest()
    (hypervla_folder / checkpoint.CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match="is no safetensors file"):
        checkpoint.load(hypervla_folder)


@pytest.fixture
def hypervla_folder(text_folder: Path, tmp_path: Path) -> Path:
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder))
    return tmp_path
