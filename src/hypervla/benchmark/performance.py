"""What `hypervla bench engines` found: as tables, as a chart, and as a page of the documentation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from hypervla.durable import write_atomically

Row = Mapping[str, Any]
HEADINGS = ("engine", "p50", "p95", "p99", "times the floor", "frames/s", "first chunk", "memory", "error, p99")
ONCE = {
    "preprocessing": "a camera image to the network's size, every frame",
    "binding": "another task policy on a live engine",
    "sentence": "text encoder, for a new sentence",
    "weights": "initial image and hypernetwork, for a new task policy",
}
NUMBERS, PAGE, CHART = "bench-engines.json", "performance.md", "performance.svg"
COLOURS = ("#555555", "#9db4d3", "#2b5797", "#f0c9a8", "#e3a06f", "#d07a3c", "#a34f14")


def groups(found: Mapping[str, Any]) -> dict[tuple[str, int], list[Row]]:
    """The rows by model and batch size."""
    sorted_out: dict[tuple[str, int], list[Row]] = {}
    for row in found["rows"]:
        sorted_out.setdefault((row["model"], row["batch"]), []).append(row)
    return sorted_out


def cells(row: Row) -> list[str]:
    """A row in words."""
    exported = row["cold_start"] > 0
    return [
        row["engine"],
        *(milliseconds(row[q]) for q in ("p50", "p95", "p99")),
        f"{row['times_floor']:.2f}",
        f"{row['frames_per_second']:,.0f}" if row["frames_per_second"] >= 10 else f"{row['frames_per_second']:.1f}",
        f"{row['cold_start']:.2f} s" if exported else "–",
        f"{row['memory'] / 2**20:,.0f} MiB" if exported else "–",
        f"{row['error_p99']:.1e}" if exported else "–",
    ]


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms" if seconds < 0.1 else f"{1000 * seconds:,.0f} ms"


def tables(found: Mapping[str, Any]) -> Group:
    """For a terminal."""
    shown = []
    for (model, batch), rows in groups(found).items():
        table = Table(title=f"{model}, batch {batch}, {found['threads']} threads of {found['device']}")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == "engine" else "right")
        for row in rows:
            table.add_row(*cells(row))
        shown.append(table)
    return Group(*shown)


def write(found: Mapping[str, Any], folder: Path) -> None:
    """The numbers, the page and its chart."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NUMBERS, (json.dumps(found, indent=2) + "\n").encode())
    write_atomically(folder / PAGE, page(found).encode())
    draw(found, folder / CHART)


def page(found: Mapping[str, Any]) -> str:
    """As Markdown."""
    versions, limits = found["machine"]["versions"], found["limits"]
    installed = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        "# Performance",
        "",
        f"`{shlex.join(found['command'])}` at commit `{_short(found['commit'])}`, {found['threads']} threads of an "
        f"{found['device']}, {installed}.",
        f"Random weights; all numbers are in `{NUMBERS}`. No GPU was to be had: its rows are not measured.",
        "",
        f"The machine's own limits in the same run: {limits['float32'] / 1e9:,.0f} GFLOP/s in float32, "
        f"{limits['bfloat16'] / 1e9:,.0f} in bfloat16,",
        f"{limits['bytes'] / 1e9:.1f} GB/s. *Floor* is the time of the model's own matrix products and convolutions in",
        "float32, one after another and nothing else, timed in turn with the engines. Preprocessing is apart. *Memory*",
        "is what a fresh process grows by, *error* is against eager PyTorch in shares of the actions' range; with",
        "random weights it says little of eight bits.",
        "",
        f"![Median time of a control step on each engine, beside the floor]({CHART})",
        "",
    ]
    for (model, batch), rows in groups(found).items():
        lines += [f"## `{model}`, batch {batch}", "", f"Floor: {milliseconds(rows[0]['floor'])}.", ""]
        lines += [*_markdown(rows), "", _split(rows[0], batch), ""]
    return "\n".join([*lines, *_once(found["once"])]) + "\n"


def _short(commit: str) -> str:
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _split(eager: Row, batch: int) -> str:
    policies = "one task policy" if batch == 1 else f"{batch} task policies"
    return f"In eager PyTorch {policies} and the backbone: {eager['times_backbone']:.2f} times the backbone alone."


def _once(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What is not done by the engine."""
    lines = ["## Beside the engine", "", f"| | {' | '.join(f'`{model}`' for model in found)} |"]
    lines.append("|---" * (len(found) + 1) + "|")
    for name, words in ONCE.items():
        lines.append(f"| {words} | {' | '.join(milliseconds(one[name]) for one in found.values())} |")
    return lines


def _markdown(rows: Sequence[Row]) -> list[str]:
    head = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    return head + [f"| {' | '.join(cells(row))} |" for row in rows]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Medians in multiples of the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sorted_out = groups(found)
    engines = list(dict.fromkeys(row["engine"] for row in found["rows"]))
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.22 * len(found["rows"])), layout="constrained")
    height = 0.85 / len(engines)
    for i, engine in enumerate(engines):
        bars = [(g, row) for g, rows in enumerate(sorted_out.values()) for row in rows if row["engine"] == engine]
        places = [-g - (i - len(engines) / 2 + 0.5) * height for g, _ in bars]
        drawn = axis.barh(places, [row["times_floor"] for _, row in bars], height, color=COLOURS[i % 7], label=engine)
        axis.bar_label(drawn, [milliseconds(row["p50"]) for _, row in bars], padding=3, fontsize=7)
    axis.axvline(1, color="#c0504d", linewidth=1)
    axis.set_yticks([-g for g in range(len(sorted_out))], [f"{model}\nbatch {batch}" for model, batch in sorted_out])
    axis.set_xlabel("median time of a control step, in multiples of the floor (the line at 1)")
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path)
    pyplot.close(figure)
