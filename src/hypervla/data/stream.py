"""The sample stream: what a training step sees is a pure function of (seed, step), for any number of workers and ranks.

In order: draw a context, resize its images, augment them, choose its sentence, cut windows and chunks (Octo's data
pipeline, which HyperVLA follows; the paper's section on training data).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from hypervla.contracts import EpisodeReader, UserError
from hypervla.data.augment import Augmentation, augment, resize
from hypervla.data.chunking import MaskMode, action_mask, action_rows, observation_rows
from hypervla.data.draws import Draw, Draws, Passes
from hypervla.data.mixture import Mixture
from hypervla.data.normalize import Normalisation, Robot
from hypervla.data.tasks import Paraphrases, choose_goals, largest_by_episode, uniform_goals
from hypervla.embodiment import Camera


@dataclass(frozen=True)
class Sampling:
    """How a recipe turns episodes into samples. Defaults are the published HyperVLA run's."""

    image_size: int = 224
    horizon: int = 4
    """H actions of a chunk."""
    window: int = 1
    """T observations, the current one last."""
    frames_per_context: int = 1
    """F frames of one episode that share a generated weight set."""
    frames_per_episode: int = 100
    """At most so many frames of an episode in one pass over the data."""
    normalisation: Normalisation = "normal"
    action_mask: MaskMode = "released"
    rephrase: float = 1.0
    """Probability that the sentences of an episode are drawn from the instruction and its paraphrases."""
    unlabelled: bool = False
    """Whether steps without an instruction are used."""
    goal_images: float = 0.0
    """How often a sample is told its goal by the image of a later step (Octo 0.5), drawn uniformly; else by words."""
    augmentation: Augmentation | None = None
    view_shift: int = 0
    """Training views are shifted by up to so many pixels, a context's frames and initial image alike."""
    most_action: float | None = None
    """Episodes with a normalised action beyond ± this are left out."""
    leave_out: tuple[str, ...] = ()
    """Episodes that begin with one of these instructions are left out, of training and of validation."""


@dataclass(frozen=True)
class ContextBatch:
    """N contexts with F frames of the same episode each; T observations, C cameras, chunks of H normalised actions."""

    instructions: list[str]
    initial_images: UInt8[np.ndarray, "N C h w 3"]
    images: UInt8[np.ndarray, "N F T C h w 3"]
    timestep_mask: Bool[np.ndarray, "N F T"]
    """Which observations are real: an episode's first is repeated to the left."""
    proprio: Float32[np.ndarray, "N F T P"] | None
    actions: Float32[np.ndarray, "N F T H A"]
    mask: Bool[np.ndarray, "N F T H A"]
    """Which actions count: not past the goal, and not a dimension that the robot lacks."""
    goal_images: UInt8[np.ndarray, "N F C h w 3"] | None
    goal_shown: Bool[np.ndarray, "N F"]
    """Which samples are told their goal by its image, and are not to be told it by words."""
    datasets: Int64[np.ndarray, " N"]
    """Which dataset of the mixture each context came from."""
    rows: Int64[np.ndarray, "N F"]
    """The frames' rows there."""


@runtime_checkable
class Pictures(Protocol):
    """Gives a dataset's images at the size a policy reads, with `margin` more pixels on each side."""

    def __call__(self, dataset: int, camera: int, rows: Sequence[int]) -> Sequence[UInt8[np.ndarray, "s s 3"]]: ...


class Decoded:
    """Pictures decoded when asked for."""

    def __init__(self, mixture: Mixture, size: int, margin: int) -> None:
        self.readers, self.size, self.margin = mixture.readers, size, margin

    def __call__(self, dataset: int, camera: int, rows: Sequence[int]) -> Sequence[UInt8[np.ndarray, "s s 3"]]:
        chosen = self.readers[dataset].embodiment.cameras[camera]
        images = self.readers[dataset].images(chosen.name, rows)
        return [view_with_margin(chosen, image, self.size, self.margin) for image in images]


def view_with_margin(
    camera: Camera, image: UInt8[np.ndarray, "height width 3"], size: int, margin: int
) -> UInt8[np.ndarray, "s s 3"]:
    """The view at `size` pixels with `margin` more on each side: what the camera saw there, where the view needs no
    resizing and the image goes on around it; else the view's edge repeated (DrQ's random shifts)."""
    wider = camera.wider(margin) if camera.view_size == (size, size) else None
    if wider is not None:
        return wider.view(image)
    return np.pad(resize(camera.view(image), size), [(margin, margin), (margin, margin), (0, 0)], mode="edge")


