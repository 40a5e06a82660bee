"""The model as a whole: what training moves, what it leaves alone, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny

from hypervla.contracts import UserError
from hypervla.models.action_head import LinearHead
from hypervla.models.backbones import DinoV2
from hypervla.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hypervla.models.hypervla import Batch, HyperVLA, HyperVLAConfig, PolicyConfig

VARIANCE = HypernetworkConfig(width=8, layers=1, heads=2, mlp=16, initialisation="variance")
"""With it, contexts differ from the first step on."""


@pytest.fixture(params=["convolutional", "paper-shaped"])
def config(request: pytest.FixtureRequest, text_folder: Path, vision_folder: Path) -> HyperVLAConfig:
    if request.param == "convolutional":
        return tiny.convolutional(text_folder, hypernetwork=VARIANCE, context_image_dropout=0.0)
    return tiny.paper_shaped(text_folder, vision_folder, hypernetwork=VARIANCE)


@pytest.fixture
def model(config: HyperVLAConfig) -> HyperVLA:
    return tiny.seeded(HyperVLA, config)


def test_frames_of_one_context_cost_what_they_cost_in_contexts_of_their_own(model: HyperVLA) -> None:
    together = tiny.random_batch(model.config, contexts=2, frames=3)
    alone = Batch(
        instructions=[sentence for sentence in together.instructions for _ in range(3)],
        initial_images=together.initial_images.repeat_interleave(3, 0),
        images=together.images.flatten(0, 1).unsqueeze(1),
        proprio=None if together.proprio is None else together.proprio.flatten(0, 1).unsqueeze(1),
        actions=together.actions.flatten(0, 1).unsqueeze(1),
        mask=together.mask.flatten(0, 1).unsqueeze(1),
        timestep_mask=together.timestep_mask.flatten(0, 1).unsqueeze(1),
    )
    torch.testing.assert_close(model.loss(together), model.loss(alone), rtol=1e-5, atol=1e-6)


def test_instruction_and_image_each_decide_the_weights(model: HyperVLA) -> None:
    batch = tiny.random_batch(model.config, contexts=2)
    first, second = batch.initial_images[:1], batch.initial_images[1:]
    sentence, other = batch.instructions
    weights = model.generate([sentence], first)
    assert not torch.equal(model.generate([other], first), weights)
    assert not torch.equal(model.generate([sentence], second), weights)
    assert torch.equal(model.generate([sentence], first), weights)


def test_writing_weights_never_trains_a_vision_encoder(model: HyperVLA) -> None:
    batch = tiny.random_batch(model.config)
    model.generate(batch.instructions, batch.initial_images).square().sum().backward()
    assert model.hypernetwork.image.weight.grad.any()
    encoders = [model.backbone, model.instruction_encoder, model.context_backbone]
    assert all(p.grad is None for encoder in encoders if encoder is not None for p in encoder.parameters())


def test_training_moves_all_but_the_frozen_encoders(model: HyperVLA) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.trained_parameters().values(), lr=0.1)
    model.train()
    for _ in range(2):  # the first step moves what starts at zero, the second what lies behind that
        optimizer.zero_grad()
        model.loss(tiny.random_batch(model.config)).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith(("instruction_encoder.", "context_backbone."))}
    assert not moved & frozen
    assert set(before) - frozen == set(model.trained_parameters())
    still = set(before) - frozen - moved
    assert all("mask_token" in name or "key.bias" in name for name in still), still


def test_masked_actions_change_nothing(model: HyperVLA) -> None:
    batch = tiny.random_batch(model.config)
    mask = batch.mask.clone()
    mask[:, :, :, 1:] = False
    other = batch.actions.clone()
    other[:, :, :, 1:] = 0.5
    kept = model.loss(replace(batch, mask=mask))
    assert torch.equal(model.loss(replace(batch, mask=mask, actions=other)), kept)
    assert not torch.equal(model.loss(replace(batch, actions=other)), kept)


def test_a_dropped_context_image_is_not_seen(text_folder: Path) -> None:
    config = tiny.convolutional(text_folder, hypernetwork=VARIANCE, context_image_dropout=1.0)
    model = tiny.seeded(HyperVLA, config)
    batch = tiny.random_batch(config)
    other = replace(batch, initial_images=255 - batch.initial_images)
    assert torch.equal(model.loss(batch), model.loss(other))
    seeing = tiny.seeded(HyperVLA, replace(config, context_image_dropout=0.0))
    assert not torch.equal(seeing.loss(batch), seeing.loss(other))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_context_images_are_dropped_as_often_as_asked(text_folder: Path, share: float, monkeypatch) -> None:
    config = tiny.convolutional(text_folder, context_image_dropout=share)
    model, kept, embed = tiny.seeded(HyperVLA, config), [], Hypernetwork.embed
    monkeypatch.setattr(Hypernetwork, "embed", lambda *inputs: kept.append(inputs[-1]) or embed(*inputs))
    torch.manual_seed(0)
    model.loss(tiny.random_batch(config, contexts=400, frames=1))
    assert 1 - kept[0].float().mean() == pytest.approx(share, abs=0.06 if 0 < share < 1 else 0)


def test_several_cameras_and_either_head_train(config: HyperVLAConfig) -> None:
    config = replace(config, cameras=2, head=LinearHead(horizon=2, action_size=3))
    model, batch = tiny.seeded(HyperVLA, config), tiny.random_batch(config)
    swapped = replace(batch, images=batch.images.flip(3))
    assert model.policy.tokens == 2 * config.backbone.tokens
    assert model.tokens(batch.images[:, :, 0]).shape[2] == model.policy.tokens
    assert not torch.equal(model.loss(batch), model.loss(swapped))
    model.loss(batch).backward()
    assert model.hypernetwork.image_position.grad[1].any()


@pytest.mark.parametrize("backbone", [None, DinoV2(image_size=24, source=None)])
def test_a_frozen_copy_without_pretrained_weights_is_refused(text_folder: Path, backbone: DinoV2 | None) -> None:
    changes = {} if backbone is None else {"backbone": backbone}
    with pytest.raises(UserError, match="A frozen copy .* give the backbone a source, or set context_image='shared'"):
        tiny.convolutional(text_folder, context_image="frozen copy", **changes)


def test_a_tiny_paper_shaped_model_overfits_32_samples(text_folder: Path, vision_folder: Path) -> None:
    config = tiny.paper_shaped(
        text_folder,
        vision_folder,
        policy=PolicyConfig(width=32, layers=2, heads=4, mlp=64),
        hypernetwork=HypernetworkConfig(width=32, layers=2, heads=4, mlp=64),
    )
    torch.manual_seed(0)
    model, batch = HyperVLA(config), tiny.random_batch(config, contexts=32, frames=1)
    optimizer = torch.optim.Adam(model.trained_parameters().values(), lr=3e-3)
    losses = []
    for _ in range(250):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0], losses[::25]
