"""What a training step sees."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import POINT, NumberedReader

from hypervla.contracts import UserError
from hypervla.data.augment import OCTO, resize
from hypervla.data.memory import InMemory
from hypervla.data.mixture import Mixture
from hypervla.data.stream import ContextBatch, Decoded, SampleStream, Sampling, view_with_margin
from hypervla.embodiment import Camera

LENGTHS = [1 + i % 7 for i in range(41)]
SAMPLING = Sampling(
    image_size=24, horizon=4, frames_per_context=3, frames_per_episode=100, action_mask="pad_only", rephrase=1.0
)
CAMERAS = (Camera("left", 32, 32, (4, 4, 24, 24)), Camera("right", 32, 32, (4, 4, 24, 24)))
ROBOT = replace(POINT, cameras=CAMERAS)
OTHER = replace(POINT, name="other", cameras=CAMERAS, action_names=("dx", "dy"), action_low=(0.0, 0.0),
                action_high=(1.0, 1.0), gripper=None)  # fmt: skip


def stream(sampling: Sampling = SAMPLING, *, readers=None, weights=None, seed: int = 0, **options) -> SampleStream:
    mixture = Mixture(readers or [NumberedReader(LENGTHS, robot=ROBOT)], weights)
    robots = mixture.robots(sampling.normalisation)
    return SampleStream(mixture, robots, sampling, seed=seed, **{"reads_proprio": True, **options})


def equal(one: ContextBatch, other: ContextBatch) -> bool:
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


def numbers(images: np.ndarray) -> np.ndarray:
    """The rows that images carry, by the first camera."""
    return images[..., 0, 0, 0, 0].astype(int) + 256 * images[..., 0, 0, 0, 1].astype(int)


def starts_of(rows: np.ndarray) -> np.ndarray:
    starts = np.cumsum([0, *LENGTHS])
    return starts[np.searchsorted(starts, rows, side="right") - 1]


@pytest.fixture(scope="module")
def batch() -> ContextBatch:
    return stream().batch(2, 300)


def test_every_part_of_a_sample_is_of_its_frame(batch: ContextBatch) -> None:
    rows = batch.rows
    assert (numbers(batch.images[:, :, 0]) == rows).all()
    assert (batch.proprio[:, :, 0, 0] == rows).all()
    assert (batch.actions[:, :, 0, 0, 0] == rows).all()
    assert (numbers(batch.initial_images) == starts_of(rows[:, 0])).all()
    assert (batch.images[..., 0, :, :, 2] == 0).all()
    assert (batch.images[..., 1, :, :, 2] == 1).all()


def test_chunks_run_on_and_padding_does_not_count(batch: ContextBatch) -> None:
    ends = starts_of(batch.rows) + np.array(LENGTHS)[np.searchsorted(np.cumsum(LENGTHS), batch.rows, side="right")]
    wanted = batch.rows[..., None] + np.arange(4)
    real = wanted < ends[..., None]
    assert (batch.actions[:, :, 0, :, 0] == np.minimum(wanted, ends[..., None] - 1)).all()
    assert (batch.mask[:, :, 0] == real[..., None]).all()


def test_windows_repeat_the_first_frame_to_the_left() -> None:
    batch = stream(replace(SAMPLING, window=3)).batch(0, 100)
    wanted = batch.rows[..., None] + np.array([-2, -1, 0])
    first = starts_of(batch.rows)[..., None]
    assert (numbers(batch.images) == np.maximum(wanted, first)).all()
    assert (batch.timestep_mask == (wanted >= first)).all()


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("ranks", [2, 3, 12])
def test_ranks_share_the_batch_without_overlap(step: int, ranks: int) -> None:
    whole = stream().batch(step, 12)
    parts = [stream().batch(step, 12, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert [text for part in parts for text in part.instructions] == whole.instructions
    assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match="10 contexts a batch cannot be shared by 4 processes"):
        stream().batch(0, 10, rank=0, ranks=4)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    jittered = replace(SAMPLING, augmentation=OCTO)
    one, other = stream(jittered), pickle.loads(pickle.dumps(stream(jittered)))
    for step in (5, 0, 3):
        other.batch(step, 8)
    assert equal(one.batch(4, 8), other.batch(4, 8))
    assert not equal(one.batch(4, 8), one.batch(5, 8))
    assert not equal(one.batch(4, 8), stream(jittered, seed=1).batch(4, 8))


def test_images_in_memory_are_the_images_decoded_when_asked_for() -> None:
    sampling = replace(SAMPLING, augmentation=OCTO, view_shift=2)
    mixture = Mixture([NumberedReader(LENGTHS, robot=ROBOT)])
    held = stream(sampling, pictures=InMemory(mixture, 24, 2))
    assert equal(stream(sampling).batch(1, 30), held.batch(1, 30))


def test_pictures_kept_in_a_folder_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture([NumberedReader(LENGTHS, robot=ROBOT), NumberedReader([3, 4], robot=ROBOT)])
    rows = range(sum(LENGTHS))
    plain = InMemory(mixture, 24, 2)
    kept = InMemory(mixture, 24, 2, folder=tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 2 * len(CAMERAS)
    decode = Decoded.__call__

    def few(decoded: Decoded, dataset: int, camera: int, rows: Sequence[int]) -> Sequence[np.ndarray]:
        assert len(rows) <= 3, "only what names a file is looked at again"
        return decode(decoded, dataset, camera, rows)

    monkeypatch.setattr(Decoded, "__call__", few)
    again = InMemory(mixture, 24, 2, folder=tmp_path / "pictures")
    for camera in range(len(CAMERAS)):
        np.testing.assert_array_equal(kept(0, camera, rows), plain(0, camera, rows))
        np.testing.assert_array_equal(again(0, camera, rows), plain(0, camera, rows))
    with pytest.raises(AssertionError, match="only what names a file"):
        InMemory(mixture, 24, 1, folder=tmp_path / "pictures")  # another margin is other pictures
    assert len(list((tmp_path / "pictures").iterdir())) == 2 * len(CAMERAS)


class Turned(NumberedReader):
    """The same digest and cameras, but the cameras' pictures are others: a robot file can say so."""

    def images(self, camera: str, rows: Sequence[int]) -> list[np.ndarray]:
        return [image[::-1] for image in super().images(camera, rows)]


