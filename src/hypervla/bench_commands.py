"""`hypervla info` and `hypervla bench`: sizes of models, and the papers' tables of speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from hypervla.options import Device, Flag

bench_app = tyro.extras.SubcommandApp()
Scale = Annotated[
    Literal["published", "small"],
    arg(help="Published sizes, or the siblings of the small_* recipes for a device that cannot hold those."),
]
Precision = Annotated[Literal["float32", "bfloat16"], arg(help="Of weights and activations.")]
Seconds = Annotated[float, arg(help="Time to measure each system for, after its warm-up.")]
Json = Annotated[Flag, arg(name="json", help="Print the numbers only, as JSON.")]


@bench_app.command
def table3(
    *,
    device: Device = "cpu",
    scale: Scale = "published",
    precision: Precision = "float32",
    seconds: Seconds = 10.0,
    as_json: Json = False,
) -> None:
    """Size, operations, latency and memory of one control step of HyperVLA and the systems it is compared with.

    Example: hypervla bench table3 --device cuda
    """
    from hypervla.arguments import check_device, check_seconds
    from hypervla.benchmark import tables

    rows = list({row.recipe(scale): row for row in reversed(tables.TABLE_3)}.values())[::-1]  # one row for each model
    found = tables.run(
        rows,
        _models(rows, scale),
        device=check_device(device),
        scale=scale,
        precision=precision,
        seconds=check_seconds(seconds),
    )
    _print(found, lambda: [tables.show(rows, found), *_skipped(found)], as_json)


@bench_app.command
def evla(
    *,
    device: Device = "cpu",
    scale: Scale = "published",
    precision: Precision = "bfloat16",
    seconds: Seconds = 10.0,
    no_trace: Flag = False,
    as_json: Json = False,
) -> None:
    """What deciding all action dimensions at once saves: EVLA and OpenVLA, one after another and jointly, with and
    without cache, attention written out, fused and traced.

    Example: hypervla bench evla --device cuda

    Args:
        no_trace: Leave out the rows through torch.compile.
    """
    from hypervla.arguments import check_device, check_seconds
    from hypervla.benchmark import tables

    options = {
        "device": check_device(device),
        "scale": scale,
        "precision": precision,
        "seconds": check_seconds(seconds),
    }
    found = tables.run_evla(_models(tables.WRITERS, scale), trace=not no_trace, **options)
    _print(found, lambda: [tables.show_evla(found), *_skipped(found)], as_json)


@bench_app.command
def engines(
    *,
    models: tuple[str, ...] = ("paper", "metaworld_small"),
    batches: tuple[int, ...] = (1, 8, 64),
    device: Device = "cpu",
    beside: tuple[str, ...] = (),
    threads: int | None = None,
    seconds: Seconds = 10.0,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """One control step on every engine that is installed here, beside the time that the model's own matrix products
    take.

    Example: hypervla bench engines --models metaworld_small --batches 1

    Args:
        models: Recipes of HyperVLA, with random weights.
        batches: Task policies in a call, each with an observation of its own.
        beside: Recipes of other models whose step is timed in the same run, in bfloat16.
        threads: Of the processor; all of them when not given.
        out: Folder in which to write the numbers, a page of them and a chart.
    """
    from hypervla.arguments import check_device, check_seconds
    from hypervla.benchmark import engines as bench
    from hypervla.benchmark import performance
    from hypervla.contracts import UserError
    from hypervla.runtime.provenance import cores
    from hypervla.training.recipes import recipe

    if min(*batches, 1 if threads is None else threads) < 1:
        raise UserError("Batch sizes and threads are at least 1.")
    found = bench.run(
        {name: _hypervla(name) for name in models},
        device=check_device(device),
        beside={name: recipe(name).model for name in beside},
        batches=batches,
        seconds=check_seconds(seconds),
        threads=cores() if threads is None else threads,
        say=(lambda words: None) if as_json else partial(print, flush=True),
        keep=(lambda found: None) if out is None else partial(performance.write, folder=out),
    )
    _print(found, lambda: [performance.tables(found)], as_json)


def _hypervla(name: str) -> Any:
    """A recipe's model, which has to be a HyperVLA, and the robot that it is made for. Raises UserError for another."""
    from hypervla.contracts import UserError
    from hypervla.embodiment import EMBODIMENTS
    from hypervla.models.hypervla import HyperVLAConfig
    from hypervla.models.interface import family
    from hypervla.training.recipes import recipe

    model = recipe(name).model
    if not isinstance(model, HyperVLAConfig):
        raise UserError(f"Engines run HyperVLA's control step, but {name} is the model {family(model)}.")
    shape = (model.action_size, model.cameras, model.proprio_size)
    for robot in EMBODIMENTS.values():
        if shape in ((robot.action_size, len(robot.cameras), size) for size in (robot.proprio_size, 0)):
            return model, robot
    raise UserError(
        f"No robot that is known here has {shape[0]} action dimensions, {shape[1]} cameras and {shape[2]} proprio "
        f"numbers, as {name} is made for: choose another recipe."
    )


def _models(rows: Any, scale: str) -> dict[str, Any]:
    """The models of the recipes that a table names."""
    from hypervla.training.recipes import recipe

    return {name: recipe(name).model for name in dict.fromkeys(row.recipe(scale) for row in rows)}


def _skipped(found: dict[str, Any]) -> list[str]:
    """Why some systems were not timed."""
    return list(dict.fromkeys(system["skipped"] for system in found["systems"] if system["skipped"]))


def _print(found: dict[str, Any], shown: Callable[[], Iterable[Any]], as_json: bool) -> None:
    """What is shown to a person, or the numbers only."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console()
    for part in shown():
        console.print(part)


def info(name: Positional[str], /, *, as_json: Json = False) -> None:
    """Count a model's parameters and operations, beside the paper's figures where it has any.

    Example: hypervla info paper

    Args:
        name: A recipe, the folder of a checkpoint, or the name of a shipped one.
    """
    from hypervla.arguments import find_model
    from hypervla.benchmark import counts

    if as_json:
        print(json.dumps(counts.describe(find_model(name))))
        return
    from rich.console import Console

    Console().print(counts.table(name, find_model(name)))