class SampleStream:
    """Batches of a mixture by step."""

    def __init__(
        self,
        mixture: Mixture,
        robots: Mapping[str, Robot],
        sampling: Sampling,
        *,
        seed: int,
        reads_proprio: bool,
        pictures: Pictures | None = None,
        validation: bool = False,
    ) -> None:
        """In validation nothing is augmented, shifted or rephrased, and no filter applies but that of instructions."""
        if validation:
            sampling = replace(sampling, augmentation=None, rephrase=0.0, most_action=None)
        self.mixture, self.sampling, self.seed, self.validation = mixture, sampling, seed, validation
        readers, owners = mixture.readers, [robots[reader.embodiment.name] for reader in mixture.readers]
        self.actions = [o.normalizer.forward_actions(r.actions) for o, r in zip(owners, readers, strict=True)]
        self.proprio = None
        if reads_proprio:
            states = [_state(reader) for reader in readers]
            self.proprio = [o.normalizer.forward_proprio(p) for o, p in zip(owners, states, strict=True)]
        self.action_size = max(actions.shape[1] for actions in self.actions)
        self.paraphrases = [Paraphrases(reader.paraphrases, sampling.rephrase) for reader in readers]
        self.cameras = len(readers[0].embodiment.cameras)
        if len({len(reader.embodiment.cameras) for reader in readers}) > 1:
            counts = ", ".join(f"{reader.name} {len(reader.embodiment.cameras)}" for reader in readers)
            raise UserError(
                f"The datasets of a mixture need the same number of cameras, but {counts}: choose some in "
                f"a TOML file and pass --robot."
            )
        self.pictures = pictures or Decoded(mixture, sampling.image_size, sampling.view_shift)
        kept = [self._episodes(number) for number in range(len(readers))]
        shares = (
            np.where([len(episodes) > 0 for episodes in kept], mixture.shares, 0.0) if validation else mixture.shares
        )
        passes = [
            Passes(r.starts, e, frames=sampling.frames_per_context, most=sampling.frames_per_episode)
            for r, e in zip(readers, kept, strict=True)
        ]
        self.episodes = sum(len(episodes) for episodes in kept)
        self.draws = Draws(passes, shares, seed) if self.episodes else None

    def _episodes(self, number: int) -> Int64[np.ndarray, " E"]:
        """The episodes of a dataset that are drawn from."""
        reader, sampling = self.mixture.readers[number], self.sampling
        held_back = np.zeros(len(reader), bool)
        held_back[reader.validation_episodes] = True
        kept = held_back if self.validation else ~held_back
        instructions = [reader.instruction(int(row)) for row in reader.starts[:-1]]
        kept &= np.array([asked not in sampling.leave_out for asked in instructions], bool)
        if not sampling.unlabelled:
            kept &= np.array([asked != "" for asked in instructions], bool)
        if sampling.most_action is not None:
            kept &= largest_by_episode(self.actions[number], reader.starts) <= sampling.most_action
        episodes = np.flatnonzero(kept)
        if not len(episodes) and not self.validation:
            raise UserError(
                f"{reader.name} has no episode to train on: {len(reader)} in all, {int(held_back.sum())} kept for "
                f"validation, the others without an instruction, left out by theirs or beyond the action limit; leave "
                f"the dataset out."
            )
        return episodes

    def batch(self, step: int, contexts: int, *, rank: int = 0, ranks: int = 1) -> ContextBatch:
        """The batch of this training step: `contexts` in all, of which each of `ranks` processes gets its own part.

        Raises UserError when the contexts cannot be shared out evenly.
        """
        if contexts % ranks:
            raise UserError(
                f"{contexts} contexts a batch cannot be shared by {ranks} processes evenly: choose a multiple."
            )
        assert self.draws is not None
        part = contexts // ranks
        first = step * contexts + rank * part
        draws = [self.draws[i] for i in range(first, first + part)]
        shown, goals = zip(*(self._goals(draw) for draw in draws), strict=True)
        numbers = [self._numbers(draw, goal) for draw, goal in zip(draws, goals, strict=True)]
        images = self._images(draws, goals)
        return ContextBatch(
            instructions=[self._sentence(draw) for draw in draws],
            datasets=np.array([draw.dataset for draw in draws], np.int64),
            rows=np.stack([draw.rows for draw in draws]),
            goal_shown=np.stack(shown),
            **{name: _stack([row[name] for row in numbers]) for name in numbers[0]},
            **images,
        )

    def _bounds(self, draw: Draw) -> tuple[int, int]:
        """First row of the episode and the row behind its last."""
        starts = self.mixture.readers[draw.dataset].starts
        return int(starts[draw.episode]), int(starts[draw.episode + 1])

    def _goals(self, draw: Draw) -> tuple[Bool[np.ndarray, " F"], Int64[np.ndarray, " F"]]:
        """Whether each frame is told its goal by an image, and which step of the episode that is: else the last."""
        first, end = self._bounds(draw)
        if not self.sampling.goal_images:
            return np.zeros(len(draw.rows), bool), np.full(len(draw.rows), end - first - 1)
        reader, random = self.mixture.readers[draw.dataset], np.random.default_rng((*draw.seed, 1))
        goals = uniform_goals(draw.rows - first, end - first, random)
        labelled = np.array([reader.instruction(int(row)) != "" for row in draw.rows])
        return choose_goals(goals, labelled, end - first, self.sampling.goal_images, random)

    def _sentence(self, draw: Draw) -> str:
        """What the context is asked to do, in the words drawn for it."""
        instruction = self.mixture.readers[draw.dataset].instruction(int(draw.rows[0]))
        paraphrases = self.paraphrases[draw.dataset]
        rephrased = paraphrases.coin(np.random.default_rng((*draw.trajectory, 1)))
        return paraphrases.choose(instruction, np.random.default_rng((*draw.seed, 2))) if rephrased else instruction

    def _numbers(self, draw: Draw, goals: Int64[np.ndarray, " F"]) -> dict[str, Any]:
        """Chunks, proprio and masks of one context."""
        first, end = self._bounds(draw)
        length, window, horizon = end - first, self.sampling.window, self.sampling.horizon
        steps = draw.rows - first
        seen, real = observation_rows(steps, window)
        ahead = action_rows(steps, window, horizon, length)
        actions = self.actions[draw.dataset][first + ahead]
        counts = action_mask(steps, window, horizon, length, goals, self.sampling.action_mask)
        missing = self.action_size - actions.shape[-1]
        mask = np.broadcast_to(counts[..., None], (*counts.shape, self.action_size)).copy()
        mask[..., self.action_size - missing :] = False
        return {
            "timestep_mask": real,
            "proprio": None if self.proprio is None else self.proprio[draw.dataset][first + seen],
            "actions": np.pad(actions, [(0, 0)] * 3 + [(0, missing)]) if missing else actions,
            "mask": mask,
        }

    def _images(self, draws: Sequence[Draw], goals: Sequence[Int64[np.ndarray, " F"]]) -> dict[str, Any]:
        """Images of all contexts; each dataset is asked once for each camera, so that it can read in its own order."""
        sampling = self.sampling
        size, frames, window = sampling.image_size, sampling.frames_per_context, sampling.window
        shape = (self.cameras, size, size, 3)
        initial = np.empty((len(draws), *shape), np.uint8)
        images = np.empty((len(draws), frames, window, *shape), np.uint8)
        later = np.empty((len(draws), frames, *shape), np.uint8) if sampling.goal_images else None
        for dataset in dict.fromkeys(draw.dataset for draw in draws):
            wanted: list[tuple[int, np.ndarray, int]] = []  # context, where to put it, row
            for n, draw in enumerate(draws):
                if draw.dataset != dataset:
                    continue
                first, _ = self._bounds(draw)
                wanted.append((n, initial[n], first))
                seen, _ = observation_rows(draw.rows - first, window)
                wanted += [(n, images[n, f, t], first + int(seen[f, t])) for f, t in np.ndindex(frames, window)]
                if later is not None:
                    wanted += [(n, later[n, f], first + int(goal)) for f, goal in enumerate(goals[n])]
            rows = list(dict.fromkeys(row for *_, row in wanted))
            for c in range(self.cameras):
                pictures = dict(zip(rows, self.pictures(dataset, c, rows), strict=True))
                self._place(draws, wanted, pictures, c)
        return {"initial_images": initial, "images": images, "goal_images": later}

    def _place(self, draws: Sequence[Draw], wanted: list[tuple[int, np.ndarray, int]], pictures: dict, c: int) -> None:
        """Shift and augment the pictures of one camera and put them where they are wanted, equal ones once."""
        size, margin = self.sampling.image_size, self.sampling.view_shift
        placed: dict[tuple[int, int], UInt8[np.ndarray, "h w 3"]] = {}
        for n, target, row in wanted:
            if (n, row) in placed:
                target[c] = placed[n, row]
                continue
            y, x = margin, margin
            if margin and not self.validation:
                y, x = np.random.default_rng((*draws[n].seed, 3)).integers(2 * margin + 1, size=2)
            target[c] = pictures[row][y : y + size, x : x + size]
            if self.sampling.augmentation is not None:
                augment(target[c], self.sampling.augmentation, (*draws[n].seed, 4, c), out=target[c])
            placed[n, row] = target[c]


def _state(reader: EpisodeReader) -> Float32[np.ndarray, "F P"]:
    if reader.proprio is None:
        raise UserError(f"The recipe reads proprio, but {reader.name} has none: choose another recipe or dataset.")
    return reader.proprio


def _stack(values: Sequence[Any]) -> Any:
    return None if values[0] is None else np.stack(values)
