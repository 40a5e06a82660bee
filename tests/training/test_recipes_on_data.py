"""Recipes on data that nobody here recorded: BridgeData as published, and a LeRobot dataset without a word of ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import tiny

from hypervla import checkpoint, cli
from hypervla.contracts import UserError
from hypervla.data import manifest
from hypervla.data.convert import convert
from hypervla.data.opening import open_dataset, open_mixture, split_weight
from hypervla.models.action_head import LinearHead, ReleasedHead
from hypervla.runtime.compiler import load
from hypervla.training.loop import train
from hypervla.training.recipes import paper, recipe, small


@pytest.fixture(scope="module")
def bridge(shared_data: Path) -> Path:
    return shared_data / "bridge_dataset"


def test_bridge_actions_are_the_differences_of_reached_states(bridge: Path) -> None:
    """Worked out by hand from the stored states of the first two steps and of the last two of the last episode."""
    actions = open_dataset(bridge).actions
    first = [-0.0003134, -0.0005657, -0.0004890, -0.0009390, 0.0028543, 0.0002469, 1]
    last = [-0.0029045, -0.0026717, 0.0234745, 0.0482371, -0.0266617, -0.0041982, 0]
    np.testing.assert_allclose(actions[[0, 224]], [first, last], atol=2e-7)


def test_the_papers_recipe_trains_on_bridge(bridge: Path, text_folder, vision_folder, tmp_path: Path) -> None:
    """Its own sampling, losses and optimizer; the backbones are tiny, and read 24² pixels."""
    mixture = open_mixture([bridge])
    published = paper(mixture.readers[0].embodiment)
    assert published.model.head == ReleasedHead(horizon=4, action_size=7, gripper_index=6)
    model = tiny.paper_shaped(text_folder, vision_folder, head=published.model.head)
    sampling = replace(published.sampling, image_size=24)
    chosen = replace(published, model=model, sampling=sampling, steps=3, batch_contexts=8)
    train(chosen, mixture, tmp_path / "run", workers=1)
    (state,) = (tmp_path / "run/resume").glob("*-state.safetensors")
    torch.manual_seed(chosen.seed)
    before, after = model.build().trained_parameters(), load_file(state)
    moved = [name for name, value in before.items() if not torch.equal(after[f"weights/{name}"], value)]
    assert {name.split(".")[0] for name in moved} == {"backbone", "hypernetwork"}
    facts = checkpoint.read_card(tmp_path / "run").provenance
    assert facts["samples"] == 24
    assert [(row["name"], row["episodes"], row["frames"]) for row in facts["datasets"]] == [("bridge_dataset", 25, 225)]


@pytest.fixture(scope="module")
def foreign(bridge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot dataset that says no more of its robot than LeRobot does."""
    root = tmp_path_factory.mktemp("foreign") / "kitchen"
    convert(open_dataset(bridge), root)
    for own in (root / "meta/hypervla.json", root / manifest.NAME):
        own.unlink()
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"robot_type": "somebody's arm"}))
    return root


def test_the_small_recipe_fits_itself_to_the_data(foreign: Path) -> None:
    robot = open_dataset(foreign).embodiment
    fitted = recipe("small", robot)
    assert (fitted.model.cameras, fitted.model.policy.proprio_size) == (1, 7)
    assert fitted.model.head == LinearHead(horizon=4, action_size=7)
    assert small(replace(robot, control_hz=30.0)).model.head.horizon == 12


def test_a_mixture_trains_from_the_command_line(
    foreign: Path, bridge: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--data", f"{foreign}:1.0", "--data", f"{bridge}:0.3", "--out", str(out)]
    cli.main(["train", "small", *words, "--steps", "2", "--batch-contexts", "2", "--workers", "1"])
    said = capfd.readouterr()
    table = [line for line in said.err.splitlines() if "│" in line]
    assert ["kitchen" in table[0], "76.9%" in table[0]] == [True, True]
    assert ["bridge_dataset" in table[1], "23.1%" in table[1]] == [True, True]
    assert "step 2/2" in said.out
    # Two robots: their conventions are in the checkpoint, beside it as TOML, and each compiles for itself.
    assert list(checkpoint.read_card(out).robots) == ["somebody's arm", "bridge_dataset"]
    assert (out / "robots/bridge_dataset.toml").is_file()
    policy = load(out, robot="bridge_dataset").compile("put it down", np.zeros((64, 64, 3), np.uint8))
    assert policy.embodiment == open_dataset(bridge).embodiment
    with pytest.raises(UserError, match="knows several robots: choose one of somebody's arm, bridge_dataset"):
        load(out)


def test_a_robot_file_says_what_the_data_does_not(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "arm.toml").write_text(
        'name = "mine"\ngripper = { index = 6, open = 1.0, closed = 0.0 }\n[cameras.primary]\nflip = "both"\n'
    )
    words = ["--data", str(foreign), "--robot", str(tmp_path / "arm.toml"), "--out", str(tmp_path / "run")]
    cli.main(["train", "small", *words, "--steps", "1", "--batch-contexts", "2"])
    model = load(tmp_path / "run")
    assert (model.embodiment.name, model.embodiment.gripper.index) == ("mine", 6)
    assert model.embodiment.cameras[0].flip == "both"
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    assert (model.embodiment.cameras[0].view(image) == image[::-1, ::-1]).all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda stats: None, "stats.json is missing: make it with `hypervla data stats"),
        (lambda stats: stats["action"]["mean"].__setitem__(0, 1.0), "is of other data.*`hypervla data stats"),
    ],
    ids=["missing", "foreign"],
)
def test_statistics_that_are_missing_or_foreign_are_refused_and_can_be_made(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage, said: str
) -> None:
    import re
    import shutil

    root = shutil.copytree(foreign, tmp_path / "copy")
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    path.unlink()
    if damage(stats) is None and "missing" not in said:
        path.write_text(json.dumps(stats))
    with pytest.raises(UserError, match=said):
        open_mixture([root]).robots("normal")
    cli.main(["data", "stats", str(root)])
    assert re.search(r"Wrote .*stats\.json", capsys.readouterr().out)
    assert open_mixture([root]).robots("normal")


