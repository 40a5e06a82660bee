"""LIBERO's published demonstrations, read from HDF5 files that h5py wrote in their layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.reader import check_reader
from tests.data.hdf5_files import OWN_SENTENCE, SENTENCE, TASK, Motion, folder, motion, write
from tests.data.numbered import number_in, numbered_images
from tests.data.rlds_files import group, image, steps, tensor, text, write_dataset

from hypervla.cli import main
from hypervla.contracts import Episode, UserError
from hypervla.data import manifest, oxe
from hypervla.data.convert import convert
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_writer import LeRobotWriter
from hypervla.data.libero_hdf5 import LiberoDemos
from hypervla.data.opening import NOTHING, check, kind_of, open_dataset, open_mixture
from hypervla.data.staged import stage_episode
from hypervla.embodiment import LIBERO_PANDA

h5py = pytest.importorskip("h5py")

CAMERAS = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERVLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    return folder(tmp_path / "libero_object")


def sized(size: int) -> Any:
    """LIBERO's robot with images of this size."""
    cameras = tuple(replace(camera, height=size, width=size) for camera in LIBERO_PANDA.cameras)
    return replace(LIBERO_PANDA, cameras=cameras)


def assert_seen_before(episode: Episode, wanted: Motion, skipped: int) -> None:
    """The episode has all but the first `skipped` actions, each with what was true before it."""
    np.testing.assert_array_equal(episode.actions, wanted.actions[skipped:].astype(np.float32))
    proprio = np.hstack([wanted.poses, wanted.fingers]).astype(np.float32)
    np.testing.assert_array_equal(episode.proprio, proprio[skipped:-1])
    for camera, key in CAMERAS.items():
        np.testing.assert_array_equal(episode.images[camera], wanted.images[key][skipped:-1])


# Reading


def test_files_alone_and_together_are_readers(demos: Path) -> None:
    together, alone = open_dataset(demos), open_dataset(demos / f"{TASK}_demo.hdf5")
    check_reader(together, episodes=range(4))
    check_reader(alone, episodes=range(2))
    assert (len(together), len(alone)) == (4, 2)
    assert together.name == "libero_object"
    assert together.embodiment == sized(16)
    assert together.digest != alone.digest
    assert [kind_of(path) for path in (demos, demos / f"{TASK}_demo.hdf5", demos.parent)] == ["hdf5"] * 2 + ["lerobot"]


@pytest.mark.parametrize("after", [True, False])
def test_an_action_comes_with_what_was_seen_before_it(tmp_path: Path, after: bool) -> None:
    motions = [motion(length, length) for length in (6, 2, 9)]
    reader = LiberoDemos(write(tmp_path / f"{TASK}_demo.hdf5", motions, after=after))
    assert len(reader) == 3
    for episode, wanted in zip(reader, motions, strict=True):
        assert_seen_before(episode, wanted, skipped=int(after))
    assert [episode.source for episode in reader] == [
        {"file": f"{TASK}_demo.hdf5", "demo": f"demo_{number}", "lag": int(after)} for number in range(3)
    ]


def test_demonstrations_come_by_their_numbers(tmp_path: Path) -> None:
    reader = LiberoDemos(write(tmp_path / "x_demo.hdf5", [motion(3, seed) for seed in range(12)], after=False))
    assert [episode.source["demo"] for episode in reader] == [f"demo_{number}" for number in range(12)]


def test_tasks_are_called_as_the_evaluations_call_them(demos: Path, tmp_path: Path) -> None:
    (demos / f"._{TASK}_demo.hdf5").write_bytes(b"what another system left there")
    reader = open_dataset(demos)
    said = [reader.instruction(int(row)) for row in reader.starts[:-1]]
    assert said == ["turn on the stove"] * 2 + [SENTENCE] * 2
    renamed = LiberoDemos(write(tmp_path / "milk.hdf5", [motion(3, 0)], after=True))
    assert renamed.instruction(0) == OWN_SENTENCE
    about = {"problem_info": json.dumps({"language_instruction": ['"', "put ", "it down", '"']})}
    parts = LiberoDemos(write(tmp_path / "parts.h5", [motion(3, 0)], after=True, about=about))
    assert parts.instruction(0) == "put it down"
    nothing = write(tmp_path / "nothing.h5", [motion(3, 0)], after=False)
    with pytest.raises(UserError, match="nothing.h5 does not say what is to be done: call it TASK_demo.hdf5"):
        LiberoDemos(nothing)


