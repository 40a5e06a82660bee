"""Engines side by side: what is timed, and the floor beside it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnx
import pytest
import torch
from tests import tiny
from tests.fakes import POINT
from torch import nn

from hypervla import bench_commands, cli
from hypervla.benchmark import engines, in_turn, performance
from hypervla.benchmark.engines import EAGER
from hypervla.benchmark.floor import Products, as_onnx, floors, held, products_of
from hypervla.runtime.engines import Precision


def test_calls_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    times = in_turn.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0)
    assert order[2 * in_turn.WARM_UP :] == ["a", "b"] * in_turn.ROUNDS
    assert {name: taken.steps for name, taken in times.items()} == {"a": in_turn.ROUNDS, "b": in_turn.ROUNDS}
    monkeypatch.setattr(in_turn, "LONG", 0.0)
    times = in_turn.in_turn({"a": lambda: order.append("c")}, 0.0)
    assert order.count("c") == 1 + in_turn.LONG_ROUNDS


def test_a_time_is_that_of_its_call() -> None:
    times = in_turn.in_turn({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, 0.0)
    assert 0.02 <= times["slow"].p50 <= times["slow"].p95 <= times["slow"].p99
    assert times["fast"].p50 < 0.01


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x).flatten(2).transpose(1, 2)
        return self.linear(y) @ self.linear(y).transpose(1, 2)


def test_the_floor_is_the_models_own_products() -> None:
    with torch.device("meta"):
        model, x = Small(), torch.empty(2, 3, 9, 9)
    with Products() as wanted:
        model(x)
    counts = products_of(model, (x,))
    calls = floors(counts, torch.device("cpu"), torch.float32, threads=1)
    assert set(calls) == {"PyTorch", "ONNX Runtime", "OpenVINO"}
    for call in calls.values():
        call()
    with Products() as found:
        calls["PyTorch"]()
    assert {
        name: sum(n for key, n in found.counts.items() if key[0] is name) for name in {k[0] for k in found.counts}
    } == {
        torch.ops.aten.convolution: 1,
        torch.ops.aten.mm: 2,
        torch.ops.aten.bmm: 1,
    }
    assert sum(found.counts.values()) == sum(wanted.counts.values())


def test_every_product_of_the_graph_has_weights_of_its_own() -> None:
    """Or a runtime would compute one of them and take it for all."""
    with torch.device("meta"):
        model, x = Small(), torch.empty(2, 3, 9, 9)
    data, inputs = as_onnx(products_of(model, (x,)))
    nodes = onnx.load_from_string(data).graph.node
    assert sorted(node.op_type for node in nodes) == ["Conv", "MatMul", "MatMul", "MatMul"]
    assert len({tuple(node.input) for node in nodes}) == len(nodes)
    assert {array.shape for array in inputs.values()} >= {(2, 3, 9, 9), (2, 16, 5), (2, 5, 16)}


def test_what_is_held_is_what_the_products_write() -> None:
    with torch.device("meta"):
        model, x = Small(), torch.empty(2, 3, 9, 9)
    assert held(products_of(model, (x,))) == 4 * (2 * 4 * 4 * 4 + 2 * 2 * 16 * 5 + 2 * 16 * 16)


@pytest.fixture
def one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[tuple[str, Precision]] = [("onnx", "fp32")]
    monkeypatch.setattr(engines, "installed", lambda device: kinds)


@pytest.mark.traced
@pytest.mark.usefixtures("one_engine")
def test_without_room_for_all_engines_each_has_its_turn_with_the_floor(
    text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "free_memory", lambda device: 0)
    groups, kept = [], []
    timed = engines.timed
    monkeypatch.setattr(engines, "timed", lambda opened, *rest: groups.append(list(opened)) or timed(opened, *rest))
    models = {"tiny": (tiny.convolutional(text_folder), POINT)}
    found = engines.run(
        models, batches=[16], seconds=0.0, threads=1, keep=lambda found: kept.append(len(found["rows"]))
    )
    assert groups == [[EAGER], ["ONNX Runtime, fp32"]]
    assert all(len(row["floors"]) == 1 and row["times_floor"] > 0 for row in found["rows"])
    assert kept == [2, 2]


@pytest.mark.traced
@pytest.mark.usefixtures("one_engine")
def test_every_engine_stands_beside_the_floor(text_folder: Path, tmp_path: Path) -> None:
    models = {"tiny": (tiny.convolutional(text_folder), POINT)}
    found = engines.run(models, batches=[1, 3], seconds=0.0, threads=1)
    assert [(row["batch"], row["engine"]) for row in found["rows"]] == [
        (batch, engine) for batch in (1, 3) for engine in (EAGER, "ONNX Runtime, fp32")
    ]
    for row in found["rows"]:
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
        assert row["times_floor"] == pytest.approx(row["p50"] / min(row["floors"].values()))
        assert row["times_backbone"] == pytest.approx(row["p50"] / row["backbone"])
        assert row["error_p99"] < 1e-4
    assert found["rows"][1]["memory"] > 0
    assert set(found["once"]["tiny"]) == set(performance.ONCE)
    assert min(found["limits"].values()) > 1e6
    performance.write(found, tmp_path)
    page = (tmp_path / performance.PAGE).read_text()
    assert "### `tiny`, batch 3" in page
    assert page.endswith("Not measured: `hypervla bench engines --device cuda --beside openvla --out docs` does it.\n")
    row = found["rows"][1]
    assert f"| ONNX Runtime, fp32 | {row['steps']} | {performance.milliseconds(row['p50'])} |" in page
    assert json.loads((tmp_path / performance.NUMBERS["cpu"]).read_text()) == found
    assert (tmp_path / performance.CHARTS["cpu"]).read_text().startswith("<?xml")


def test_a_subjects_frames_are_what_its_engine_takes(text_folder: Path) -> None:
    subject = engines.Subject.make(tiny.convolutional(text_folder), POINT, "cpu")
    frames = subject.frames(3)
    assert subject.engine.run(*frames.rows()).chunks.shape[0] == 3
    assert not (frames.weights[0] == frames.weights[1]).all()


def test_few_calls_have_no_tail() -> None:
    row = {"engine": "e", "p50": 0.1, "p95": 0.2, "p99": 0.3, "times_floor": 1.0, "times_backbone": None}
    row |= {"frames_per_second": 10, "cold_start": 0.0, "memory": 0, "error_p99": 0.0}
    said = [performance.cells({**row, "steps": steps})[2:5] for steps in (5, 20, 99, 100)]
    assert said == [["100 ms", "–", "–"], *[["100 ms", "200 ms", "–"]] * 2, ["100 ms", "200 ms", "300 ms"]]


@pytest.mark.parametrize("name", ["metaworld_small", "libero_small", "paper"])
def test_a_recipe_is_timed_with_a_robot_it_is_made_for(name: str) -> None:
    model, robot = bench_commands._hypervla(name)
    assert (robot.action_size, len(robot.cameras)) == (model.action_size, model.cameras)
    assert model.proprio_size in (0, robot.proprio_size)


@pytest.mark.parametrize("words", [("--batches", "0"), ("--threads", "0"), ("--batches", "1", "-8")])
def test_batches_and_threads_are_at_least_one(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "engines", "--models", "metaworld_small", *words])
    assert "at least 1" in capsys.readouterr().err


def test_only_hypervla_has_engines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "engines", "--models", "small_octo"])
    assert "small_octo is the model Octo" in capsys.readouterr().err