def test_kept_pictures_are_of_these_cameras_and_whole(tmp_path: Path) -> None:
    rows, folder = range(sum(LENGTHS)), tmp_path / "pictures"
    for reader in (NumberedReader(LENGTHS, robot=ROBOT), Turned(LENGTHS, robot=ROBOT)):
        found = InMemory(Mixture([reader]), 24, 2, folder=folder)
        np.testing.assert_array_equal(found(0, 0, rows), InMemory(Mixture([reader]), 24, 2)(0, 0, rows))
    for damage in (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not an array"):
        for file in folder.iterdir():
            file.write_bytes(damage(file.read_bytes()))
        again = InMemory(Mixture([reader]), 24, 2, folder=folder)
        np.testing.assert_array_equal(again(0, 0, rows), InMemory(Mixture([reader]), 24, 2)(0, 0, rows))


class Drawn(NumberedReader):
    """Every image is the same noise, so that what augmentation did to it shows."""

    def images(self, camera: str, rows) -> list[np.ndarray]:
        noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
        return [noise for _ in rows]


def test_an_observation_is_augmented_as_its_initial_image_and_each_context_in_its_own_way() -> None:
    batch = stream(replace(SAMPLING, augmentation=OCTO, view_shift=3), readers=[Drawn(LENGTHS, robot=ROBOT)]).batch(
        0, 40
    )
    assert (batch.images == batch.initial_images[:, None, None]).all()
    assert len({image.tobytes() for image in batch.initial_images[:, 0]}) == 40
    assert all((pair[0] != pair[1]).any() for pair in batch.initial_images)  # each camera has its own seed


@pytest.mark.parametrize(
    ("camera", "surrounded"),
    [
        (Camera("room", 32, 32, (4, 4, 24, 24)), True),
        (Camera("at the edge", 32, 32, (0, 4, 24, 24)), False),
        (Camera("resized", 32, 32, (2, 2, 28, 28), "both"), False),
    ],
)
def test_a_view_to_be_shifted_shows_its_surroundings_or_repeats_its_edge(camera: Camera, surrounded: bool) -> None:
    image = Drawn([1]).images("", [0])[0]
    seen, view = view_with_margin(camera, image, 24, 3), resize(camera.view(image), 24)
    assert seen.shape == (30, 30, 3)
    assert (seen[3:-3, 3:-3] == view).all()
    around = image[1:31, 1:31] if surrounded else np.pad(view, [(3, 3), (3, 3), (0, 0)], mode="edge")
    assert (seen == around).all()
    assert (view_with_margin(camera, image, 24, 0) == view).all()


def test_validation_sees_what_a_robot_sees() -> None:
    jittered = replace(SAMPLING, augmentation=OCTO, view_shift=3)
    held_back = stream(jittered, readers=[Drawn(LENGTHS, robot=ROBOT)], validation=True).batch(0, 20)
    plain = Drawn([1]).images("", [0])[0][4:28, 4:28]
    assert (held_back.images == plain).all()
    assert set(held_back.instructions) <= {"task 0", "task 1", "task 2"}


def test_training_and_validation_never_share_an_episode() -> None:
    reader = NumberedReader(LENGTHS, robot=ROBOT)
    trained, held_back = (stream(validation=v) for v in (False, True))
    seen = [
        {trained.draws[i].episode for i in range(2000)},
        {held_back.draws[i].episode for i in range(2000)},
    ]
    assert seen[1] == set(reader.validation_episodes.tolist())
    assert seen[0] == set(range(len(LENGTHS))) - seen[1]


@pytest.mark.parametrize(("rephrase", "heard"), [(0.0, {"task 0"}), (1.0, {"task 0", "do zero", "zero please"})])
def test_an_instruction_is_said_in_its_paraphrases_as_often_as_asked(rephrase: float, heard: set[str]) -> None:
    batch = stream(replace(SAMPLING, rephrase=rephrase)).batch(0, 400)
    said = Counter(batch.instructions)
    zero = {text: count for text, count in said.items() if "zero" in text or text == "task 0"}
    assert set(zero) == heard
    assert min(zero.values()) > 0.2 * sum(zero.values())


def test_steps_nobody_labelled_are_left_out_unless_asked_for() -> None:
    silent = NumberedReader(LENGTHS, robot=ROBOT, silent=range(0, 41, 2))
    assert "" not in stream(readers=[silent]).batch(0, 200).instructions
    assert "" in stream(replace(SAMPLING, unlabelled=True), readers=[silent]).batch(0, 200).instructions
    with pytest.raises(UserError, match="numbers has no episode to train on: 41 in all"):
        stream(readers=[NumberedReader(LENGTHS, robot=ROBOT, silent=range(41))])


def test_episodes_with_absurd_actions_are_left_out() -> None:
    batch = stream(replace(SAMPLING, most_action=60.0)).batch(0, 300)
    assert batch.actions.max() <= 60.5
    assert batch.rows.max() > 40


def test_goals_lie_ahead_in_their_episode() -> None:
    batch = stream(replace(SAMPLING, goal_images=0.5)).batch(0, 300)
    goals = numbers(batch.goal_images)
    ends = starts_of(batch.rows) + np.array(LENGTHS)[np.searchsorted(np.cumsum(LENGTHS), batch.rows, side="right")] - 1
    assert (goals[~batch.goal_shown] == ends[~batch.goal_shown]).all()
    assert 0.4 < batch.goal_shown.mean() < 0.6
    assert (goals >= batch.rows).all()
    assert (starts_of(goals) == starts_of(batch.rows)).all()
    assert (goals > batch.rows).any()


def test_robots_with_fewer_actions_are_padded_and_the_padding_does_not_count() -> None:
    readers = [NumberedReader(LENGTHS, robot=ROBOT), NumberedReader(LENGTHS, name="two", robot=OTHER)]
    batch = stream(readers=readers).batch(0, 300)
    assert batch.actions.shape[-1] == 3
    padded = batch.datasets == 1
    assert padded.any()
    assert (batch.actions[padded][..., 2] == 0).all()
    assert not batch.mask[padded][..., 2].any()
    assert batch.mask[~padded][..., 2].any()


def test_datasets_are_mixed_by_weight_times_size() -> None:
    readers = [NumberedReader([10] * 40, name="a", robot=ROBOT), NumberedReader([10] * 10, name="b", robot=ROBOT)]
    mixture = Mixture(readers, [1.0, 2.0])
    assert mixture.shares == pytest.approx([400 / 600, 200 / 600])
    batch = stream(readers=readers, weights=[1.0, 2.0]).batch(0, 3000)
    assert np.mean(batch.datasets == 1) == pytest.approx(1 / 3, abs=0.04)


# Mixtures


def test_a_mixture_tells_what_it_is() -> None:
    readers = [NumberedReader([10] * 4, name="a", robot=ROBOT), NumberedReader([10], name="b", robot=OTHER)]
    rows = json.loads(json.dumps(Mixture(readers, [1.0, 0.5]).to_json()))
    assert [(row["name"], row["robot"], row["weight"], row["frames"]) for row in rows] == [
        ("a", "point", 1.0, 40),
        ("b", "other", 0.5, 10),
    ]
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_datasets_of_one_robot_join_their_limits_and_others_stay_apart() -> None:
    wider = replace(ROBOT, action_low=(-1.0, 0.0, -1.0))
    readers = [NumberedReader([9], robot=ROBOT), NumberedReader([9], robot=wider), NumberedReader([9], robot=OTHER)]
    robots = Mixture(readers).embodiments
    assert set(robots) == {"point", "other"}
    assert robots["point"].action_low == (-1.0, -0.1, -1.0)
    assert robots["point"].action_high == ROBOT.action_high


@pytest.mark.parametrize("change", [{"control_hz": 5.0}, {"cameras": CAMERAS[:1]}, {"gripper": None}])
def test_two_robots_of_one_name_are_refused(change: dict) -> None:
    readers = [NumberedReader([9], robot=ROBOT), NumberedReader([9], name="b", robot=replace(ROBOT, **change))]
    with pytest.raises(UserError, match="b comes from the robot 'point', like another dataset .* pass --robot"):
        _ = Mixture(readers).embodiments


@pytest.mark.parametrize("weights", [[0.0], [-1.0], [float("nan")], [1.0, 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weight"):
        Mixture([NumberedReader([9])], weights)
