"""Weights → actions: a base policy with the weights of one task context. A robot runs this, without PyTorch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from hypervla.contracts import ActionChunk, Observation, UserError, WeightLayout
from hypervla.data.augment import resize
from hypervla.data.normalize import Normalizer
from hypervla.durable import write_atomically
from hypervla.embodiment import Embodiment
from hypervla.runtime.signature import UNSIGNED, is_whole, sign
from hypervla.runtime.slots import NamedWeights, Slots

FORMAT = 1


@dataclass(frozen=True)
class Timing:
    """Seconds that one act took, by stage."""

    preprocessing: float
    backbone: float
    policy: float

    @property
    def total(self) -> float:
        return self.preprocessing + self.backbone + self.policy


@dataclass(frozen=True)
class Prediction:
    """What an engine returns: normalised chunks, and the seconds its two stages took."""

    chunks: Float32[np.ndarray, "N H A"]
    backbone_seconds: float
    policy_seconds: float


@runtime_checkable
class Engine(Protocol):
    """Runs the shared backbone and the base policy; generated weights are an input (runtime/engines.py). Several
    threads may call it, each with policies of its own."""

    backbone_digest: str
    layout: WeightLayout
    image_size: int
    reads_proprio: bool
    most_policies: int
    """Task policies in one call."""
    takes_views: bool
    """Whether images may come as the cameras' views, to be resized by the engine, where all are of one size."""

    def form(self, weights: NamedWeights) -> NamedWeights:
        """The weights by the names of the layout, as this engine computes with them."""
        ...

    def run(
        self,
        slots: Slots,
        images: UInt8[np.ndarray, "N C h w 3"],
        proprio: Float32[np.ndarray, "N P"] | None,
    ) -> Prediction:
        """Normalised chunks of N task policies, each on its own observation."""
        ...


