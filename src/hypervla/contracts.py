"""The nouns that cross the borders of hypervla, and the protocols they travel through. NumPy only."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

if TYPE_CHECKING:
    from hypervla.embodiment import Camera, Embodiment

Image = UInt8[np.ndarray, "height width 3"]
MAX_INSTRUCTION_CHARACTERS = 500


class UserError(ValueError):
    """Something the user can put right; its message says what was wanted, what came and what to do."""


class Unusable(UserError):
    """Something that every trial would meet: it ends the whole evaluation, and is not the failure of one."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was full, a GPU's or the machine's: PyTorch says the latter in words alone."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "CPUAllocator" in str(error)


def unknown(name: str, known: Iterable[str], what: str) -> UserError:
    """The error for a name that is not known: it gives the near matches, or all names when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return UserError(f"There is no {what} '{name}'; did you mean {' or '.join(near)}?")
    return UserError(f"There is no {what} '{name}'; there is {', '.join(names) or 'none'}.")


@dataclass(frozen=True)
class Observation:
    """What the robot sees and feels at one step."""

    images: Mapping[str, Image]
    """uint8 RGB by camera name, as the camera delivers it (before crop and resize)."""
    proprio: Float32[np.ndarray, " P"] | None = None
    """The robot's own state, in the embodiment's units."""


@dataclass(frozen=True)
class TaskContext:
    """What is known before acting: the instruction and the first image of each camera."""

    instruction: str
    images: Mapping[str, Image]

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise UserError("The instruction is empty: say in one sentence what the robot should do.")
        if any("\ud800" <= letter <= "\udfff" for letter in self.instruction):
            raise UserError("The instruction has bytes that are no UTF-8: write it again.")
        if len(self.instruction) > MAX_INSTRUCTION_CHARACTERS:
            raise UserError(
                f"The instruction has {len(self.instruction)} characters, more than the "
                f"{MAX_INSTRUCTION_CHARACTERS} allowed: shorten it to one sentence."
            )


@dataclass(frozen=True)
class ActionChunk:
    """H future actions in the robot's own units, the next one first."""

    actions: Float32[np.ndarray, "H A"]

    def __len__(self) -> int:
        return len(self.actions)

    def first(self, count: int) -> ActionChunk:
        """The first `count` actions of this chunk."""
        return ActionChunk(self.actions[:count])


@dataclass(frozen=True)
class Episode:
    """One recorded attempt at a task: T observations and the T actions a demonstrator chose there."""

    instruction: str
    images: Mapping[str, UInt8[np.ndarray, "T height width 3"]]
    actions: Float32[np.ndarray, "T A"]
    proprio: Float32[np.ndarray, "T P"] | None = None
    success: Bool[np.ndarray, " T"] | None = None
    environment_state: Float32[np.ndarray, "T S"] | None = None
    """What the simulator knows and the robot does not (object poses); never an input of a policy."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from: suite, task, seed, action noise."""

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Outcome:
    """What came of executing a chunk."""

    success: bool
    steps: int
    """Control steps carried out; fewer than the chunk holds when the task succeeded on the way."""


Position = Float64[np.ndarray, "3"]


@dataclass(frozen=True)
class Situation:
    """How a trial stands, as only a simulator knows it."""

    hand: Position
    """Where the fingers close, in metres."""
    held: str | None
    """The thing between the fingers."""
    things: Mapping[str, Position]
    """Where everything is that can be moved, in metres; of what turns, a point away from its axis."""
    to_hold: frozenset[str]
    """Things that have to be picked up and are not where they belong yet."""
    to_move: frozenset[str]
    """Things that have to be pushed, opened, closed, pressed or turned and are not yet."""


Kind = Literal["kernel", "bias", "scale", "position"]


