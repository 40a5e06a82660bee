"""`hypervla info` prints the published figures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from hypervla import cli
from hypervla.benchmark.counts import FIGURES, describe, table
from hypervla.training.recipes import RECIPES, metaworld_small, paper

PUBLISHED = {
    "generated": 201_500,
    "hypernetwork": 27_384_604,
    "backbone": 86_580_480,
    "instruction_encoder": 109_628_544,
    "activated": 86_781_980,
    "total": 2 * 86_580_480 + 109_628_544 + 27_384_604,
}


@pytest.fixture(scope="module")
def counts() -> dict[str, int]:
    return describe(paper().model)


def test_the_papers_model_has_the_specified_counts(counts: dict[str, int]) -> None:
    assert {key: counts[key] for key in PUBLISHED} == PUBLISHED


def test_one_step_of_the_papers_model_takes_46_5_gigaflops(counts: dict[str, int]) -> None:
    assert counts["flops_per_step"] == pytest.approx(46.5e9, rel=0.01)


def test_a_second_camera_doubles_the_backbones_work(counts: dict[str, int]) -> None:
    two = describe(replace(paper().model, cameras=2))
    assert two["backbone"] == counts["backbone"]
    assert two["flops_per_step"] == pytest.approx(2 * counts["flops_per_step"], rel=0.01)


def test_info_prints_every_figure_and_the_reason_for_each_difference() -> None:
    console = Console(width=300, record=True)
    with console.capture() as capture:
        console.print(table("paper", paper().model))
    text = capture.get()
    assert all(f"{value:,}" in text for value in PUBLISHED.values())
    assert all(figure.paper in text and figure.difference in text for figure in FIGURES)


SYSTEMS = {
    "rt1": (35_252_128, 35_120_544),
    "rt1_x": (56_896_809, 56_896_809),
    "openvla": (7_541_237_184, 7_541_237_184 - 15_238_352 - 15_239_504 - 2_304 - 12_598_272 - 2_048),
}
WITHOUT_T5 = {"octo_small": 27_042_060, "octo_base": 92_830_092}
"""All parameters, and those read per control step."""


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_compared_systems_have_their_published_sizes(name: str, counts: dict[str, int]) -> None:
    found = describe(RECIPES[name]().model)
    assert set(found) == set(counts)
    assert (found["total"], found["activated"]) == SYSTEMS[name]


@pytest.mark.parametrize("name", WITHOUT_T5)
def test_octo_has_its_published_size(name: str, counts: dict[str, int]) -> None:
    found = describe(RECIPES[name]().model)
    assert set(found) == set(counts)
    assert found["activated"] == found["total"] - found["instruction_encoder"] == WITHOUT_T5[name]
    assert found["instruction_encoder"] == counts["instruction_encoder"]


def test_info_as_json_holds_the_figures_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info", "metaworld_small", "--json"])
    assert json.loads(capsys.readouterr().out) == describe(metaworld_small().model)
    assert set(describe(metaworld_small().model)) == {figure.key for figure in FIGURES} | {"parts"}
