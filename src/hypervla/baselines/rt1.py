"""RT-1 and RT-1-X: images and a sentence → eleven action tokens per step, all in one pass (spec 6).

Two published codes carry these names. RT1 reads google-research/robotics_transformer (TensorFlow), RT1_X the inference
example and training notebook of google-deepmind/open_x_embodiment (JAX).

Action tokens enter as zeros and no action may look at an action, so nothing is autoregressive here: the published
controller's eleven passes give what one gives. Its loss is this one divided by the tokens of a step, which Adam does
not notice. Batch normalisation trains in training mode, as published, so `loss` changes its running statistics unless
the module is in evaluation mode. In training the published images are padded by 20 rows and 50 columns (of 256 × 320)
and cropped back at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.baselines.rt1_actions import DIMENSIONS, ActionTokens
from hypervla.baselines.rt1_sentence import EmbeddingTable, SentenceEncoder
from hypervla.baselines.rt1_vision import FilmEfficientNet
from hypervla.models.interface import Batch, Inputs, Role
from hypervla.models.layers import LAYER_NORM_EPS, size

ACTIONS = len(DIMENSIONS)
"""Action tokens of a step."""


@dataclass(frozen=True)
class RT1Transformer:
    """A pre-LayerNorm transformer whose heads are wider than its tokens divided by their number."""

    layers: int = 8
    heads: int = 8
    key: int = 128
    """Width of each head."""
    feed_forward: Literal["linear", "swiglu"] = "linear"
    """One matrix and nothing else, or silu(W1 x) · W2 x behind a third, without biases."""
    dropout: float = 0.1
    """Of attention weights and of what the feed-forward part adds."""
    images_see_actions: bool = True
    """Whether image tokens may look at the action tokens of earlier steps."""


@dataclass(frozen=True)
class RT1Config:
    """The defaults are RT-1's."""

    sentence: EmbeddingTable | SentenceEncoder
    vision: FilmEfficientNet = field(default_factory=FilmEfficientNet)
    transformer: RT1Transformer = field(default_factory=RT1Transformer)
    actions: ActionTokens = field(default_factory=ActionTokens)
    window: int = 6
    start: Literal["shifted", "zeros"] = "shifted"
    """What stands in the window before an episode's first observation: nothing, the episode begins at its left end and
    the action is read further left (RT-1's controller); or black images with a sentence of zeros, which are looked at
    like others (RT-1-X's training). Either way no action is learned there."""
    unused_embedding: bool = True
    """The published network embeds action tokens and then replaces the result by zeros. The embedding is kept for the
    published count; it is neither trained nor saved."""

    @property
    def image_size(self) -> int:
        return self.vision.image_size

    @property
    def cameras(self) -> int:
        return 1

    @property
    def proprio_size(self) -> int:
        return 0

    @property
    def horizon(self) -> int:
        return 1

    @property
    def action_size(self) -> int:
        return len(self.actions.columns)

    def build(self, pretrained: bool = True) -> RT1Policy:
        return RT1Policy(self, pretrained)


RT1 = RT1Config(sentence=EmbeddingTable("use_large_v5.safetensors"))
"""35,252,128 parameters."""
RT1_X = RT1Config(
    sentence=EmbeddingTable("use_large_v5.safetensors"),
    vision=FilmEfficientNet(tokens=81, padding="same"),
    transformer=RT1Transformer(key=256, feed_forward="swiglu", images_see_actions=False),
    actions=ActionTokens(bins=512, world_vector=(-2.0, 2.0)),
    window=15,
    start="zeros",
    unused_embedding=False,
)
"""56,896,809 parameters. The published notebook learns world vectors in bins of ±1 and reads them in bins of ±2; here
both are ±2."""