def test_cameras_can_be_chosen(demos: Path) -> None:
    reader = open_dataset(demos, replace(NOTHING, cameras=("wrist_image",)))
    assert [camera.name for camera in reader.embodiment.cameras] == ["wrist_image"]
    check_reader(reader)


def test_steps_that_ask_for_nothing_are_left_out_on_demand(tmp_path: Path) -> None:
    actions = np.zeros((8, 7))
    actions[[2, 4, 6], 0] = 0.5
    moved = motion(8, 0)
    still = replace(motion(3, 1), actions=np.zeros((3, 7)))
    path = write(tmp_path / "x_demo.hdf5", [replace(moved, actions=actions), still], after=False)
    assert len(LiberoDemos(path).actions) == 11
    reader = open_dataset(path, replace(NOTHING, drop_no_ops=True))
    check_reader(reader)
    assert isinstance(reader, LiberoDemos)
    assert (len(reader), len(reader.actions), reader.dropped) == (1, 3, 8)
    np.testing.assert_array_equal(reader.episode(0).images["image"], moved.images["agentview_rgb"][[2, 4, 6]])
    only_still = write(tmp_path / "y_demo.hdf5", [still], after=False)
    with pytest.raises(UserError, match="no demonstration in which the robot is told to do anything"):
        LiberoDemos(only_still, drop_no_ops=True)


