"""Which frames a training step sees: a pure function of (seed, step), so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from hypervla.data.lerobot import Frames
from hypervla.data.normalize import Normalizer

VALIDATION_EVERY = 32
"""One episode in so many is kept from training, to measure the loss on."""


@dataclass(frozen=True)
class ContextBatch:
    """N contexts with F frames of the same episode each; C cameras, chunks of H normalised actions."""

    instructions: list[str]
    initial_images: UInt8[np.ndarray, "N C h w 3"]
    images: UInt8[np.ndarray, "N F C h w 3"]
    proprio: Float32[np.ndarray, "N F P"] | None
    actions: Float32[np.ndarray, "N F H A"]
    mask: Bool[np.ndarray, "N F H A"]


class ContextSampler:
    """Draws episodes uniformly, frames uniformly within them and a paraphrase of the instruction for each context."""

    def __init__(
        self,
        frames: Frames,
        normalizer: Normalizer,
        paraphrases: Mapping[str, Sequence[str]],
        *,
        horizon: int,
        seed: int,
        reads_proprio: bool,
        margin: int = 0,
        validation: bool = False,
    ) -> None:
        """`margin` is that of the frames: in training each context's view is shifted at random within it, its frames
        and initial image alike; in validation it is the middle, which is what a robot sees."""
        self.frames, self.horizon, self.seed = frames, horizon, seed
        self.margin, self.shifted = margin, margin > 0 and not validation
        self.actions = normalizer.forward_actions(frames.actions)
        self.proprio = None
        if reads_proprio and frames.proprio is not None:
            self.proprio = normalizer.forward_proprio(frames.proprio)
        self.sentences = [
            tuple(dict.fromkeys([instruction, *paraphrases.get(instruction, [])]))
            for instruction in frames.episode_instruction
        ]
        episodes = np.arange(len(self.sentences))
        held_back = episodes % VALIDATION_EVERY == VALIDATION_EVERY - 1
        self.episodes = episodes[held_back if validation else ~held_back]

    def batch(self, step: int, contexts: int, frames_per_context: int) -> ContextBatch:
        """The batch of this training step, whatever was asked for before."""
        random = np.random.default_rng((self.seed, step))
        episodes = self.episodes[random.integers(len(self.episodes), size=contexts)]
        starts, ends = self.frames.episode_starts[episodes], self.frames.episode_starts[episodes + 1]
        rows = random.integers(starts[:, None], ends[:, None], size=(contexts, frames_per_context))
        sentences = [self.sentences[episode] for episode in episodes]
        instructions = [choices[random.integers(len(choices))] for choices in sentences]
        corners = np.full((contexts, 2), self.margin)
        if self.shifted:
            corners = random.integers(2 * self.margin + 1, size=(contexts, 2))
        actions, mask = self._chunks(rows, ends)
        return ContextBatch(
            instructions=instructions,
            initial_images=self._images(starts[:, None], corners)[:, 0],
            images=self._images(rows, corners),
            proprio=None if self.proprio is None else self.proprio[rows],
            actions=actions,
            mask=mask,
        )

    def _images(
        self, rows: Int[np.ndarray, "N F"], corners: Int[np.ndarray, "N 2"]
    ) -> UInt8[np.ndarray, "N F C h w 3"]:
        """The frames of these rows, cut at each context's corner."""
        cameras = list(self.frames.images.values())
        height, width = (side - 2 * self.margin for side in cameras[0].shape[1:3])
        images = np.empty((*rows.shape, len(cameras), height, width, 3), np.uint8)
        for c, pixels in enumerate(cameras):
            for n, (y, x) in enumerate(corners):
                images[n, :, c] = pixels[rows[n], y : y + height, x : x + width]
        return images

    def _chunks(
        self, rows: Int[np.ndarray, "N F"], ends: Int[np.ndarray, " N"]
    ) -> tuple[Float32[np.ndarray, "N F H A"], Bool[np.ndarray, "N F H A"]]:
        """The H actions from each row on, the last one repeated past the episode's end, and which of them are real."""
        wanted = rows[..., None] + np.arange(self.horizon)
        last = ends[:, None, None] - 1
        actions = self.actions[np.minimum(wanted, last)]
        return actions, np.broadcast_to((wanted <= last)[..., None], actions.shape)