class RT1Policy(nn.Module):
    """One camera, a window of observations and a sentence → the next action; a Monolithic model."""

    def __init__(self, config: RT1Config, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.sentence = config.sentence.build(pretrained)
        self.vision = config.vision.build(config.sentence.width, pretrained)
        width, step = config.vision.features, config.vision.tokens + ACTIONS
        self.transformer = Transformer(config.transformer, width, config.window * step)
        self.output = dense(width, config.actions.bins)
        self.unused = dense(config.actions.bins, width).requires_grad_(False) if config.unused_embedding else None
        self.mask: Tensor
        mask = block_mask(config.window, config.vision.tokens, config.transformer.images_see_actions)
        self.register_buffer("mask", mask, persistent=False)

    def trained_parameters(self) -> dict[str, Tensor]:
        """Parameters, and the running statistics of batch normalisation."""
        frozen = ("sentence.encoder.", "unused.")
        parameters = {name: p for name, p in self.named_parameters() if not name.startswith(frozen)}
        statistics = {name: b for name, b in self.named_buffers() if "running_" in name}
        return {**parameters, **statistics}

    def role(self, name: str) -> Role:
        return "backbone" if name.startswith("vision.efficientnet.") else "plain"

    def trace(self) -> None:
        self.loss_of_tensors = torch.compile(self.loss_of_tensors)

    def parts(self) -> Mapping[str, int]:
        vision = self.vision
        parts: dict[str, nn.Module | None] = {
            "backbone": vision.efficientnet,
            "film": nn.ModuleList([vision.films, vision.film]),
            "image_projection": vision.projection,
            "token_learner": vision.learner,
            "transformer": self.transformer,
            "output": self.output,
            "unused_embedding": self.unused,
            "sentence_projection": self.sentence.projection,
            "instruction_encoder": self.sentence.encoder,
        }
        counts = {name: size(part) for name, part in parts.items() if part is not None}
        return {name: count for name, count in counts.items() if count}

    def activated(self) -> int:
        """All but the frozen text encoder, whose vector is the same for a whole episode, and what is not used."""
        idle = ("instruction_encoder", "unused_embedding")
        return sum(count for part, count in self.parts().items() if part not in idle)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy of the eleven tokens of every observation in the window: the mean over what counts of a sample,
        and over samples."""
        tensors, (actions, mask) = self.prepare(batch.inputs()), batch.targets()
        return self.loss_of_tensors(actions[:, :, 0], mask[:, :, 0], *tensors)

    def loss_of_tensors(
        self,
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T A"],
        images: UInt8[Tensor, "B T h w 3"],
        real: Bool[Tensor, "B T"],
        sentence: Float[Tensor, "B S"],
    ) -> Float[Tensor, ""]:
        images, real, order = self._window(images, real)
        actions, mask = _along_window(actions, order), _along_window(mask, order)
        logits = self.output(self.attend(self.look(images, real, sentence))).float()
        entropy = F.cross_entropy(logits.flatten(0, 2), self.config.actions.encode(actions).flatten(), reduction="none")
        counts = (self.config.actions.counts(mask) & real.unsqueeze(-1)).flatten(1)
        return ((entropy.view_as(counts) * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Images (B T h w 3), which of them are real (B T), and the sentence's vector (B S)."""
        assert inputs.images.shape[1:3] == (self.config.window, 1), "RT-1 reads one camera, over its whole window"
        return inputs.images[:, :, 0], inputs.timestep_mask, self.sentence(inputs.instructions)

    def infer(self, *tensors: Tensor) -> Float[Tensor, "B 1 A"]:
        """The likeliest tokens, as an action. All images of the window are looked at anew; a controller that keeps
        `look`'s tokens, which do not depend on the place in the window, needs one image per step."""
        images, real, sentence = tensors
        newest = real.shape[1] - 1 - self._unseen(real)
        images, real, _ = self._window(images, real)
        features = self.attend(self.look(images, real, sentence))
        tokens = self.output(features[torch.arange(len(real), device=real.device), newest]).argmax(-1)
        return self.config.actions.decode(tokens).unsqueeze(1)

    def example(self, samples: int) -> tuple[Tensor, ...]:
        config, device = self.config, self.output.weight.device
        side = config.image_size
        return (
            torch.zeros(samples, config.window, side, side, 3, dtype=torch.uint8, device=device),
            torch.ones(samples, config.window, dtype=torch.bool, device=device),
            torch.zeros(samples, config.sentence.source_width, device=device),
        )

    def look(
        self, images: UInt8[Tensor, "B T h w 3"], real: Bool[Tensor, "B T"], sentence: Float[Tensor, "B S"]
    ) -> Float[Tensor, "B T K D"]:
        """Image tokens."""
        heard = self.sentence.projection(sentence).unsqueeze(1).expand(-1, images.shape[1], -1)
        if self.config.start == "zeros":
            images, heard = images * real[..., None, None, None], heard * real.unsqueeze(-1)
        return self.vision(images.flatten(0, 1), heard.flatten(0, 1)).unflatten(0, images.shape[:2])

    def attend(self, images: Float[Tensor, "B T K D"]) -> Float[Tensor, "B T 11 D"]:
        """The features from which each action token of each step is read: those of the token before it."""
        zeros = images.new_zeros(*images.shape[:2], ACTIONS, images.shape[-1])
        steps = torch.cat([images, zeros], 2)
        features = self.transformer(steps.flatten(1, 2), self.mask).unflatten(1, steps.shape[1:3])
        return features[:, :, self.config.vision.tokens - 1 : -1]

    def _window(
        self, images: UInt8[Tensor, "B T h w 3"], real: Bool[Tensor, "B T"]
    ) -> tuple[UInt8[Tensor, "B T h w 3"], Bool[Tensor, "B T"], Int64[Tensor, "B T"]]:
        """The window as the transformer sees it, and where its steps stood."""
        places = torch.arange(real.shape[1], device=real.device)
        order = (places + self._unseen(real).unsqueeze(1)) % real.shape[1]
        return _along_window(images, order), _along_window(real, order), order

    def _unseen(self, real: Bool[Tensor, "B T"]) -> Int64[Tensor, " B"]:
        """By how many places the window begins later than the first that is looked at."""
        return (~real).sum(1) * (self.config.start == "shifted")


class Transformer(nn.Module):
    """Tokens of all steps → features, each token with a learned place; no LayerNorm at the end."""

    def __init__(self, config: RT1Transformer, width: int, length: int) -> None:
        super().__init__()
        self.input, self.position = dense(width, width), dense(length, width)
        self.layers = nn.ModuleList(Layer(config, width) for _ in range(config.layers))

    def forward(self, x: Float[Tensor, "B S D"], mask: Bool[Tensor, "S S"]) -> Float[Tensor, "B S D"]:
        """`mask[i, j]` is True where position i may look at position j."""
        x = self.input(x) + self.position.weight.T + self.position.bias
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Layer(nn.Module):
    """Attention and feed-forward part, each behind a LayerNorm."""

    def __init__(self, config: RT1Transformer, width: int) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        inner = config.heads * config.key
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=LAYER_NORM_EPS) for _ in range(2))
        self.query, self.key, self.value = (dense(width, inner) for _ in range(3))
        self.out = dense(inner, width)
        self.feed_forward = SwiGLU(width) if config.feed_forward == "swiglu" else dense(width, width)

    def forward(self, x: Float[Tensor, "B S D"], mask: Bool[Tensor, "S S"]) -> Float[Tensor, "B S D"]:
        y = self.norm1(x)
        query, key, value = (
            projection(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + F.dropout(self.feed_forward(self.norm2(x)), dropout)


class SwiGLU(nn.Module):
    """down(silu(up x) · gate x), all of the same width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.gate, self.down = (dense(width, width, bias=False) for _ in range(3))

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return self.down(F.silu(self.up(x)) * self.gate(x))


def dense(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Keras's initialisation: Xavier-uniform and 0."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def block_mask(window: int, image_tokens: int, images_see_actions: bool) -> Bool[Tensor, "S S"]:
    """Who may look at whom, for steps of image tokens and then action tokens: nobody at what comes later, no action at
    any action, itself included; images at the actions of earlier steps or at no action."""
    step = image_tokens + ACTIONS
    place = torch.arange(window * step)
    action = place % step >= image_tokens
    seen = place[:, None] >= place[None, :]
    blind = action[:, None] if images_see_actions else torch.ones_like(seen)
    return seen & ~(action[None, :] & blind)


def _along_window(values: Any, order: Int64[Tensor, "B T"]) -> Any:
    """`values` (B T …) in another order of T for each sample."""
    return values[torch.arange(len(order), device=order.device).unsqueeze(1), order]