@dataclass(frozen=True)
class TaskPolicyCard:
    """Everything about a task policy but its weights."""

    instruction: str
    embodiment: Embodiment
    normalizer: Normalizer
    backbone_digest: str
    checkpoint_digest: str
    context_distance: float | None = None
    """How far the task context was from those of the training (models/familiarity.py), where the checkpoint knows."""
    context_limit: float | None = None
    """The distance that 99.9 % of the training's contexts are within."""

    @property
    def unfamiliar(self) -> bool:
        """Whether the task context was unlike those of the training."""
        return (
            self.context_distance is not None
            and self.context_limit is not None
            and self.context_distance > self.context_limit
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "instruction": self.instruction,
            "embodiment": self.embodiment.to_json(),
            "normalisation": self.normalizer.to_json(),
            "normalisation_sha256": self.normalizer.digest,
            "backbone_sha256": self.backbone_digest,
            "checkpoint_sha256": self.checkpoint_digest,
            "context_distance": self.context_distance,
            "context_limit": self.context_limit,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TaskPolicyCard:
        """The inverse of `to_json`. Raises UserError for statistics that are not those their digest names."""
        embodiment = Embodiment.from_json(data["embodiment"])
        normalizer = Normalizer.from_json(data["normalisation"], embodiment)
        if normalizer.digest != data["normalisation_sha256"]:
            raise UserError("The task policy's action statistics are not those it was compiled with: compile it again.")
        return TaskPolicyCard(
            instruction=data["instruction"],
            embodiment=embodiment,
            normalizer=normalizer,
            backbone_digest=data["backbone_sha256"],
            checkpoint_digest=data["checkpoint_sha256"],
            context_distance=data.get("context_distance"),
            context_limit=data.get("context_limit"),
        )


class TaskPolicy:
    """One task's policy; a Policy. Acting uses the shared backbone and the generated weights, nothing else."""

    def __init__(self, weights: Float32[np.ndarray, " W"], card: TaskPolicyCard, engine: Engine) -> None:
        """Raises UserError when the weights are not finite, or made for another backbone than the engine's."""
        if card.backbone_digest != engine.backbone_digest:
            raise UserError(
                f"This task policy belongs to the backbone {card.backbone_digest[:12]}…, but the engine runs "
                f"{engine.backbone_digest[:12]}…: load the checkpoint it was compiled with."
            )
        if not np.isfinite(weights).all():
            raise UserError("The generated weights hold NaN or infinite numbers: the checkpoint is unfit for use.")
        self.weights, self.card, self.engine = weights, card, engine
        self.layout, self.embodiment, self.instruction = engine.layout, card.embodiment, card.instruction
        self.last_timing = Timing(0.0, 0.0, 0.0)
        self._alone: StackedPolicies | None = None
        self._id: str | None = None

    @property
    def policy_id(self) -> str:
        """Sixteen letters that stand for the weights and all that the card says: checkpoint, robot, how its numbers are
        normalised, instruction."""
        if self._id is None:
            about = json.dumps(self.card.to_json(), sort_keys=True).encode()
            self._id = hashlib.sha256(about + self.weights.tobytes()).hexdigest()[:16]
        return self._id

    def act(self, observation: Observation) -> ActionChunk:
        """The next H actions in the robot's units. Raises UserError for an observation this robot cannot have made."""
        self._alone = self._alone or stack([self])
        (chunk,) = self._alone.act([observation])
        self.last_timing = self._alone.last_timing
        return chunk

    def save(self, path: Path) -> None:
        """Write a safetensors file that carries the sha256 of all its bytes."""
        write_atomically(path, to_bytes(self.weights, self.layout, self.card))

    @staticmethod
    def load(path: Path, engine: Engine) -> TaskPolicy:
        """Read a file that `save` wrote. Raises UserError for a damaged file or another backbone's."""
        if not path.is_file():
            raise UserError(f"There is no task policy '{path}': write one with `hypervla compile`.")
        weights, layout, card = from_bytes(path.read_bytes(), path)
        if layout != engine.layout:
            raise UserError(f"{path} holds weights of another base policy than this engine runs: compile it again.")
        return TaskPolicy(weights, card, engine)


class StackedPolicies:
    """Many task policies on one engine, run in one call; equal to running them one by one.

    A fleet may change while it runs: replacing or adding one policy copies its weights and touches nothing else.
    """

    def __init__(self, policies: Sequence[TaskPolicy]) -> None:
        """Raises UserError for none, policies of several backbones, or more than the engine takes in one call."""
        if not policies:
            raise UserError("Stacking needs at least one task policy.")
        self.policies = list(policies)
        self.engine = policies[0].engine
        self._check(len(policies), *policies)
        flat = np.stack([policy.weights for policy in policies])
        self.slots = Slots(self.engine.layout.split(flat), self.engine.form)
        self.last_timing = Timing(0.0, 0.0, 0.0)

    def __len__(self) -> int:
        return len(self.policies)

    def replace(self, place: int, policy: TaskPolicy) -> None:
        """Another task policy at this place. Raises UserError for one of another backbone, or a place that is none."""
        self._check(len(self), policy)
        self._check_place(place)
        self._put(place, policy)

    def add(self, policy: TaskPolicy) -> int:
        """One more task policy, and its place. Raises UserError for one of another backbone, or one too many."""
        self._check(len(self) + 1, policy)
        self.policies.append(policy)
        self.slots.append(self._row(policy))
        return len(self) - 1

    def remove(self, place: int) -> None:
        """One task policy less; the last one takes its place. Raises UserError for a place that is none, and the last
        policy that is left."""
        self._check_place(place)
        if len(self.policies) == 1:
            raise UserError("Stacking needs at least one task policy: replace the last one, or drop the stack.")
        last = self.policies.pop()
        self.slots.pop()
        if place < len(self):
            self._put(place, last)

    def _put(self, place: int, policy: TaskPolicy) -> None:
        self.policies[place] = policy
        self.slots.put(place, self._row(policy))

    def _row(self, policy: TaskPolicy) -> NamedWeights:
        return self.engine.layout.split(policy.weights[None])

    def _check(self, count: int, *policies: TaskPolicy) -> None:
        if any(policy.engine.backbone_digest != self.engine.backbone_digest for policy in policies):
            raise UserError("Only task policies of one backbone can be stacked: compile them with one checkpoint.")
        if count > self.engine.most_policies:
            raise UserError(
                f"This engine takes at most {self.engine.most_policies} task policies in a call, but {count} came: "
                "split them into several stacks, or make an engine for more."
            )

    def _check_place(self, place: int) -> None:
        if not 0 <= place < len(self.policies):
            raise UserError(f"There is no place {place} among {len(self.policies)} stacked policies.")

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk for each policy's observation."""
        if len(observations) != len(self.policies):
            raise UserError(
                f"{len(self.policies)} stacked policies need as many observations, not {len(observations)}."
            )
        began = time.perf_counter()
        images = self._images(observations)
        proprio = None
        if self.engine.reads_proprio:
            pairs = zip(self.policies, observations, strict=True)
            proprio = np.stack([p.card.normalizer.forward_proprio(np.asarray(o.proprio, np.float32)) for p, o in pairs])
        preprocessing = time.perf_counter() - began
        prediction = self.engine.run(self.slots, images, proprio)
        self.last_timing = Timing(preprocessing, prediction.backbone_seconds, prediction.policy_seconds)
        if not np.isfinite(prediction.chunks).all():
            raise UserError("The policy's actions hold NaN or infinite numbers: stop the robot and check the inputs.")
        return [
            policy.embodiment.clip(policy.card.normalizer.inverse_actions(chunk))
            for policy, chunk in zip(self.policies, prediction.chunks, strict=True)
        ]

    def _images(self, observations: Sequence[Observation]) -> UInt8[np.ndarray, "N C h w 3"]:
        pairs = list(zip(self.policies, observations, strict=True))
        for policy, observation in pairs:
            policy.embodiment.check_observation(observation, needs_proprio=self.engine.reads_proprio)
        sizes = {camera.view_size for policy in self.policies for camera in policy.embodiment.cameras}
        if self.engine.takes_views and len(sizes) == 1:
            return np.stack([views(o.images, p.embodiment) for p, o in pairs])
        return np.stack([preprocess(o.images, p.embodiment, self.engine.image_size) for p, o in pairs])


def stack(policies: Sequence[TaskPolicy]) -> StackedPolicies:
    """Run many task policies of one backbone as one."""
    return StackedPolicies(policies)


def preprocess(
    images: Mapping[str, UInt8[np.ndarray, "height width 3"]], embodiment: Embodiment, size: int
) -> UInt8[np.ndarray, "C size size 3"]:
    """Crop and turn each camera's image to what a policy sees and bring it to the network's size, as in training."""
    return np.stack([resize(camera.view(images[camera.name]), size) for camera in embodiment.cameras])


def views(
    images: Mapping[str, UInt8[np.ndarray, "height width 3"]], embodiment: Embodiment
) -> UInt8[np.ndarray, "C h w 3"]:
    """Each camera's image, cropped and turned to what a policy sees; all of one size."""
    return np.stack([camera.view(images[camera.name]) for camera in embodiment.cameras])


def to_bytes(weights: Float32[np.ndarray, " W"], layout: WeightLayout, card: TaskPolicyCard) -> bytes:
    """A safetensors file: one tensor per generated weight, and the card, layout and file digest as metadata."""
    from safetensors.numpy import save

    about = card.to_json() | {"format": FORMAT, "layout": layout.to_json(), "sha256": UNSIGNED}
    tensors = {name: np.ascontiguousarray(value) for name, value in layout.split(weights).items()}
    return sign(save(tensors, metadata={"hypervla": json.dumps(about, sort_keys=True)}))


def from_bytes(data: bytes, source: Path) -> tuple[Float32[np.ndarray, " W"], WeightLayout, TaskPolicyCard]:
    """The inverse of `to_bytes`. Raises UserError when any byte differs from what was written."""
    from safetensors.numpy import load

    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    if not is_whole(data):
        raise UserError(f"{source} is damaged or no task policy: compile it again, or copy it once more.")
    try:
        about = json.loads(json.loads(header)["__metadata__"]["hypervla"])
    except (ValueError, KeyError, TypeError) as error:  # whole, but another file of ours
        raise UserError(f"{source} is no task policy: write one with hypervla compile.") from error
    if about["format"] != FORMAT:
        raise UserError(f"{source} is of task policy format {about['format']}, but this version reads {FORMAT}.")
    layout = WeightLayout.from_json(about["layout"])
    tensors = load(data)
    weights = np.concatenate([tensors[spec.name].reshape(-1) for spec in layout.specs])
    return weights, layout, TaskPolicyCard.from_json(about)
