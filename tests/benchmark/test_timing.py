"""Latency of a control step: waits for the device, is warm, and tells what does not fit."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch

from hypervla import cli
from hypervla.benchmark import tables, timing
from hypervla.benchmark.tables import TABLE_3, WRITERS
from hypervla.benchmark.timing import DEFAULT, LEAST, WARM_UP, check_room, control_step, latency, measure
from hypervla.contracts import UserError
from hypervla.models.action_head import LinearHead
from hypervla.models.backbones import ConvNet
from hypervla.models.hypervla import PolicyConfig
from hypervla.models.monolithic import MonolithicConfig
from hypervla.training.recipes import RECIPES


def test_the_quantiles_are_those_of_the_timed_steps() -> None:
    waits = iter([0.0] * WARM_UP + [0.001] * (LEAST - 1) + [0.05])
    p50, p95, p99, steps = measure(lambda: time.sleep(next(waits)), torch.device("cpu"), seconds=0.0)
    assert steps == LEAST
    assert 0.001 <= p50 < 0.02
    assert p50 <= p95 < p99 <= 0.1


def test_the_first_steps_are_not_timed() -> None:
    waits = iter([0.2] * WARM_UP + [0.0] * LEAST)
    assert measure(lambda: time.sleep(next(waits)), torch.device("cpu"), seconds=0.0)[2] < 0.1


class TooLarge(MonolithicConfig):
    def build(self, pretrained: bool = True):
        raise torch.OutOfMemoryError("no")


class Dying(MonolithicConfig):
    def build(self, pretrained: bool = True):
        os.kill(os.getpid(), signal.SIGKILL)


SHAPE = {"backbone": ConvNet(24, (4, 8), 4), "policy": PolicyConfig(8, 1, 2, 16), "head": LinearHead(2, 3)}


@pytest.mark.parametrize(
    ("config", "words"),
    [(TooLarge(**SHAPE), "TooLarge does not fit the memory of cpu"), (Dying(**SHAPE), "killed by signal 9")],
)
def test_what_does_not_fit_is_said_in_a_sentence(config, words: str) -> None:
    with pytest.raises(UserError, match=words):
        latency(config, "cpu", seconds=0.0)


def test_what_cannot_fit_is_refused_before_it_is_built(monkeypatch) -> None:
    monkeypatch.setattr(timing, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"Monolithic has 0.0 GB of weights in float32, but cpu has 0.0 GB free"):
        check_room(MonolithicConfig(**SHAPE), torch.device("cpu"), "float32")
    monkeypatch.setattr(timing, "free_memory", lambda device: None)
    check_room(MonolithicConfig(**SHAPE), torch.device("cpu"), "float32")


class Failing(MonolithicConfig):
    def build(self, pretrained: bool = True):
        raise KeyError("a fault of ours")


def test_a_fault_is_not_called_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="Timing Failing failed"):
        latency(Failing(**SHAPE), "cpu", seconds=0.0)


@pytest.mark.parametrize("name", sorted({row.small for row in TABLE_3} | {"small_hypervla_diffusion"}))
def test_every_system_acts_in_bfloat16(name: str) -> None:
    try:
        torch.set_default_dtype(torch.bfloat16)
        model = RECIPES[name]().model.build(pretrained=False).eval()
        with torch.inference_mode():
            assert torch.isfinite(control_step(model, DEFAULT)()).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_row_names_recipes() -> None:
    assert {name for row in (*TABLE_3, *WRITERS) for name in (row.published, row.small)} <= set(RECIPES)


def test_evlas_matrix_at_small_scale(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(tables, "WRITERS", WRITERS[-2:])
    cli.main(["bench", "evla", "--scale", "small", "--seconds", "0", "--no-trace", "--json"])
    systems = json.loads(capsys.readouterr().out)["systems"]
    assert len({(system["system"], system["way"]) for system in systems}) == 2 * 2
    assert all(system["latency"]["p50"] > 0 for system in systems)


def test_table_3_at_small_scale(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(tables, "TABLE_3", (TABLE_3[0], *TABLE_3[-3:]))
    cli.main(["bench", "table3", "--scale", "small", "--seconds", "0", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [system["recipe"] for system in found["systems"]] == list(dict.fromkeys(row.small for row in tables.TABLE_3))
    for system in found["systems"]:
        assert 0 < system["latency"]["p50"] <= system["latency"]["p95"] <= system["latency"]["p99"]
        assert system["latency"]["peak_bytes"] > 0
        assert system["skipped"] is None
