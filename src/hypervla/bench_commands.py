"""`hypervla info` and `hypervla bench`: sizes of models, and the papers' tables of speed."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

bench_app = tyro.extras.SubcommandApp()


@bench_app.command(name="table3")
def table3(
    *,
    device: Annotated[str, arg(help="cpu, cuda or cuda:N.")] = "cpu",
    scale: Literal["published", "small"] = "published",
    precision: Literal["float32", "bfloat16"] = "float32",
    seconds: float = 10.0,
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False,
) -> None:
    """Size, operations, latency and memory of one control step of HyperVLA and the systems it is compared with.

    Example: hypervla bench table3 --device cuda

    Args:
        scale: Published sizes, or the siblings of the small_* recipes for a device that cannot hold those.
        precision: Of weights and activations.
        seconds: Time to measure each system for, after its warm-up.
        as_json: Print the numbers only, as JSON.
    """
    from hypervla.arguments import check_device
    from hypervla.benchmark import tables
    from hypervla.training.recipes import recipe

    rows, device = tables.TABLE_3, check_device(device)
    models = {name: recipe(name).model for name in dict.fromkeys(row.recipe(scale) for row in rows)}
    found = tables.run(rows, models, device=device, scale=scale, precision=precision, seconds=seconds)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(tables.show(rows, found))
    for system in found["systems"]:
        if system["skipped"]:
            console.print(f"{system['system']}: {system['skipped']}")


def info(name: Positional[str], /, *, as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False) -> None:
    """Count a model's parameters and operations, beside the paper's figures where it has any.

    Example: hypervla info paper

    Args:
        name: A recipe, the folder of a checkpoint, or the name of a shipped one.
        as_json: Print the numbers only, as JSON.
    """
    from hypervla.arguments import find_model
    from hypervla.benchmark import counts

    if as_json:
        print(json.dumps(counts.describe(find_model(name))))
        return
    from rich.console import Console

    Console().print(counts.table(name, find_model(name)))
