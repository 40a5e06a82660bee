"""The papers' tables of sizes and speed, made again on whatever device there is, with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from hypervla.benchmark.counts import describe
from hypervla.benchmark.timing import Precision, latency
from hypervla.contracts import UserError
from hypervla.models.interface import ModelConfig
from hypervla.runtime.provenance import machine

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
        try:
            found |= {"latency": latency(model, device, precision, seconds).to_json(), "skipped": None}
        except UserError as reason:
            found |= {"latency": None, "skipped": str(reason)}
        systems.append(found)
    return {
        "device": device_name(device),
        "scale": scale,
        "precision": precision,
        "machine": machine(),
        "systems": systems,
    }


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
        measured = ["does not fit", "–", "–", "–"]
        if time:
            measured = [f"{1000 * time[q]:.1f} ms" for q in ("p50", "p95", "p99")]
            measured.append(f"{time['peak_bytes'] / 2**20:,.0f} MiB")
        counts = f"{system['activated'] / 1e6:,.1f} M", f"{system['flops_per_step']:.1e}"
        shown.add_row(row.name, *counts, *measured, *(paper if published else ()))
    return shown
