"""An action head that samples: a small network learns the noise in a chunk and takes it out step by step (spec 3).

Denoising diffusion (Ho 2020) with the cosine schedule of Nichol and Dhariwal (2021), as in Octo. One pass of the policy
gives the feature; only the head runs once for each denoising step.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import WeightSpec
from hypervla.models.action_head import SQUASH, masked_mean
from hypervla.models.generated import Weights, dense, layer_norm, linear, norm

OFFSET = 0.008
MOST_NOISE = 0.999
"""Share of noise that one step may add; the cosine would end with all."""


@dataclass(frozen=True)
class CosineSchedule:
    """How much noise a chunk holds at each step t, from 0, almost none, to the last, almost nothing else."""

    steps: int

    @cached_property
    def betas(self) -> tuple[float, ...]:
        """The share of noise that each step adds."""
        left = [math.cos((t / self.steps + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 for t in range(self.steps + 1)]
        return tuple(min(1 - after / before, MOST_NOISE) for before, after in itertools.pairwise(left))

    @cached_property
    def kept(self) -> tuple[float, ...]:
        """The share of the chunk that is left at each step: the product of all 1 − beta so far."""
        return tuple(math.prod(1 - beta for beta in self.betas[: t + 1]) for t in range(self.steps))

    def add(
        self, chunk: Float[Tensor, "*B O"], noise: Float[Tensor, "*B O"], time: Int64[Tensor, "*B"]
    ) -> Float[Tensor, "*B O"]:
        """The chunk as it is at these steps."""
        kept = torch.tensor(self.kept, device=chunk.device)[time].unsqueeze(-1)
        return kept.sqrt() * chunk + (1 - kept).sqrt() * noise

    def remove(
        self, noisy: Float[Tensor, "*B O"], predicted: Float[Tensor, "*B O"], time: int
    ) -> Float[Tensor, "*B O"]:
        """The mean of what stood there one step earlier, if `predicted` is the noise."""
        beta, kept = self.betas[time], self.kept[time]
        return (noisy - beta / math.sqrt(1 - kept) * predicted) / math.sqrt(1 - beta)


@dataclass(frozen=True)
class DiffusionHead:
    """Octo's head; the defaults are its published sizes.

    As HyperVLA's ablation "diffusion head" all its tensors are generated like those of any other head. That is what the
    released code does, whose configuration has these sizes too: 1,621,644 generated numbers behind a feature of 64. The
    command of the published ablation is not known. A smaller `hidden` makes a smaller hypernetwork.

    The gripper is diffused like the arm, so it comes out continuous, about 0 … 1.
    """

    horizon: int
    action_size: int
    steps: int = 20
    time: int = 32
    """Width of what stands for the step."""
    hidden: int = 256
    blocks: int = 3

    @cached_property
    def schedule(self) -> CosineSchedule:
        return CosineSchedule(self.steps)

    @property
    def outputs(self) -> int:
        return self.horizon * self.action_size

    def layout(self, width: int) -> tuple[WeightSpec, ...]:
        """All tensors of the denoiser. The frequencies start at a standard deviation of 0.2, which is that of a
        LeCun-normal kernel with 25 inputs."""
        half, hidden = self.time // 2, self.hidden
        specs = [WeightSpec("head.frequency.kernel", (half,), "kernel", fan=(25, half))]
        specs += dense("head.time.0", self.time, 2 * self.time, xavier=True)
        specs += dense("head.time.1", 2 * self.time, self.time, xavier=True)
        specs += dense("head.input", self.time + width + self.outputs, hidden, xavier=True)
        for i in range(self.blocks):
            specs += norm(f"head.blocks.{i}.norm", hidden)
            specs += dense(f"head.blocks.{i}.wide", hidden, 4 * hidden)
            specs += dense(f"head.blocks.{i}.narrow", 4 * hidden, hidden)
        specs += dense("head.output", hidden, self.outputs, xavier=True)
        return tuple(specs)

    def noise_in(
        self,
        weights: Weights,
        features: Float[Tensor, "N F D"],
        noisy: Float[Tensor, "N F O"],
        time: Int64[Tensor, "N F"],
    ) -> Float[Tensor, "N F O"]:
        """The noise that the network sees in noisy chunks, O = H · A numbers each."""
        angle = 2 * math.pi * time.unsqueeze(-1) * weights["head.frequency.kernel"].unsqueeze(1)
        moment = torch.cat([angle.cos(), angle.sin()], -1)
        moment = linear(weights, "head.time.1", F.silu(linear(weights, "head.time.0", moment)))
        x = linear(weights, "head.input", torch.cat([moment, features, noisy.to(moment.dtype)], -1))
        for i in range(self.blocks):
            y = layer_norm(weights, f"head.blocks.{i}.norm", x)
            x = x + linear(weights, f"head.blocks.{i}.narrow", F.silu(linear(weights, f"head.blocks.{i}.wide", y)))
        return linear(weights, "head.output", F.silu(x)).float()

    def loss(
        self,
        weights: Weights,
        features: Float[Tensor, "N F D"],
        target: Float[Tensor, "N F H A"],
        mask: Bool[Tensor, "N F H A"],
    ) -> Float[Tensor, "N F"]:
        """`loss_at` a random step with random noise, both drawn on the CPU, so that a run resumes on any device."""
        time = torch.randint(self.steps, target.shape[:2], device="cpu").to(target.device)
        noise = torch.randn(target.shape, device="cpu").to(target.device)
        return self.loss_at(weights, features, target, mask, time, noise)

    def loss_at(
        self,
        weights: Weights,
        features: Float[Tensor, "N F D"],
        target: Float[Tensor, "N F H A"],
        mask: Bool[Tensor, "N F H A"],
        time: Int64[Tensor, "N F"],
        noise: Float[Tensor, "N F H A"],
    ) -> Float[Tensor, "N F"]:
        """Masked mean squared error of the predicted noise × action dimensions."""
        chunk, added = target.clamp(-SQUASH, SQUASH).flatten(2), noise.flatten(2)
        predicted = self.noise_in(weights, features, self.schedule.add(chunk, added, time), time)
        return self.action_size * masked_mean((predicted.view_as(noise) - noise).square(), mask)

    def decode(
        self, weights: Weights, features: Float[Tensor, "N F D"], random: torch.Generator | None = None
    ) -> Float[Tensor, "N F H A"]:
        """A sampled chunk: one noise for all rows from `random`, or fresh noise for each row."""
        rows = features.shape[:2] if random is None else (1, 1)
        noise = torch.randn(self.steps, *rows, self.outputs, generator=random, device=features.device)
        return self.sample(weights, features, noise.expand(-1, *features.shape[:2], -1))

    def sample(
        self, weights: Weights, features: Float[Tensor, "N F D"], noise: Float[Tensor, "steps N F O"]
    ) -> Float[Tensor, "N F H A"]:
        """The chunk that grows out of the first noise; the others are added on the way, of variance beta. What leaves
        ±5 is brought back after every step."""
        x = noise[0]
        for step in range(self.steps):
            time = self.steps - 1 - step
            now = torch.full(x.shape[:2], time, device=x.device)
            x = self.schedule.remove(x, self.noise_in(weights, features, x, now), time)
            if time:
                x = x + math.sqrt(self.schedule.betas[time]) * noise[step + 1]
            x = x.clamp(-SQUASH, SQUASH)
        return x.unflatten(-1, (self.horizon, self.action_size))
