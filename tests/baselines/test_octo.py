"""Octo: published sizes, masks, windows and goals, at tiny size where something is computed (spec 3)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from torch import Tensor
from torch.nn import functional as F

from hypervla.baselines.octo import (
    OCTO_BASE,
    OCTO_SMALL,
    Octo,
    OctoCamera,
    OctoConfig,
    SmallStem,
    StandardisedConv,
    block_mask,
)
from hypervla.contracts import UserError
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import Batch, ModelConfig, Monolithic

SIDE, WINDOW = 16, 2
STEM = SmallStem(channels=(4, 8), features=6, groups=2)


@pytest.fixture(scope="module")
def config(text_folder: Path) -> OctoConfig:
    """Two cameras of 16 and 4 tokens."""
    return OctoConfig(
        instruction_encoder=InstructionEncoder("t5", str(text_folder), tiny.LENGTH, 16),
        views=(OctoCamera("primary", SIDE), OctoCamera("wrist", SIDE // 2)),
        head=DiffusionHead(horizon=2, action_size=3, steps=5, time=6, hidden=16, blocks=1),
        width=16,
        layers=2,
        heads=2,
        mlp=32,
        stem=STEM,
        window=WINDOW,
        max_window=3,
    )


@pytest.fixture(scope="module")
def model(config: OctoConfig) -> Octo:
    return tiny.seeded(config.build).eval()


def make_batch(config: OctoConfig, contexts: int = 4, goals: bool = False, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    lead, side = (contexts, 1), config.image_size

    def images(*shape: int) -> Tensor:
        return torch.randint(256, (*shape, config.cameras, side, side, 3), dtype=torch.uint8, generator=random)

    actions = torch.randn(*lead, config.window, config.horizon, config.action_size, generator=random)
    return Batch(
        instructions=[tiny.INSTRUCTIONS[i % len(tiny.INSTRUCTIONS)] for i in range(contexts)],
        initial_images=images(contexts),
        images=images(*lead, config.window),
        timestep_mask=torch.ones(*lead, config.window, dtype=torch.bool),
        proprio=None,
        actions=actions,
        mask=torch.ones_like(actions, dtype=torch.bool),
        goal_images=images(*lead) if goals else None,
        goal_shown=torch.arange(contexts).unsqueeze(1) % 2 == 0 if goals else None,
    )


@torch.no_grad()
def features(model: Octo, batch: Batch) -> Tensor:
    return model.features(*model.prepare(batch.inputs()))


@pytest.mark.parametrize(
    ("config", "total"), [(OCTO_SMALL, 27_042_060), (OCTO_BASE, 92_830_092)], ids=["small", "base"]
)
def test_the_published_sizes(config: OctoConfig, total: int) -> None:
    with torch.device("meta"):
        model = config.build(pretrained=False)
        chunk = model.infer(*model.example(2))
    assert chunk.shape == (2, 4, 7)
    assert sum(p.numel() for p in model.trained_parameters().values()) == total == model.activated()
    assert sum(model.parts().values()) == sum(p.numel() for p in model.parameters()) == total + 109_628_544
    assert sum(p.numel() for p in model.cameras["primary"].stem.parameters()) == 1_058_048
    assert model.rules.shape == (690, 690)
    alone = replace(config, views=config.views[:1])
    with torch.device("meta"):
        assert alone.build(pretrained=False).rules.shape == (562, 562)


def test_it_is_a_monolithic_model(config: OctoConfig, model: Octo) -> None:
    assert isinstance(config, ModelConfig)
    assert isinstance(model, Monolithic)
    assert (config.cameras, config.image_size, config.window, config.horizon, config.action_size) == (2, SIDE, 2, 2, 3)


TRUTH = [  # two of task, then twice: image, image, repeated task, readout
    "11 0000 0000",
    "11 0000 0000",
    "11 1110 0000",
    "11 1110 0000",
    "11 1110 0000",
    "11 1111 0000",
    "11 1110 1110",
    "11 1110 1110",
    "11 1110 1110",
    "11 1111 1111",
]


def test_the_mask_is_the_table_of_the_spec() -> None:
    table = np.array([[cell == "1" for cell in row if cell != " "] for row in TRUTH])
    np.testing.assert_array_equal(block_mask(task=2, observed=3, window=2).numpy(), table)


READABLE = {  # told, real → columns: 8 words, then for each step 20 image tokens, 8 words and the readout
    (True, (True, True)): (1, (1, 1, 1), (1, 1, 1)),
    (True, (False, True)): (1, (0, 1, 1), (1, 1, 1)),
    (False, (True, True)): (0, (1, 0, 1), (1, 0, 1)),
    (False, (False, True)): (0, (0, 0, 1), (1, 0, 1)),
}


@pytest.mark.parametrize(("told", "real"), READABLE)
def test_a_missing_instruction_and_the_images_of_a_repeated_step_are_not_read(
    model: Octo, told: bool, real: tuple[bool, ...]
) -> None:
    task, steps = READABLE[told, real][0], READABLE[told, real][1:]
    expected = [task] * 8 + [value for a, b, c in steps for value in [a] * 20 + [b] * 8 + [c]]
    assert model.readable(torch.tensor([real]), torch.tensor([told]))[0].int().tolist() == expected


def test_a_missing_instruction_is_not_read(model: Octo, config: OctoConfig) -> None:
    batch = replace(make_batch(config), instructions=[""] * 4)
    images, real, goals, text, told = model.prepare(batch.inputs())
    assert not told.any()
    out = model.features(images, real, goals, text, told)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, model.features(images, real, goals, torch.randn_like(text), told))


def test_an_instruction_is_read_with_what_pads_it(model: Octo, config: OctoConfig) -> None:
    images, real, goals, text, told = model.prepare(make_batch(config).inputs())
    words = [len(sentence.split()) for sentence in tiny.INSTRUCTIONS[:4]]
    assert max(words) < tiny.LENGTH, "each has padding at the end"
    before = model.features(images, real, goals, text, told)
    text = text.clone()
    text[:, -1] += 1
    assert ((model.features(images, real, goals, text, told) - before).abs().amax((1, 2)) > 1e-4).all()


def test_a_repeated_observation_changes_nothing_and_neither_does_its_place_without_instruction(
    model: Octo, config: OctoConfig
) -> None:
    batch = make_batch(config)
    batch.timestep_mask[:, :, 0] = False
    other = replace(batch, images=batch.images.clone())
    other.images[:, :, 0] = 255 - other.images[:, :, 0]
    torch.testing.assert_close(features(model, batch), features(model, other))
    silent = [replace(b, instructions=[""] * 4) for b in (batch, other)]
    torch.testing.assert_close(features(model, silent[0]), features(model, silent[1]))
    assert torch.isfinite(features(model, silent[0])).all()


def test_the_present_reads_the_past_and_the_past_not_the_present(model: Octo, config: OctoConfig) -> None:
    batch = make_batch(config)
    before = features(model, batch)
    for step, changed in ((0, (True, True)), (1, (False, True))):
        other = replace(batch, images=batch.images.clone())
        other.images[:, :, step] = 255 - other.images[:, :, step]
        moved = (features(model, other) - before).abs().amax(-1) > 1e-5
        assert moved.tolist() == [list(changed)] * 4


@pytest.mark.parametrize("camera", [0, 1])
def test_every_camera_and_its_goal_is_seen(model: Octo, config: OctoConfig, camera: int) -> None:
    batch = make_batch(config, goals=True)
    before = features(model, batch)
    assert batch.goal_images is not None
    other = replace(batch, images=batch.images.clone(), goal_images=batch.goal_images.clone())
    other.images[..., camera, :, :, :] = 0
    assert ((features(model, other) - before).abs().amax((1, 2)) > 1e-4).all()
    other = replace(batch, goal_images=batch.goal_images.clone())
    other.goal_images[..., camera, :, :, :] = 0
    seen = (features(model, other) - before).abs().amax((1, 2)) > 1e-4
    assert seen.tolist() == [True, False, True, False], "only by samples that are told by their goal"


def test_no_goal_is_a_black_goal(model: Octo, config: OctoConfig) -> None:
    batch = make_batch(config)
    black = torch.zeros_like(batch.images[:, :, 0])
    goals = replace(batch, goal_images=black, goal_shown=torch.zeros(4, 1, dtype=torch.bool))
    torch.testing.assert_close(features(model, batch), features(model, goals))


def test_a_smaller_camera_sees_the_mean_of_its_pixels(model: Octo, config: OctoConfig) -> None:
    wrist = model.cameras["wrist"]
    assert (wrist.times_smaller, model.cameras["primary"].times_smaller) == (2, 1)
    small = torch.randint(256, (2, 1, SIDE // 2, SIDE // 2, 3), dtype=torch.uint8)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    large[:, :, 0::2, 0::2] //= 2
    pixels = torch.cat([large, torch.zeros_like(large)], -1).flatten(0, 1).permute(0, 3, 1, 2).float()
    mean = (pixels[..., 0::2, 0::2] + pixels[..., 0::2, 1::2] + pixels[..., 1::2, 0::2] + pixels[..., 1::2, 1::2]) / 4
    expected = wrist.projection(wrist.stem(mean / 127.5 - 1).flatten(2).transpose(1, 2))
    seen = wrist(large, torch.zeros_like(large[:, 0]))
    torch.testing.assert_close(seen[:, 0], expected + wrist.position[0])


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_filters_are_used_with_mean_0_and_deviation_1(scale: float) -> None:
    """A convolution of one lit pixel shows the filter that is used; a hundred-thousandth is added to the deviation."""
    convolution = StandardisedConv(6, 4)
    with torch.no_grad():
        convolution.weight.copy_(scale * (torch.randn(4, 6, 3, 3) + torch.randn(4, 1, 1, 1)))
        convolution.bias.normal_()
        pixels = torch.eye(6 * 9).view(54, 6, 3, 3)
        used = F.pad(pixels, (1, 1, 1, 1))  # the pixel in the middle of 5 × 5 is that of output (1, 1)
        seen = (convolution(used)[:, :, 1, 1] - convolution.bias).T
    weight = convolution.weight.detach().flatten(1).double()
    expected = (weight - weight.mean(1, keepdim=True)) / (weight.std(1, correction=0, keepdim=True) + 1e-5)
    torch.testing.assert_close(seen.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_loss_is_a_mean_over_all_that_counts(model: Octo, config: OctoConfig, monkeypatch) -> None:
    """A head that sees no noise is wrong by the noise itself."""
    batch, noises = make_batch(config), []
    batch.timestep_mask[0, 0, 0] = False
    batch.mask[1, 0, 1, 1:] = False
    batch.mask[2, 0] = False

    def noise_in(_head, _weights, _features, noisy: Tensor, _time) -> Tensor:
        return torch.zeros_like(noisy)

    def randn(shape, device: str) -> Tensor:
        noises.append(torch.arange(1.0, 49).view(*shape) / 10)
        return noises[-1]

    monkeypatch.setattr(DiffusionHead, "noise_in", noise_in)
    monkeypatch.setattr(torch, "randn", randn)
    loss = model.loss(batch)
    counts = batch.mask[:, 0] & batch.timestep_mask[:, 0, :, None, None]
    expected = 3 * noises[0].view(4, 2, 2, 3)[counts].square().mean()
    torch.testing.assert_close(loss, expected)


def test_a_batch_in_which_nothing_counts_costs_nothing(model: Octo, config: OctoConfig) -> None:
    batch = make_batch(config)
    batch.mask[:] = False
    assert model.loss(batch) == 0


def test_acting_repeats_itself_and_does_not_depend_on_company(model: Octo, config: OctoConfig) -> None:
    tensors = model.prepare(make_batch(config).inputs())
    with torch.no_grad():
        together = model.infer(*tensors)
        assert torch.equal(together, model.infer(*tensors))
        alone = torch.cat([model.infer(*(tensor[i : i + 1] for tensor in tensors)) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_example_is_shaped_like_what_is_prepared(model: Octo, config: OctoConfig) -> None:
    for goals in (False, True):
        tensors = model.prepare(make_batch(config, goals=goals).inputs())
        assert [(x.shape, x.dtype) for x in model.example(4)] == [(x.shape, x.dtype) for x in tensors]


def test_only_kernels_decay(model: Octo) -> None:
    parameters = model.trained_parameters()
    decayed = {name for name in parameters if model.role(name) == "decayed"}
    assert {model.role(name) for name in parameters} == {"decayed", "plain"}
    assert not any(word in name for name in decayed for word in ("bias", "norm", "scale", "position"))
    matrices = {name for name, value in parameters.items() if value.dim() > 1 and "position" not in name}
    assert decayed == matrices | {"head.tensors.head/frequency/kernel"}
    assert not any(name.startswith("instruction_encoder") for name in parameters)


def test_sizes_that_do_not_fit_are_refused(config: OctoConfig) -> None:
    with pytest.raises(UserError, match="hold 3 steps, but the window is 4"):
        replace(config, window=4)
    for size in (SIDE // 2 + 2, 12, 2 * SIDE):
        with pytest.raises(UserError, match=f"down to {size}²"):
            replace(config, views=(config.views[0], OctoCamera("wrist", size)))


def test_it_overfits_32_samples(config: OctoConfig) -> None:
    views = (OctoCamera("primary", 8), OctoCamera("wrist", 4))
    head = replace(config.head, time=16, hidden=64, blocks=2)
    shape = replace(config, views=views, width=32, layers=1, mlp=64, head=head)
    model, batch = tiny.seeded(shape.build), make_batch(shape, contexts=32)
    optimizer, losses = torch.optim.Adam(model.trained_parameters().values(), lr=3e-3), []
    target, inputs = batch.actions[:, 0, -1], batch.inputs()

    @torch.no_grad()
    def wrong() -> float:
        return (model.infer(*model.prepare(inputs)) - target).square().mean().item()

    before = wrong()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(250):
            loss = model.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:5]), losses[::20]
    assert wrong() < 0.2 * before


@pytest.mark.traced
def test_the_traced_loss_is_the_eager_one(config: OctoConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend="aot_eager"))
    model, batch = tiny.seeded(config.build), make_batch(config)
    eager = tiny.seeded(model.loss, batch)
    model.trace()
    torch.testing.assert_close(tiny.seeded(model.loss, batch), eager)
