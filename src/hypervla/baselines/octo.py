"""Octo 1.5: instruction, goal image and a window of observations → tokens of one transformer, whose readout at each
step conditions a diffusion head (spec 3).

The sequence holds the instruction's tokens, then for each step the tokens of every camera, the instruction's once more,
and one readout. Published: octo-models/octo (JAX). Its loss is a mean over everything that counts in the batch, and so
is this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import UserError, WeightLayout
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.generated import POSITION_STD, StaticWeights, fixed_noise
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import Batch, Inputs, Role
from hypervla.models.layers import LAYER_NORM_EPS, Encoder, check_heads, lecun_normal_, size

STANDARDISATION_EPS = 1e-5


@dataclass(frozen=True)
class OctoCamera:
    """A camera with a tokenizer of its own."""

    name: str
    image_size: int
    """Images come at the first camera's size and are averaged down to this one."""


@dataclass(frozen=True)
class SmallStem:
    """Convolutions of stride 2 until a cell covers a patch; the defaults are SmallStem16, with patches of 16."""

    channels: tuple[int, ...] = (32, 96, 192, 384)
    features: int = 512
    groups: int = 32
    """Of each group normalisation."""

    def tokens(self, image_size: int) -> int:
        return (image_size // 2 ** len(self.channels)) ** 2

    def build(self) -> Stem:
        return Stem(self)


@dataclass(frozen=True)
class OctoConfig:
    """One complete Octo. A robot without a wrist camera leaves that tokenizer out."""

    instruction_encoder: InstructionEncoder
    views: tuple[OctoCamera, ...]
    """In the order of the images, and of their tokens."""
    head: DiffusionHead
    width: int
    layers: int
    heads: int
    mlp: int
    stem: SmallStem = SmallStem()
    window: int = 2
    max_window: int = 10
    """Steps that the position tables have room for."""

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if not 1 <= self.window <= self.max_window:
            raise UserError(
                f"Octo's position tables hold {self.max_window} steps, but the window is {self.window}: choose one of "
                f"1 … {self.max_window}, or set max_window."
            )
        patch = 2 ** len(self.stem.channels)
        for view in self.views:
            if view.image_size % patch or self.image_size % view.image_size:
                raise UserError(
                    f"Images of {self.image_size}² cannot be averaged down to {view.image_size}² and cut into patches "
                    f"of {patch}²: choose a size of '{view.name}' that divides the first camera's, in multiples of "
                    f"{patch}."
                )

    @property
    def image_size(self) -> int:
        return self.views[0].image_size

    @property
    def cameras(self) -> int:
        return len(self.views)

    @property
    def proprio_size(self) -> int:
        return 0

    @property
    def horizon(self) -> int:
        return self.head.horizon

    @property
    def action_size(self) -> int:
        return self.head.action_size

    def build(self, pretrained: bool = True) -> Octo:
        return Octo(self, pretrained)


T5_BASE_16 = InstructionEncoder("t5", "t5-base", length=16, width=768)
PRIMARY, WRIST = OctoCamera("primary", 256), OctoCamera("wrist", 128)
OCTO_SMALL = OctoConfig(
    instruction_encoder=T5_BASE_16,
    views=(PRIMARY, WRIST),
    head=DiffusionHead(horizon=4, action_size=7),
    width=384,
    layers=12,
    heads=6,
    mlp=1536,
)
"""27,042,060 parameters without T5."""
OCTO_BASE = OctoConfig(
    instruction_encoder=T5_BASE_16,
    views=(PRIMARY, WRIST),
    head=DiffusionHead(horizon=4, action_size=7),
    width=768,
    layers=12,
    heads=12,
    mlp=3072,
)
"""92,830,092 parameters without T5."""


class Octo(nn.Module):
    """A Monolithic model."""

    def __init__(self, config: OctoConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        width, words = config.width, config.instruction_encoder
        self.instruction_encoder = words.build(pretrained)
        self.instruction = dense(words.width, width)
        self.instruction_position = position(words.length, width)
        self.cameras = nn.ModuleDict({view.name: CameraTokens(config, view) for view in config.views})
        self.readout_position = position(config.max_window, 1, width)
        self.transformer = Encoder(width, config.layers, config.heads, config.mlp)
        self.head = StaticWeights(WeightLayout(config.head.layout(width)))
        self.rules: Tensor
        rules = block_mask(words.length, self.observed(), config.window)
        self.register_buffer("rules", rules, persistent=False)

    def observed(self) -> int:
        """Tokens of one step besides its readout."""
        seen = sum(self.config.stem.tokens(view.image_size) for view in self.config.views)
        return seen + self.config.instruction_encoder.length

    def trained_parameters(self) -> dict[str, Tensor]:
        """All but the frozen text encoder."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def role(self, name: str) -> Role:
        """Kernels decay; biases, normalisations and position tables do not."""
        kernel = name.endswith(("/kernel", ".weight")) and "norm" not in name
        return "decayed" if kernel else "plain"

    def trace(self) -> None:
        self.loss_of_tensors = torch.compile(self.loss_of_tensors)

    def parts(self) -> Mapping[str, int]:
        return {
            "instruction": size(self.instruction) + self.instruction_position.numel(),
            "image_tokenizers": size(self.cameras),
            "readout": self.readout_position.numel(),
            "transformer": size(self.transformer),
            "head": size(self.head),
            "instruction_encoder": size(self.instruction_encoder),
        }

    def activated(self) -> int:
        """All but the frozen text encoder, whose tokens are the same for a whole episode."""
        return sum(count for part, count in self.parts().items() if part != "instruction_encoder")

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The head's loss at every observation of the window; one that is only repeated counts nothing."""
        actions, mask = batch.targets()
        return self.loss_of_tensors(actions, mask, *self.prepare(batch.inputs()))

    def loss_of_tensors(
        self, actions: Float[Tensor, "B T H A"], mask: Bool[Tensor, "B T H A"], *tensors: Tensor
    ) -> Float[Tensor, ""]:
        real = tensors[1]
        features = self.features(*tensors).flatten(0, 1).unsqueeze(0)
        chunks = actions.flatten(0, 1).unsqueeze(0)
        counts = (mask & real[..., None, None]).flatten(0, 1).unsqueeze(0)
        losses, share = self.config.head.loss(self.head(), features, chunks, counts), counts.float().mean((-2, -1))
        return (losses * share).mean() / share.mean().clamp_min(1e-5)

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Images (B T C h w 3), which of them are real (B T), goal images (B C h w 3), black where the goal is not
        told by them, the text encoder's tokens (B L Dt), and which samples have an instruction (B)."""
        images, shown = inputs.images, inputs.goal_shown
        goals = torch.zeros_like(images[:, 0]) if inputs.goal_images is None else inputs.goal_images
        if shown is not None:
            goals = goals * shown[:, None, None, None, None]
        text, _ = self.instruction_encoder(inputs.instructions)
        told = torch.tensor([bool(sentence) for sentence in inputs.instructions], device=text.device)
        return images, inputs.timestep_mask, goals, text, told

    def infer(self, *tensors: Tensor) -> Float[Tensor, "B H A"]:
        """The chunk sampled from the last step's readout, always from the same noise."""
        features = self.features(*tensors)[:, -1].unsqueeze(0)
        return self.config.head.decode(self.head(), features, fixed_noise(features.device))[0]

    def example(self, samples: int) -> tuple[Tensor, ...]:
        config, device = self.config, self.readout_position.device
        side, words = config.image_size, config.instruction_encoder
        image = (config.cameras, side, side, 3)
        return (
            torch.zeros(samples, config.window, *image, dtype=torch.uint8, device=device),
            torch.ones(samples, config.window, dtype=torch.bool, device=device),
            torch.zeros(samples, *image, dtype=torch.uint8, device=device),
            torch.zeros(samples, words.length, words.width, device=device),
            torch.ones(samples, dtype=torch.bool, device=device),
        )

    def features(
        self,
        images: UInt8[Tensor, "B T C h w 3"],
        real: Bool[Tensor, "B T"],
        goals: UInt8[Tensor, "B C h w 3"],
        text: Float[Tensor, "B L Dt"],
        told: Bool[Tensor, " B"],
    ) -> Float[Tensor, "B T D"]:
        """What the readout of each step holds at the end."""
        task = self.instruction(text) + self.instruction_position
        seen = [tokens(images[:, :, camera], goals[:, camera]) for camera, tokens in enumerate(self.cameras.values())]
        lead = (len(images), images.shape[1])
        repeated = task.unsqueeze(1).expand(*lead, -1, -1)
        readout = self.readout_position[: lead[1]].expand(*lead, -1, -1)
        steps = torch.cat([*seen, repeated, readout], 2)
        whole = torch.cat([task, steps.flatten(1, 2)], 1)
        readable = self.readable(real, told)
        mask = self.rules & readable.unsqueeze(1) | torch.eye(whole.shape[1], dtype=torch.bool, device=whole.device)
        out = self.transformer(whole, mask.unsqueeze(1))
        return out[:, task.shape[1] :].unflatten(1, steps.shape[1:3])[:, :, -1]

    def readable(self, real: Bool[Tensor, "B T"], told: Bool[Tensor, " B"]) -> Bool[Tensor, "B S"]:
        """Which tokens hold something: not the images of a repeated observation, and not an instruction that is
        missing. What pads an instruction that is there counts as part of it."""
        words = self.config.instruction_encoder.length
        task = told.unsqueeze(1).expand(-1, words)
        images = real.unsqueeze(2).expand(-1, -1, self.observed() - words)
        repeated = task.unsqueeze(1).expand(-1, real.shape[1], -1)
        readout = torch.ones_like(real).unsqueeze(2)
        return torch.cat([task, torch.cat([images, repeated, readout], 2).flatten(1)], 1)


class CameraTokens(nn.Module):
    """The tokens of one camera: current image and goal image, one upon the other, through a stem of its own."""

    def __init__(self, config: OctoConfig, view: OctoCamera) -> None:
        super().__init__()
        self.times_smaller = config.image_size // view.image_size
        self.stem = config.stem.build()
        self.projection = dense(config.stem.features, config.width)
        self.position = position(config.max_window, config.stem.tokens(view.image_size), config.width)

    def forward(self, images: UInt8[Tensor, "B T h w 3"], goals: UInt8[Tensor, "B h w 3"]) -> Float[Tensor, "B T K D"]:
        stacked = torch.cat([images, goals.unsqueeze(1).expand_as(images)], -1)
        pixels = stacked.flatten(0, 1).permute(0, 3, 1, 2).to(self.projection.weight.dtype)
        if self.times_smaller > 1:
            pixels = F.avg_pool2d(pixels, self.times_smaller)
        cells = self.stem(pixels / 127.5 - 1.0).flatten(2).transpose(1, 2)
        return self.projection(cells).unflatten(0, images.shape[:2]) + self.position[: images.shape[1]]


class Stem(nn.Module):
    """Pixels of current and goal image, −1 … 1 → a map of features."""

    def __init__(self, config: SmallStem) -> None:
        super().__init__()
        inputs = (6, *config.channels)
        self.convolutions = nn.ModuleList(
            StandardisedConv(before, after) for before, after in zip(inputs, config.channels, strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(config.groups, n, eps=LAYER_NORM_EPS) for n in config.channels)
        self.embedding = nn.Conv2d(inputs[-1], config.features, 1)
        lecun_normal_(self.embedding.weight, inputs[-1])
        nn.init.zeros_(self.embedding.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "B 6 h w"]) -> Float[Tensor, "B D y x"]:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return self.embedding(x)


class StandardisedConv(nn.Conv2d):
    """A 3 × 3 convolution of stride 2 whose filters are used with mean 0 and standard deviation 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, stride=2, padding=1)
        lecun_normal_(self.weight, 9 * inputs)
        nn.init.zeros_(self.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "B I h w"]) -> Float[Tensor, "B O y x"]:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        spread = centred.square().mean((1, 2, 3), keepdim=True).sqrt() + STANDARDISATION_EPS
        return F.conv2d(x, centred / spread, self.bias, stride=2, padding=1)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """Flax's initialisation: LeCun-normal and 0."""
    linear = nn.Linear(inputs, outputs)
    lecun_normal_(linear.weight, inputs)
    nn.init.zeros_(linear.bias)
    return linear


def position(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * POSITION_STD)


def block_mask(task: int, observed: int, window: int) -> Bool[Tensor, "S S"]:
    """Who may look at whom: everyone at the task; what is observed, and readouts, at what is observed at their own step
    and before; readouts at the readouts up to their own. Nobody else looks at a readout, nor the task at a step."""
    step = torch.cat([torch.full((task,), -1), torch.arange(window).repeat_interleave(observed + 1)])
    readout = torch.zeros_like(step, dtype=torch.bool)
    readout[task + observed :: observed + 1] = True
    return (step[None, :] <= step[:, None]) & (~readout[None, :] | readout[:, None])
