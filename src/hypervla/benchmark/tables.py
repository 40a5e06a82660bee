"""The papers' tables of sizes and speed, made again on whatever device there is, with random weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.table import Table

from hypervla.benchmark.counts import describe
from hypervla.benchmark.timing import Precision, Way, latency
from hypervla.contracts import UserError
from hypervla.models.interface import ModelConfig
from hypervla.runtime.provenance import code_commit, machine

Scale = Literal["published", "small"]


@dataclass(frozen=True)
class Row:
    """One system of a table: which recipe it is at each scale, and what the paper says of it."""

    name: str
    published: str
    small: str
    paper_activated: str = "–"
    paper_flops: str = "–"
    paper_latency: str = "–"

    def recipe(self, scale: Scale) -> str:
        return self.published if scale == "published" else self.small


TABLE_3 = (
    Row("RT-1", "rt1", "small_rt1", "35 M"),
    Row("RT-1-X", "rt1_x", "small_rt1"),
    Row("Octo-small", "octo_small", "small_octo"),
    Row("Octo-base", "octo_base", "small_octo", "100 M", "5.6e10"),
    Row("OpenVLA", "openvla", "small_openvla", "7.5 B", "4.0e12", "120 × 4 ms"),
    Row("EVLA, jointly", "evla", "small_evla"),
    Row("HyperVLA", "paper", "small_hypervla", "86 M", "4.7e10", "4 ms"),
    Row("base policy alone", "paper_alone", "small_alone"),
    Row("base policy, told the instruction", "paper_monolithic", "small_monolithic"),
)
"""HyperVLA's table 3. Octo's operations there are those of one frame and one camera. HyperVLA's 4 ms may be the time to
start the computation, since the published clock does not wait for it."""


def run(
    rows: Sequence[Row],
    models: Mapping[str, ModelConfig],
    *,
    device: str,
    scale: Scale,
    precision: Precision,
    seconds: float,
) -> dict[str, Any]:
    """Counts and latency of every system that fits the device, and the reason for every one that does not.

    `models` holds the model of every recipe that the rows name.
    """
    systems = []
    for row in rows:
        name = row.recipe(scale)
        model = models[name]
        counted = describe(model)
        found: dict[str, Any] = {"system": row.name, "recipe": name, **counted}
        systems.append(found | _timed(model, device, precision, seconds, Way()))
    return _report(device, scale, precision, systems)


@dataclass(frozen=True)
class Writer:
    """A row of EVLA's table: a model that gives an action in tokens, and whether it keeps keys and values."""

    name: str
    published: str
    small: str
    cached: bool = True

    def recipe(self, scale: Scale) -> str:
        return self.published if scale == "published" else self.small


WRITERS = (
    Writer("OpenVLA, one after another", "openvla", "small_openvla"),
    Writer("OpenVLA's size, jointly", "openvla_joint", "small_openvla_joint"),
    Writer("EVLA, one after another", "evla_autoregressive", "small_evla_autoregressive"),
    Writer("EVLA, one after another, no cache", "evla_autoregressive", "small_evla_autoregressive", cached=False),
    Writer("EVLA, jointly", "evla", "small_evla"),
)
"""EVLA's claims (spec 5.3). Its table I has OpenVLA at 20 ms and 16 GB, EVLA at 5 ms and 4 GB, on an A100; 20 ms
fits one pass of OpenVLA, not an action of seven tokens."""
WAYS = (Way(fused=False), Way(), Way(traced=True))


def run_evla(
    models: Mapping[str, ModelConfig], *, device: str, scale: Scale, precision: Precision, seconds: float, trace: bool
) -> dict[str, Any]:
    """Latency of every writer in every way that fits the device. `models` holds the recipes' models by name."""
    systems = []
    for writer in WRITERS:
        name = writer.recipe(scale)
        counted = describe(models[name])
        for way in WAYS if trace else WAYS[:2]:
            way = replace(way, cached=writer.cached)
            found: dict[str, Any] = {"system": writer.name, "recipe": name, "way": str(way), **counted}
            systems.append(found | _timed(models[name], device, precision, seconds, way))
    return _report(device, scale, precision, systems)


def show_evla(found: dict[str, Any]) -> Table:
    """The matrix; ratios are to the last model in the same way."""
    shown = Table(title=f"One action on {found['device']}, {found['precision']}, {found['scale']} sizes")
    for heading in ("system", "way", "p50", "p95", "p99", "memory", "times the joint EVLA"):
        shown.add_column(heading, justify="left" if heading in ("system", "way") else "right")
    last = {system["way"]: system["latency"] for system in found["systems"] if system["system"] == WRITERS[-1].name}
    for system in found["systems"]:
        time, joint = system["latency"], last[system["way"]]
        ratio = f"{time['p50'] / joint['p50']:.1f}" if time and joint else "–"
        shown.add_row(system["system"], system["way"], *_cells(time), ratio)
    return shown


def device_name(device: str) -> str:
    """The device as its maker calls it."""
    import torch

    from hypervla.runtime.provenance import processor

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def show(rows: Sequence[Row], found: dict[str, Any]) -> Table:
    """What was measured beside what the paper says; the paper's columns only at its own scale."""
    published = found["scale"] == "published"
    shown = Table(title=f"One control step on {found['device']}, {found['precision']}, {found['scale']} sizes")
    for heading in ("system", "activated", "operations", "p50", "p95", "p99", "memory"):
        shown.add_column(heading, justify="left" if heading == "system" else "right")
    if published:
        for heading in ("activated, paper", "operations, paper", "latency, paper"):
            shown.add_column(heading, justify="right")
    for row, system in zip(rows, found["systems"], strict=True):
        time, paper = system["latency"], (row.paper_activated, row.paper_flops, row.paper_latency)
        counts = f"{system['activated'] / 1e6:,.1f} M", f"{system['flops_per_step']:.1e}"
        shown.add_row(row.name, *counts, *_cells(time), *(paper if published else ()))
    return shown


def _timed(model: ModelConfig, device: str, precision: Precision, seconds: float, way: Way) -> dict[str, Any]:
    """The latency, or why there is none."""
    try:
        return {"latency": latency(model, device, precision, seconds, way).to_json(), "skipped": None}
    except UserError as reason:
        return {"latency": None, "skipped": str(reason)}


def _report(device: str, scale: Scale, precision: Precision, systems: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": ["hypervla", *sys.argv[1:]],
        "commit": code_commit(),
        "device": device_name(device),
        "scale": scale,
        "precision": precision,
        "machine": machine(),
        "systems": systems,
    }


def _cells(time: Mapping[str, Any] | None) -> list[str]:
    """Quantiles and memory in words."""
    if time is None:
        return ["does not fit", "–", "–", "–"]
    return [*(f"{1000 * time[q]:.1f} ms" for q in ("p50", "p95", "p99")), f"{time['peak_bytes'] / 2**20:,.0f} MiB"]