def test_options_of_other_formats_are_refused(demos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whose robot is known: leave --robot and --rows out"):
        open_dataset(demos, replace(NOTHING, rows=tmp_path / "rows.toml"))
    with pytest.raises(UserError, match="no HDF5 file of LIBERO: --drop-no-ops is for those"):
        open_dataset(tmp_path, replace(NOTHING, drop_no_ops=True))


# Other formats hold the same


@pytest.mark.parametrize("images", ["image", "video"])
def test_a_recording_of_ours_comes_back_through_hdf5(tmp_path: Path, images: str) -> None:
    robot, motions = sized(32), []
    for seed, length in enumerate((5, 8)):
        numbers = {key: numbered_images(100 * seed + 50 * k, length + 1) for k, key in enumerate(CAMERAS.values())}
        motions.append(replace(motion(length, seed), images=numbers))
    writer = LeRobotWriter(tmp_path / "recorded", robot, images=images)
    for seed, each in enumerate(motions):
        episode = Episode(
            instruction=SENTENCE,
            images={camera: each.images[key][:-1] for camera, key in CAMERAS.items()},
            actions=each.actions.astype(np.float32),
            proprio=np.hstack([each.poses, each.fingers])[:-1].astype(np.float32),
        )
        stage_episode(tmp_path / str(seed), episode, writer.fps, images=images)
        writer.add(tmp_path / str(seed))
    writer.finish(paraphrases={}, about={})
    recorded = LeRobotDataset(tmp_path / "recorded")
    convert(LiberoDemos(write(tmp_path / f"{TASK}_demo.hdf5", motions, after=False)), tmp_path / "out", images=images)
    check(tmp_path / "out")
    found = LeRobotDataset(tmp_path / "out")
    assert found.embodiment == recorded.embodiment
    assert found.features == recorded.features
    assert found.fps == recorded.fps == 20
    np.testing.assert_array_equal(found.starts, recorded.starts)
    np.testing.assert_array_equal(found.actions, recorded.actions)
    np.testing.assert_array_equal(found.proprio, recorded.proprio)
    assert found.episode_instructions == recorded.episode_instructions
    rows = range(found.frames)
    for camera, key in CAMERAS.items():
        pixels = np.concatenate([each.images[key][:-1] for each in motions])
        if images == "image":
            np.testing.assert_array_equal(found.images(camera, rows), pixels)
        np.testing.assert_array_equal(found.images(camera, rows), recorded.images(camera, rows))
        assert [number_in(seen) for seen in found.images(camera, rows)] == [number_in(seen) for seen in pixels]


LIBERO_STEPS = {
    "action": tensor("float32", 7),
    "is_first": tensor("bool"),
    "is_last": tensor("bool"),
    "language_instruction": text(),
    "observation": group(
        {
            "image": image(16, 16, 3),
            "wrist_image": image(16, 16, 3),
            "state": tensor("float32", 8),
            "joint_state": tensor("float32", 7),
        }
    ),
}
"""Features of OpenVLA's four RLDS datasets, but for the images' size."""


def rlds(root: Path, motions: list[Motion], name: str) -> Path:
    """The motions as OpenVLA publishes them: images after half a turn, here without loss; the folder's own name."""
    episodes = []
    for each in motions:
        count = len(each.actions)
        state = np.hstack([each.poses, each.fingers])[:-1]
        episodes.append(
            {
                "steps/action": each.actions.astype(np.float32).ravel().tolist(),
                "steps/is_first": [int(t == 0) for t in range(count)],
                "steps/is_last": [int(t == count - 1) for t in range(count)],
                "steps/language_instruction": [SENTENCE.encode()] * count,
                "steps/observation/state": state.astype(np.float32).ravel().tolist(),
                "steps/observation/joint_state": each.joints[:-1].astype(np.float32).ravel().tolist(),
                **{
                    f"steps/observation/{camera}": [png(pixels[::-1, ::-1]) for pixels in each.images[key][:-1]]
                    for camera, key in CAMERAS.items()
                },
            }
        )
    made = write_dataset(root, steps(LIBERO_STEPS), {"train": [episodes]}, name=name)
    (root / name).rename(root / f"{name}_no_noops")
    return root / f"{name}_no_noops" / made.name


def png(pixels: np.ndarray) -> bytes:
    from hypervla.data.pictures import encode_picture

    return encode_picture(np.ascontiguousarray(pixels))


@pytest.mark.parametrize("name", ["libero_spatial", "libero_object", "libero_goal", "liber_o10"])
def test_openvlas_rlds_is_the_same_robot_and_the_same_numbers(tmp_path: Path, name: str) -> None:
    motions = [motion(length, length) for length in (6, 3)]
    theirs = open_dataset(rlds(tmp_path / "rlds", motions, name))
    ours = open_dataset(write(tmp_path / f"{TASK}_demo.hdf5", motions, after=False))
    check_reader(theirs)
    assert theirs.embodiment == ours.embodiment == sized(16)
    for found, wanted, each in zip(theirs, ours, motions, strict=True):
        np.testing.assert_array_equal(found.actions, wanted.actions)
        np.testing.assert_array_equal(found.proprio, wanted.proprio)
        assert found.instruction == wanted.instruction == SENTENCE
        for camera in theirs.embodiment.cameras:
            np.testing.assert_array_equal(found.images[camera.name], wanted.images[camera.name])
            stored = each.images[CAMERAS[camera.name]][:-1, ::-1, ::-1]
            np.testing.assert_array_equal(camera.view(found.images[camera.name]), stored)
    (tmp_path / "rows.toml").write_text(oxe.SHIPPED.read_text())
    both = [tmp_path / "rlds", tmp_path / f"{TASK}_demo.hdf5"]
    mixed = open_mixture(both, told=replace(NOTHING, rows=tmp_path / "rows.toml"))
    assert list(mixed.embodiments) == ["libero-panda"], "each option speaks of the datasets of its kind"
    convert(theirs, tmp_path / "out", images="image")
    again = LeRobotDataset(tmp_path / "out")
    assert again.embodiment == theirs.embodiment
    np.testing.assert_array_equal(again.images("image", range(9)), theirs.images("image", range(9)))


# Commands


def test_the_commands_take_hdf5_files(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "info", str(demos), "--sheet", str(tmp_path / "sheet.png")])
    assert "libero-panda" in (said := capsys.readouterr().out)
    assert "entry 6, open -1, closed 1" in said
    main(["data", "check", str(demos), "--manifest"])
    assert "10 of wrist_image: complete" in capsys.readouterr().out
    out = tmp_path / "out"
    main(["data", "convert", str(demos), "--out", str(out), "--to", "v3.0", "--drop-no-ops"])
    said = capsys.readouterr().out
    assert "Left out 0 steps that ask for nothing." in said
    assert "out: 4 episodes, 10 frames, LeRobot v3.0." in said
    main(["data", "check", str(out)])
    with pytest.raises(UserError, match="no LeRobot dataset: its statistics are made when it is opened"):
        from hypervla.data.opening import write_statistics

        write_statistics(demos)


# Damage


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    with h5py.File(path, "a") as file:
        change(file["data"])


def stored(name: str, values: Any) -> Callable[[Any], None]:
    """Puts other values in the place of a dataset of demo_1."""

    def change(data: Any) -> None:
        del data["demo_1"][name]
        data["demo_1"].create_dataset(name, data=values)

    return change


def unwritten(data: Any) -> None:
    del data["demo_1/obs/agentview_rgb"]
    data["demo_1"].create_dataset("obs/agentview_rgb", (4, 16, 16, 3), np.uint8)