def test_a_named_mixture_names_what_is_missing(bridge: Path) -> None:
    with pytest.raises(UserError, match=r"lacks 12 of the 13 datasets of oxe_hypervla \(fractal20220817_data, "):
        open_mixture([bridge.parent], named="oxe_hypervla")
    with pytest.raises(UserError, match="There is no mixture 'soup'"):
        open_mixture([bridge.parent], named="soup")


@pytest.mark.parametrize(
    ("word", "parts"),
    [("a", ("a", 1.0)), ("a:0.3", ("a", 0.3)), ("hub/name:2", ("hub/name", 2.0)), ("c:/data", ("c:/data", 1.0))],
)
def test_a_weight_stands_behind_a_colon(word: str, parts: tuple) -> None:
    assert split_weight(word) == parts


@pytest.mark.parametrize("word", ["a:0", "a:-1", "a:inf", "a:nan"])
def test_a_weight_is_a_number_above_zero(word: str) -> None:
    with pytest.raises(UserError, match="a weight is a number above 0"):
        split_weight(word)


# What a checkpoint, a run and the data say of one robot must agree


def robot_file(folder: Path, text: str) -> list[str]:
    (folder / "robot.toml").write_text(text)
    return ["--robot", str(folder / "robot.toml")]


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        cli.main(words)
    return capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_is_not_continued_on_a_robot_seen_otherwise(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--steps", "1", "--batch-contexts", "2"]
    cli.main(["train", "small", "--data", str(foreign), "--out", str(tmp_path / "run"), *few])
    turned = robot_file(tmp_path, '[cameras.primary]\nflip = "both"\n')
    words = ["train", "small", "--data", str(foreign), *turned]
    said = fails(capsys, *words, "--out", str(tmp_path / "next"), "--init", str(tmp_path / "run"), *few)
    assert "knows the robot 'somebody's arm' with other cameras than the data" in said
    said = fails(capsys, *words, "--out", str(tmp_path / "run"), "--resume", "--steps", "2", "--batch-contexts", "2")
    assert "holds another run: its conventions is" in said


def test_renamed_cameras_are_the_ones_that_are_named(bridge: Path, tmp_path: Path) -> None:
    from hypervla.data.opening import Told
    from hypervla.data.robot_file import read_robot

    two = tmp_path / "two"
    convert(open_dataset(bridge, Told(cameras=("primary", "secondary"))), two)
    robot_file(tmp_path, '[cameras.secondary]\nfeature = "observation.images.primary"\n')
    renamed = open_dataset(two, Told(read_robot(tmp_path / "robot.toml")))
    assert [camera.name for camera in renamed.embodiment.cameras] == ["secondary"]
    np.testing.assert_array_equal(renamed.images("secondary", [3]), open_dataset(two).images("primary", [3]))
    with pytest.raises(UserError, match="is converted under its own feature names"):
        convert(renamed, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    convert(open_dataset(two, Told(cameras=("secondary",))), tmp_path / "one")
    assert [camera.name for camera in open_dataset(tmp_path / "one").embodiment.cameras] == ["secondary"]
    assert "observation.images.primary" not in json.loads((tmp_path / "one/meta/info.json").read_text())["features"]


def test_rows_that_describe_nothing_are_refused(bridge: Path, foreign: Path, tmp_path: Path) -> None:
    from hypervla.data.opening import Told

    (tmp_path / "rows.toml").write_text('[bridge]\nhz = 9\ncameras = { primary = "image_0" }\narm = ["action[0:6]"]\n')
    with pytest.raises(UserError, match="has rows for bridge, but none for bridge_dataset"):
        open_dataset(bridge, Told(rows=tmp_path / "rows.toml"))
    with pytest.raises(UserError, match="is no RLDS dataset: --rows describes those"):
        open_dataset(foreign, Told(rows=tmp_path / "rows.toml"))


@pytest.mark.parametrize("option", [["--seed=-1"], ["--steps=0"], ["--batch-contexts=0"]])
def test_overrides_out_of_range_are_refused(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    said = fails(capsys, "train", "small", "--data", str(foreign), "--out", str(tmp_path / "run"), *option)
    assert f"{option[0].split('=')[0]} must be" in said
