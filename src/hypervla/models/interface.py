"""What every model is to training, running and counting: the batch it learns from and the protocols it fulfils."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

Role = Literal["decayed", "plain", "backbone"]
"""What the optimizer does to a parameter: the rate with weight decay, the rate alone, or the backbone's rate."""


@dataclass(frozen=True)
class Inputs:
    """What a policy reads of B samples: T observations of C cameras, the current one last."""

    instructions: list[str]
    """Empty where the goal is told by its image instead."""
    images: UInt8[Tensor, "B T C h w 3"]
    timestep_mask: Bool[Tensor, "B T"]
    """Which observations are real: an episode's first is repeated to the left."""
    proprio: Float[Tensor, "B T P"] | None = None
    """Normalised."""
    goal_images: UInt8[Tensor, "B C h w 3"] | None = None
    goal_shown: Bool[Tensor, " B"] | None = None
    """Which samples are told their goal by its image; none without goal images."""

    def __len__(self) -> int:
        return len(self.instructions)


@dataclass(frozen=True)
class Batch:
    """N contexts with F frames each, T observations of C cameras, chunks of H actions."""

    instructions: list[str]
    initial_images: UInt8[Tensor, "N C h w 3"]
    images: UInt8[Tensor, "N F T C h w 3"]
    timestep_mask: Bool[Tensor, "N F T"]
    proprio: Float[Tensor, "N F T P"] | None
    """Normalised."""
    actions: Float[Tensor, "N F T H A"]
    """Normalised chunks, one from each observation on."""
    mask: Bool[Tensor, "N F T H A"]
    goal_images: UInt8[Tensor, "N F C h w 3"] | None = None
    goal_shown: Bool[Tensor, "N F"] | None = None

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def inputs(self) -> Inputs:
        """The frames of all contexts as B = N · F samples of their own, each with its context's instruction."""
        frames = self.images.shape[1]
        shown = None if self.goal_shown is None else self.goal_shown.flatten()
        sentences = [sentence for sentence in self.instructions for _ in range(frames)]
        if shown is not None:
            told = zip(sentences, shown.tolist(), strict=True)
            sentences = ["" if by_image else sentence for sentence, by_image in told]
        return Inputs(
            instructions=sentences,
            images=self.images.flatten(0, 1),
            timestep_mask=self.timestep_mask.flatten(0, 1),
            proprio=None if self.proprio is None else self.proprio.flatten(0, 1),
            goal_images=None if self.goal_images is None else self.goal_images.flatten(0, 1),
            goal_shown=shown,
        )

    def targets(self) -> tuple[Float[Tensor, "B T H A"], Bool[Tensor, "B T H A"]]:
        """Chunks and what counts of them, for the samples of `inputs`."""
        return self.actions.flatten(0, 1), self.mask.flatten(0, 1)


@runtime_checkable
class ModelConfig(Protocol):
    """One complete model as a frozen dataclass of plain values, which a checkpoint can carry as JSON."""

    @property
    def image_size(self) -> int: ...
    @property
    def cameras(self) -> int: ...
    @property
    def proprio_size(self) -> int:
        """P numbers of proprio it reads; 0 reads none."""
        ...

    @property
    def window(self) -> int:
        """T observations it reads."""
        ...

    @property
    def horizon(self) -> int: ...
    @property
    def action_size(self) -> int: ...
    def build(self, pretrained: bool = True) -> Any:
        """The Model. Without `pretrained`, nothing is read from disk: for counting, and for weights that follow."""
        ...


def family(config: ModelConfig) -> str:
    """What such a model is called in a message, such as OpenVLA."""
    return type(config).__name__.removesuffix("Config")


@runtime_checkable
class Model(Protocol):
    """An nn.Module that can be trained."""

    config: Any

    def trained_parameters(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds: parameters that are trained, and buffers that training moves."""
        ...

    def role(self, name: str) -> Role:
        """What the optimizer does to the trained parameter of that name."""
        ...

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The training loss, a mean over samples."""
        ...

    def trace(self) -> None:
        """Compile with torch.compile what of the training step can be."""
        ...

    def parts(self) -> Mapping[str, int]:
        """Parameters by part; a part's name may be `generated`, `hypernetwork`, `backbone`, `instruction_encoder` or a
        part of this model's own. They sum to all parameters."""
        ...

    def activated(self) -> int:
        """Parameters read per control step."""
        ...


@runtime_checkable
class Monolithic(Model, Protocol):
    """A model that reads the instruction at every control step: `infer(*prepare(inputs))` is the policy."""

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Words to numbers: all that needs a tokenizer or a frozen text encoder, once per instruction."""
        ...

    def infer(self, *tensors: Tensor) -> Float[Tensor, "B H A"]:
        """The normalised chunk from the current observation on, with the gripper in 0 … 1, 1 = open."""
        ...

    def example(self, samples: int) -> tuple[Tensor, ...]:
        """Empty tensors as `prepare` gives them, on the model's device, of the shapes a control step has."""
        ...


@runtime_checkable
class WritesTokens(Model, Protocol):
    """A model whose actions are tokens."""

    def action_token_accuracy(self, batch: Batch) -> Float[Tensor, ""]:
        """Share of the action tokens that are the most likely ones, given the true ones before where those are seen."""
        ...
