"""Which frames a training step sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import NORMALIZER

from hypervla.data.lerobot import Frames
from hypervla.data.sampling import VALIDATION_EVERY, ContextBatch, ContextSampler

LENGTHS = [1 + i % 7 for i in range(2 * VALIDATION_EVERY + 3)]
STARTS = np.cumsum([0, *LENGTHS])
TOTAL = int(STARTS[-1])
INSTRUCTIONS = [f"task {i % 3}" for i in range(len(LENGTHS))]
PARAPHRASES = {"task 0": ["task 0", "do zero"], "task 1": ["do one", "one please"]}
MAY_SAY = {"task 0": {"task 0", "do zero"}, "task 1": {"task 1", "do one", "one please"}, "task 2": {"task 2"}}
HORIZON = 4


def frames(cameras: int = 2) -> Frames:
    """Frames that carry their own number: in the pixels (and the camera's, in blue), the actions and the proprio."""
    numbers = np.arange(TOTAL)
    pixels = np.zeros((cameras, TOTAL, 2, 2, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = (numbers % 256)[:, None, None], (numbers // 256)[:, None, None]
    pixels[..., 2] = np.arange(cameras)[:, None, None, None]
    return Frames(
        images={f"camera{i}": pixels[i] for i in range(cameras)},
        actions=np.stack([numbers, numbers + 0.5, np.zeros(TOTAL)], 1).astype(np.float32),
        proprio=np.stack([numbers, -numbers], 1).astype(np.float32),
        episode_starts=STARTS,
        episode_instruction=INSTRUCTIONS,
    )


def sampler(**changes) -> ContextSampler:
    options = {"horizon": HORIZON, "seed": 0, "reads_proprio": True}
    return ContextSampler(frames(), NORMALIZER, PARAPHRASES, **{**options, **changes})


def rows(images: np.ndarray) -> np.ndarray:
    """The numbers of the frames in (..., C, h, w, 3), by the first camera."""
    return images[..., 0, 0, 0, 0].astype(int) + 256 * images[..., 0, 0, 0, 1].astype(int)


def episodes(batch: ContextBatch) -> np.ndarray:
    """The episode of each context, by its initial image."""
    return np.searchsorted(STARTS, rows(batch.initial_images), side="right") - 1


def equal(one: ContextBatch, other: ContextBatch) -> bool:
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


@pytest.fixture(scope="module")
def training() -> ContextSampler:
    return sampler()


@pytest.fixture(scope="module")
def many(training: ContextSampler) -> ContextBatch:
    return training.batch(step=1, contexts=3000, frames_per_context=5)


@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**6), before=st.lists(st.integers(0, 100), max_size=3))
def test_a_batch_depends_on_seed_and_step_alone(seed: int, step: int, before: list[int]) -> None:
    one, other = sampler(seed=seed), sampler(seed=seed)
    for earlier in before:
        one.batch(earlier, 3, 2)
    assert equal(one.batch(step, 4, 2), other.batch(step, 4, 2))


def test_other_steps_and_seeds_give_other_batches(training: ContextSampler) -> None:
    batch = training.batch(7, 8, 2)
    assert not equal(batch, training.batch(8, 8, 2))
    assert not equal(batch, sampler(seed=1).batch(7, 8, 2))


def test_frames_of_one_context_come_from_one_episode(many: ContextBatch) -> None:
    of_frames = np.searchsorted(STARTS, rows(many.images), side="right") - 1
    assert (of_frames == episodes(many)[:, None]).all()


def test_the_initial_image_is_the_episodes_first(many: ContextBatch) -> None:
    assert np.isin(rows(many.initial_images), STARTS[:-1]).all()


def test_every_frame_of_an_episode_is_drawn(many: ContextBatch, training: ContextSampler) -> None:
    wanted = {row for episode in training.episodes for row in range(STARTS[episode], STARTS[episode + 1])}
    assert set(rows(many.images).flatten().tolist()) == wanted


def test_episodes_are_drawn_alike_however_long_they_are(many: ContextBatch, training: ContextSampler) -> None:
    drawn = np.bincount(episodes(many), minlength=len(LENGTHS))[training.episodes]
    assert drawn.min() > 0.4 * drawn.mean()
    assert drawn.max() < 1.8 * drawn.mean()


def test_held_out_episodes_are_never_trained_on_and_validation_sees_no_other(many: ContextBatch) -> None:
    held_out = {i for i in range(len(LENGTHS)) if i % VALIDATION_EVERY == VALIDATION_EVERY - 1}
    assert held_out == {31, 63}
    assert set(episodes(many).tolist()) == set(range(len(LENGTHS))) - held_out
    validation = sampler(validation=True).batch(0, 200, 1)
    assert set(episodes(validation).tolist()) == held_out


def test_only_ways_to_say_that_episodes_instruction_are_drawn_and_all_of_them(many: ContextBatch) -> None:
    said: dict[str, set[str]] = {name: set() for name in MAY_SAY}
    for episode, sentence in zip(episodes(many), many.instructions, strict=True):
        said[INSTRUCTIONS[episode]].add(sentence)
    assert said == MAY_SAY


def test_chunks_are_the_next_actions_the_last_one_repeated_and_masked(many: ContextBatch) -> None:
    first, ends = rows(many.images), STARTS[episodes(many) + 1]
    wanted = first[..., None] + np.arange(HORIZON)
    real = wanted < ends[:, None, None]
    undone = NORMALIZER.inverse_actions(many.actions)[..., 0]
    np.testing.assert_allclose(undone, np.where(real, wanted, ends[:, None, None] - 1), atol=1e-2)
    assert (many.mask == real[..., None]).all()
    assert many.mask[..., 0, :].all()
    assert not many.mask.all()


def test_frames_chunks_and_proprio_belong_together_and_are_normalised(many: ContextBatch) -> None:
    first = rows(many.images)
    np.testing.assert_allclose(NORMALIZER.inverse_proprio(many.proprio)[..., 0], first, atol=1e-2)
    np.testing.assert_allclose(many.actions[..., 0, 0], (first - 0.01) / 0.05, rtol=1e-4, atol=1e-3)


def test_cameras_stand_side_by_side_in_the_robots_order(many: ContextBatch) -> None:
    assert many.images.shape == (3000, 5, 2, 2, 2, 3)
    assert many.initial_images.shape == (3000, 2, 2, 2, 3)
    for images in (many.images, many.initial_images):
        assert (images[..., 0, :, :, 2] == 0).all()
        assert (images[..., 1, :, :, 2] == 1).all()
        assert (images[..., 0, :, :, :2] == images[..., 1, :, :, :2]).all()


def corners(images: np.ndarray) -> np.ndarray:
    """Where the views of these (..., C, h, w, 3) were cut out of `wide` frames, (..., 2)."""
    return images[..., 0, 0, 0, :2].astype(int)


def wide(margin: int) -> Frames:
    """Frames of 4×5 pixels and a margin around; each pixel holds its own row and column."""
    rows, columns = np.mgrid[: 4 + 2 * margin, : 5 + 2 * margin]
    pixels = np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)
    everywhere = np.broadcast_to(pixels, (TOTAL, *pixels.shape))
    return replace(frames(), images={f"camera{i}": everywhere for i in range(2)})


def test_training_shifts_a_contexts_images_alike_and_each_context_its_own_way() -> None:
    shifted = ContextSampler(wide(2), NORMALIZER, {}, horizon=2, seed=0, reads_proprio=False, margin=2)
    batch = shifted.batch(0, 400, 3)
    assert batch.images.shape[3:] == (4, 5, 3)
    initial = corners(batch.initial_images)
    assert (corners(batch.images) == initial[:, None]).all()
    assert {tuple(corner) for corner in initial.tolist()} == {(y, x) for y in range(5) for x in range(5)}
    assert (batch.images[..., 0, :, :, :] == batch.images[..., 1, :, :, :]).all()
    assert equal(shifted.batch(0, 400, 3), batch)


@pytest.mark.parametrize("changes", [{"margin": 2, "validation": True}, {"margin": 0}], ids=["validation", "no margin"])
def test_without_a_shift_the_view_is_the_middle(changes: dict) -> None:
    still = ContextSampler(wide(changes["margin"]), NORMALIZER, {}, horizon=2, seed=0, reads_proprio=False, **changes)
    batch = still.batch(0, 50, 2)
    assert (corners(batch.images) == changes["margin"]).all()
    assert (corners(batch.initial_images) == changes["margin"]).all()


def test_a_policy_that_reads_no_proprio_gets_none() -> None:
    assert sampler(reads_proprio=False).batch(0, 2, 2).proprio is None


def test_few_episodes_leave_nothing_for_validation() -> None:
    images, actions = {"camera": np.zeros((2, 2, 2, 3), np.uint8)}, np.zeros((2, 3), np.float32)
    few = Frames(images, actions, None, np.array([0, 1, 2]), ["one", "other"])
    rest = ContextSampler(few, NORMALIZER, {}, horizon=2, seed=0, reads_proprio=False, validation=True)
    assert len(rest.episodes) == 0