def attribute(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda data: data.attrs.__setitem__(name, value)


NOT_A_NUMBER = np.where(np.arange(28).reshape(4, 7) == 9, np.nan, 0.5)
FAULTS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "no data": (lambda data: data.file.move("data", "date"), "is damaged .*data"),
    "no demonstrations": (lambda data: [data.pop(name) for name in list(data)], "has 0 of 2 demonstrations"),
    "one fewer": (lambda data: data.pop("demo_0"), "has 1 of 2 demonstrations"),
    "another group": (lambda data: data.move("demo_0", "first"), "has 'first' in it"),
    "no actions": (lambda data: data["demo_1"].pop("actions"), "demo_1 has no dataset 'actions'"),
    "no poses": (lambda data: data["demo_1/obs"].pop("ee_states"), "demo_1 has no dataset 'obs/ee_states'"),
    "no images": (lambda data: data["demo_1/obs"].pop("eye_in_hand_rgb"), "no dataset 'obs/eye_in_hand_rgb'"),
    "a group for images": (
        lambda data: (data["demo_1/obs"].pop("agentview_rgb"), data["demo_1/obs"].create_group("agentview_rgb")),
        "no dataset 'obs/agentview_rgb'",
    ),
    "six actions": (stored("actions", np.ones((4, 6))), r"demo_1: 'actions' should be \(T, 7\) numbers, but \(4, 6\)"),
    "text": (stored("actions", np.full((4, 7), b"x")), r"demo_1: 'actions' should be \(T, 7\) numbers, but .* \|S1"),
    "no steps": (stored("actions", np.ones((0, 7))), r"'actions' should be \(T, 7\) numbers, but \(0, 7\)"),
    "more actions": (stored("actions", np.ones((5, 7))), "demo_1 has 5 actions, but says it has 4 samples"),
    "fewer poses": (stored("obs/ee_states", np.ones((3, 6))), r"'obs/ee_states' should be \(4, 6\) numbers"),
    "short states": (stored("states", np.ones((4, 5))), r"'states' should be \(4, S\) numbers, but \(4, 5\)"),
    "fewer images": (stored("obs/agentview_rgb", np.ones((3, 16, 16, 3), np.uint8)), r"should be \(4, height, width"),
    "float images": (stored("obs/agentview_rgb", np.ones((4, 16, 16, 3))), r"uint8, but .* float64 came"),
    "smaller images": (stored("obs/agentview_rgb", np.ones((4, 8, 8, 3), np.uint8)), "demo_1 has images of 8×8 and"),
    "images never written": (unwritten, "demo_1: the values of 'obs/agentview_rgb' are not in the file"),
    "NaN": (stored("actions", NOT_A_NUMBER), "demo_1: 'actions' holds NaN or infinity"),
    "infinite poses": (stored("obs/ee_states", np.full((4, 6), np.inf)), "'obs/ee_states' holds NaN or infinity"),
    "no JSON": (attribute("problem_info", "{no"), "problem_info is no JSON with a language_instruction"),
    "another JSON": (attribute("problem_info", "[1]"), "problem_info is no JSON with a language_instruction"),
    "a number": (attribute("problem_info", 7), "problem_info is no JSON with a language_instruction"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_refused_in_a_sentence_that_names_it(tmp_path: Path, fault: str) -> None:
    change, wanted = FAULTS[fault]
    path = write(tmp_path / "milk.hdf5", [motion(4, 0), motion(4, 1)], after=True)
    edit(path, change)
    with pytest.raises(UserError) as refusal:
        check(path)
    said = str(refusal.value)
    assert re.search(wanted, said), said
    assert str(path) in said
    assert "\n" not in said


def test_what_is_no_whole_hdf5_file_is_refused(demos: Path) -> None:
    path = demos / f"{TASK}_demo.hdf5"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"no HDF5 at all", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{TASK}_demo.hdf5 is no HDF5 file, or not all of one"):
            open_dataset(demos)


def test_a_manifest_finds_a_changed_pixel(demos: Path) -> None:
    check(demos, manifest=True)
    edit(demos / f"{TASK}_demo.hdf5", lambda data: data["demo_0/obs/agentview_rgb"].write_direct(
        np.zeros((4, 16, 16, 3), np.uint8)))  # fmt: skip
    for look in (open_dataset, check):
        with pytest.raises(UserError, match=f"{TASK}_demo.hdf5 .*{manifest.NAME}"):
            look(demos)
    with pytest.raises(UserError, match="is one file, but a manifest is of a folder"):
        check(demos / f"{TASK}_demo.hdf5", manifest=True)