@dataclass(frozen=True)
class WeightSpec:
    """One generated tensor: its name, shape and what it is (which decides initialisation and weight decay)."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    fan: tuple[int, int] | None = None
    """Fan-in and fan-out of a kernel, for its initialisation."""
    xavier: bool = False
    """Xavier-uniform (attention and MLP kernels) instead of LeCun-normal."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class WeightLayout:
    """Names, shapes and offsets of the generated weights inside one flat vector of W numbers."""

    specs: tuple[WeightSpec, ...]

    @staticmethod
    def from_json(rows: Sequence[Mapping[str, Any]]) -> WeightLayout:
        """The inverse of `to_json`. Raises KeyError or TypeError for what is none."""
        return WeightLayout(
            tuple(
                WeightSpec(
                    row["name"],
                    tuple(row["shape"]),
                    row["kind"],
                    tuple(row["fan"]) if row["fan"] else None,
                    row["xavier"],
                )
                for row in rows
            )
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [dict(vars(spec)) for spec in self.specs]

    @cached_property
    def size(self) -> int:
        return sum(spec.size for spec in self.specs)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate((spec.size for spec in self.specs[:-1]), initial=0))

    def split(self, flat: Any) -> dict[str, Any]:
        """Cut (..., W) into named views (..., *shape); works on NumPy arrays and torch tensors alike."""
        if flat.shape[-1] != self.size:
            raise ValueError(f"This layout holds {self.size} weights, but the vector has {flat.shape[-1]}.")
        lead = tuple(flat.shape[:-1])
        return {
            spec.name: flat[..., start : start + spec.size].reshape(lead + spec.shape)
            for spec, start in zip(self.specs, self.offsets, strict=True)
        }


@runtime_checkable
class Policy(Protocol):
    """Anything that turns observations of one episode into action chunks."""

    embodiment: Embodiment

    def act(self, observation: Observation) -> ActionChunk:
        """The next H actions, in the robot's units."""
        ...


@runtime_checkable
class Environment(Protocol):
    """A robot and a task, real or simulated; every implementation passes tests/conformance/environment.py."""

    embodiment: Embodiment
    task: str
    instructions: Sequence[str]
    """Ways to ask for this task; the first is the canonical one."""

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same scene."""
        ...

    def observe(self) -> Observation:
        """Look at the scene now. Costly (it renders), so it is called only when the policy re-plans."""
        ...

    def execute(self, chunk: ActionChunk) -> Outcome:
        """Carry out the chunk's actions one after another, stopping early on success."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Situated(Protocol):
    """An environment that says how the trial stands, from which evaluations tell why it failed."""

    def situation(self) -> Situation:
        """How things are now. Cheap, and changes nothing."""
        ...


@runtime_checkable
class Adjustable(Protocol):
    """An environment whose cameras deliver what a policy wants of them."""

    def look_through(self, cameras: Sequence[Camera]) -> None:
        """Deliver these of the robot's cameras from now on, at their own sizes. Raises UserError for others."""
        ...


@runtime_checkable
class EpisodeReader(Protocol):
    """A folder of recorded episodes: numbers in memory, images decoded when asked for.

    Rows count the steps of all episodes, one behind the other: episode e is rows `starts[e]` to `starts[e + 1]`.
    Readers can be sent to other processes. Every implementation passes tests/conformance/reader.py.
    """

    name: str
    """What the dataset is called in a mixture and in a checkpoint."""
    embodiment: Embodiment
    starts: Int64[np.ndarray, " starts"]
    """The first row of every episode, and the end of the last."""
    actions: Float32[np.ndarray, "F A"]
    """In the robot's units."""
    proprio: Float32[np.ndarray, "F P"] | None
    paraphrases: Mapping[str, Sequence[str]]
    """Other ways to say an instruction, by instruction."""
    validation_episodes: Int64[np.ndarray, " V"]
    """Episodes that are never trained on."""

    @property
    def digest(self) -> str:
        """sha256 that changes when any of the data does. Raises UserError for files that a manifest knows otherwise."""
        ...

    def __len__(self) -> int:
        """The number of episodes."""
        ...

    def instruction(self, row: int) -> str:
        """What was to be done at this step; empty where nobody said."""
        ...

    def images(self, camera: str, rows: Sequence[int]) -> list[Image]:
        """What the camera saw at these rows, in their order, as it delivered it. Raises UserError for damaged data."""
        ...

    def statistics(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """mean, std, min, max, q01, q99 and count of `action` and `observation.state`, over all episodes.

        Raises UserError, naming the command that makes them, when they are missing or of other data.
        """
        ...

    def episode(self, index: int) -> Episode:
        """One whole episode, all images decoded."""
        ...


@runtime_checkable
class Demonstrator(Protocol):
    """Knows what to do next in the environment it was made for."""

    def action(self) -> Float32[np.ndarray, " A"]: ...


Make = Callable[[str], tuple[Environment, Demonstrator]]
"""Makes the environment of a task and who demonstrates it."""
