"""What every EpisodeReader does. `check_reader` runs all of it; a new format needs nothing else to be believed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from hypervla.contracts import Episode, EpisodeReader, UserError


def check_reader(reader: EpisodeReader, *, episodes: Sequence[int] = (0, -1)) -> None:
    """Raise AssertionError where a reader breaks the contract; images of these `episodes` are decoded."""
    assert isinstance(reader, EpisodeReader)
    rows_count_the_steps_of_all_episodes(reader)
    numbers_are_those_of_its_robot(reader)
    every_row_has_an_instruction(reader)
    validation_is_a_part_of_the_episodes(reader)
    for index in dict.fromkeys(range(len(reader))[episode] for episode in episodes):
        an_episode_is_its_rows(reader, index, reader.episode(index))
    images_come_in_the_order_asked_for(reader)
    statistics_are_those_of_the_numbers(reader)
    it_survives_the_way_to_another_process(reader)
    what_is_not_there_is_refused(reader)


def rows_count_the_steps_of_all_episodes(reader: EpisodeReader) -> None:
    assert reader.name
    assert len(reader) >= 1
    assert reader.starts.shape == (len(reader) + 1,)
    assert reader.starts[0] == 0
    assert (np.diff(reader.starts) >= 1).all(), "no episode is empty"
    assert reader.starts[-1] == len(reader.actions)


def numbers_are_those_of_its_robot(reader: EpisodeReader) -> None:
    robot = reader.embodiment
    assert reader.actions.dtype == np.float32
    assert reader.actions.shape == (reader.starts[-1], robot.action_size)
    assert np.isfinite(reader.actions).all()
    assert (reader.proprio is None) == (robot.proprio_size == 0)
    if reader.proprio is not None:
        assert reader.proprio.dtype == np.float32
        assert reader.proprio.shape == (reader.starts[-1], robot.proprio_size)
        assert np.isfinite(reader.proprio).all()
    assert len(robot.action_low) == len(robot.action_high) == robot.action_size
    assert robot.control_hz > 0


def every_row_has_an_instruction(reader: EpisodeReader) -> None:
    assert all(isinstance(reader.instruction(row), str) for row in range(int(reader.starts[-1])))
    for instruction, others in reader.paraphrases.items():
        assert isinstance(instruction, str)
        assert all(isinstance(other, str) for other in others)


def validation_is_a_part_of_the_episodes(reader: EpisodeReader) -> None:
    held_back = reader.validation_episodes
    assert held_back.dtype == np.int64
    assert len(np.unique(held_back)) == len(held_back)
    assert ((held_back >= 0) & (held_back < len(reader))).all()


def an_episode_is_its_rows(reader: EpisodeReader, index: int, episode: Episode) -> None:
    first, end = int(reader.starts[index]), int(reader.starts[index + 1])
    assert len(episode) == end - first
    assert episode.instruction == reader.instruction(first)
    np.testing.assert_array_equal(episode.actions, reader.actions[first:end])
    if reader.proprio is not None:
        np.testing.assert_array_equal(episode.proprio, reader.proprio[first:end])
    assert set(episode.images) == {camera.name for camera in reader.embodiment.cameras}
    for camera in reader.embodiment.cameras:
        assert episode.images[camera.name].shape == (end - first, camera.height, camera.width, 3)
        assert episode.images[camera.name].dtype == np.uint8
        images = reader.images(camera.name, range(first, end))
        np.testing.assert_array_equal(np.stack(images), episode.images[camera.name])


def images_come_in_the_order_asked_for(reader: EpisodeReader) -> None:
    total = int(reader.starts[-1])
    rows = np.random.default_rng(0).integers(total, size=12).tolist()
    rows[3] = rows[7]  # the same one twice
    for camera in reader.embodiment.cameras:
        together = reader.images(camera.name, rows)
        assert len(together) == len(rows)
        for row, image in zip(rows, together, strict=True):
            np.testing.assert_array_equal(image, reader.images(camera.name, [row])[0])
        assert reader.images(camera.name, []) == []


def statistics_are_those_of_the_numbers(reader: EpisodeReader) -> None:
    statistics = reader.statistics()
    numbers = {"action": reader.actions} | ({} if reader.proprio is None else {"observation.state": reader.proprio})
    for name, values in numbers.items():
        stats = {key: np.asarray(value) for key, value in statistics[name].items()}
        assert {"mean", "std", "min", "max", "q01", "q99", "count"} <= set(stats)
        assert all(value.shape == values.shape[1:] for key, value in stats.items() if key != "count")
        assert np.ravel(stats["count"]).tolist() == [len(values)]
        np.testing.assert_array_equal(stats["min"].astype(np.float32), values.min(axis=0))
        np.testing.assert_array_equal(stats["max"].astype(np.float32), values.max(axis=0))
        for low, high in (("min", "q01"), ("q01", "q99"), ("q99", "max"), ("min", "mean"), ("mean", "max")):
            assert (stats[low] <= stats[high] + 1e-6 * (1 + np.abs(stats[high]))).all(), f"{low} is below {high}"
        np.testing.assert_allclose(stats["mean"], values.mean(axis=0, dtype=np.float64), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats["std"], values.std(axis=0, dtype=np.float64), rtol=1e-4, atol=1e-5)


def it_survives_the_way_to_another_process(reader: EpisodeReader) -> None:
    twin = pickle.loads(pickle.dumps(reader))
    assert twin.name == reader.name
    assert twin.digest == reader.digest
    np.testing.assert_array_equal(twin.actions, reader.actions)
    np.testing.assert_array_equal(twin.starts, reader.starts)
    last = int(reader.starts[-1]) - 1
    for camera in reader.embodiment.cameras:
        np.testing.assert_array_equal(twin.images(camera.name, [last, 0]), reader.images(camera.name, [last, 0]))


def what_is_not_there_is_refused(reader: EpisodeReader) -> None:
    cases = [lambda: reader.episode(len(reader)), lambda: reader.images("no such camera", [0])]
    if reader.embodiment.cameras:
        camera = reader.embodiment.cameras[0].name
        cases += [lambda: reader.images(camera, [int(reader.starts[-1])]), lambda: reader.images(camera, [-1])]
    for ask in cases:
        with pytest.raises(UserError) as refusal:
            ask()
        assert "\n" not in str(refusal.value)
