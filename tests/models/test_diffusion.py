"""The head that samples: its schedule, its steps and its denoiser (spec 3)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests import tiny
from torch import Tensor, nn

from hypervla.contracts import WeightLayout
from hypervla.models.action_head import ActionHead
from hypervla.models.diffusion import CosineSchedule, DiffusionHead
from hypervla.models.generated import StaticWeights, Weights

OCTO = DiffusionHead(horizon=4, action_size=7)
HEAD = DiffusionHead(horizon=2, action_size=3, steps=5, time=6, hidden=8, blocks=2)
WIDTH = 4


def weights_of(head: DiffusionHead, width: int = WIDTH, sets: int = 1, seed: int = 0) -> Weights:
    """`sets` random weight sets in which no tensor is zero."""
    random = torch.Generator().manual_seed(seed)
    return {spec.name: 0.5 * torch.randn(sets, *spec.shape, generator=random) for spec in head.layout(width)}


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def no_denoiser(head: DiffusionHead) -> Weights:
    """Weights under which the head sees no noise anywhere."""
    return {name: torch.zeros_like(value) for name, value in weights_of(head).items()}


@pytest.mark.parametrize(("width", "size"), [(64, 1_621_644), (384, 1_703_564), (768, 1_801_868)])
def test_the_denoiser_has_its_published_size(width: int, size: int) -> None:
    assert isinstance(OCTO, ActionHead)
    assert WeightLayout(OCTO.layout(width)).size == size


def test_the_published_schedule() -> None:
    betas = OCTO.schedule.betas
    assert len(betas) == len(OCTO.schedule.kept) == 20
    assert betas[0] == pytest.approx(0.0080, abs=5e-5)
    assert betas[-3:] == pytest.approx((0.551, 0.7485, 0.999), abs=5e-4)
    assert all(before < after for before, after in itertools.pairwise(betas))


@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_what_is_kept_follows_the_cosine_until_the_cut(steps: int) -> None:
    def cosine(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = CosineSchedule(steps).kept
    assert kept[:-1] == pytest.approx([cosine((t + 1) / steps) / cosine(0) for t in range(steps - 1)])
    assert 0 < kept[-1] < 1e-2


def test_adding_and_removing_noise_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=20,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_large",
        clip_sample=False,
        prediction_type="epsilon",
    )
    theirs.set_timesteps(20)
    torch.testing.assert_close(theirs.betas, torch.tensor(OCTO.schedule.betas), rtol=1e-5, atol=1e-7)
    random = torch.Generator().manual_seed(0)
    chunk, noise = torch.randn(2, 20, 28, generator=random)
    added = OCTO.schedule.add(chunk, noise, torch.arange(20))
    torch.testing.assert_close(theirs.add_noise(chunk, noise, torch.arange(20)), added, rtol=1e-5, atol=1e-6)
    for time in range(20):
        row, seen = added[time : time + 1], noise[time : time + 1]
        stepped = theirs.step(seen, time, row, generator=torch.Generator().manual_seed(time)).prev_sample
        drawn = torch.randn(1, 28, generator=torch.Generator().manual_seed(time)) if time else torch.zeros(1, 28)
        ours = OCTO.schedule.remove(row, seen, time) + math.sqrt(OCTO.schedule.betas[time]) * drawn
        torch.testing.assert_close(stepped, ours, rtol=1e-4, atol=1e-4)


def test_removing_the_true_noise_of_the_first_step_gives_the_chunk() -> None:
    chunk, noise = torch.randn(2, 3, 28)
    added = OCTO.schedule.add(chunk, noise, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(OCTO.schedule.remove(added, noise, 0), chunk)


class PlainDenoiser(nn.Module):
    """The same network as ordinary modules, for one weight set."""

    def __init__(self, head: DiffusionHead, weights: Weights) -> None:
        super().__init__()
        self.head = head
        self.weights = {name: value[0] for name, value in weights.items()}

    def dense(self, name: str, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weights[f"{name}.kernel"].T, self.weights[f"{name}.bias"])

    def forward(self, feature: Tensor, noisy: Tensor, time: int) -> Tensor:
        """(D), (O) and a step → (O)."""
        angle = 2 * math.pi * time * self.weights["head.frequency.kernel"]
        moment = torch.cat([torch.cos(angle), torch.sin(angle)])
        moment = self.dense("head.time.1", nn.functional.silu(self.dense("head.time.0", moment)))
        x = self.dense("head.input", torch.cat([moment, feature, noisy]))
        for i in range(self.head.blocks):
            name = f"head.blocks.{i}"
            scale, bias = self.weights[f"{name}.norm.scale"], self.weights[f"{name}.norm.bias"]
            y = nn.functional.layer_norm(x, x.shape, scale, bias, eps=1e-6)
            x = x + self.dense(f"{name}.narrow", nn.functional.silu(self.dense(f"{name}.wide", y)))
        return self.dense("head.output", nn.functional.silu(x))


def test_many_weight_sets_at_once_are_as_many_plain_networks() -> None:
    weights, rows = weights_of(HEAD, sets=2), features(2, 3)
    noisy, time = torch.randn(2, 3, 6), torch.tensor([[0, 1, 2], [4, 3, 0]])
    seen = HEAD.noise_in(weights, rows, noisy, time)
    for n in range(2):
        plain = PlainDenoiser(HEAD, {name: value[n : n + 1] for name, value in weights.items()})
        for f in range(3):
            torch.testing.assert_close(seen[n, f], plain(rows[n, f], noisy[n, f], int(time[n, f])))


def test_the_loss_of_a_head_that_sees_no_noise_is_the_noise() -> None:
    target, noise = torch.randn(2, 1, 3, 2, 3)
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[:, 0, 1] = False
    mask[:, 1] = False
    loss = HEAD.loss_at(no_denoiser(HEAD), features(1, 3), target, mask, torch.tensor([[0, 1, 4]]), noise)
    expected = [3 * noise[0, 0, 0].square().mean(), 0.0, 3 * noise[0, 2].square().mean()]
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_targets_count_up_to_five_standard_deviations() -> None:
    far, edge = torch.full((1, 1, 2, 3), 9.0), torch.full((1, 1, 2, 3), 5.0)
    mask, time, noise = torch.ones_like(far, dtype=torch.bool), torch.tensor([[1]]), torch.randn(1, 1, 2, 3)
    losses = [
        HEAD.loss_at(weights_of(HEAD), features(1, 1), target, mask, time, noise) for target in (far, edge, edge - 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_every_step_is_drawn_and_a_seed_repeats_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, target = [], torch.zeros(1, 200, 2, 3)
    mask = torch.ones_like(target, dtype=torch.bool)

    def remember(_self, _weights, _features, _target, _mask, time: Tensor, noise: Tensor) -> Tensor:
        drawn.append((time, noise))
        return torch.zeros(1, 200)

    monkeypatch.setattr(DiffusionHead, "loss_at", remember)
    for _ in range(2):
        tiny.seeded(HEAD.loss, weights_of(HEAD), features(1, 200), target, mask, seed=3)
    assert set(drawn[0][0].flatten().tolist()) == set(range(5))
    assert abs(drawn[0][1].std().item() - 1) < 0.1
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_sampling_is_the_written_out_loop() -> None:
    weights, rows = weights_of(HEAD), features(1, 1)
    noise = torch.randn(5, 1, 1, 6, generator=torch.Generator().manual_seed(0))
    plain, x = PlainDenoiser(HEAD, weights), noise[0, 0, 0]
    betas, kept = HEAD.schedule.betas, 1.0
    for time, added in zip((4, 3, 2, 1, 0), (*noise[1:, 0, 0], torch.zeros(6)), strict=True):
        kept = math.prod(1 - beta for beta in betas[: time + 1])
        x = (x - betas[time] / math.sqrt(1 - kept) * plain(rows[0, 0], x, time)) / math.sqrt(1 - betas[time])
        x = (x + math.sqrt(betas[time]) * added).clamp(-5, 5)
    torch.testing.assert_close(HEAD.sample(weights, rows, noise)[0, 0], x.view(2, 3))


def test_samples_never_leave_five_standard_deviations() -> None:
    chunk = HEAD.decode({name: 9 * value for name, value in weights_of(HEAD).items()}, features(1, 50))
    assert chunk.abs().max() == 5


def test_one_random_source_gives_all_rows_the_same_noise_and_none_gives_each_its_own() -> None:
    weights, rows = weights_of(HEAD), features(1, 1).expand(1, 4, WIDTH)
    same = HEAD.decode(weights, rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, same[:, :1].expand_as(same))
    alone = HEAD.decode(weights, rows[:, :1], torch.Generator().manual_seed(0))
    torch.testing.assert_close(same[:, :1], alone)
    fresh = HEAD.decode(weights, rows)
    assert len({tuple(row.flatten().tolist()) for row in fresh[0]}) == 4


def test_it_learns_two_ways_to_act_where_a_mean_would_learn_neither() -> None:
    """One observation, chunks of all −1 or all +1: samples are near one of them."""
    head = DiffusionHead(horizon=1, action_size=2, steps=10, time=8, hidden=32, blocks=1)
    static = tiny.seeded(StaticWeights, WeightLayout(head.layout(WIDTH)))
    optimizer = torch.optim.Adam(static.parameters(), lr=3e-3)
    target = torch.tensor([-1.0, 1.0]).repeat(64).view(1, 128, 1, 1).expand(1, 128, 1, 2)
    rows, mask = torch.zeros(1, 128, WIDTH), torch.ones(1, 128, 1, 2, dtype=torch.bool)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(400):
            loss = head.loss(static(), rows, target, mask).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            chunk = head.decode(static(), rows)[0, :, 0]
    near = (chunk.abs() - 1).abs().max(-1).values < 0.3
    assert near.float().mean() > 0.8
    assert 0.25 < (chunk[:, 0] > 0).float().mean() < 0.75
