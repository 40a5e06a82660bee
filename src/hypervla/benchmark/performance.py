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

Found = Mapping[str, Any]
Row = Mapping[str, Any]
HEADINGS = (
    "engine",
    "calls",
    "p50",
    "p95",
    "p99",
    "× floor",
    "× backbone",
    "frames/s",
    "first chunk",
    "memory",
    "error, p99",
)
QUANTILES = {"p50": 1, "p95": 20, "p99": 100}
"""How many calls each takes to be more than a guess."""
ONCE = {
    "preprocessing": "a camera image to the network's size, every frame",
    "binding": "another task policy on a live engine",
    "sentence": "text encoder, for a new sentence",
    "weights": "initial image and hypernetwork, for a new task policy",
}
PAGE = "performance.md"
NUMBERS = {"cpu": "results/bench-engines.json", "cuda": "results/bench-engines-gpu.json"}
CHARTS = {"cpu": "performance.svg", "cuda": "performance-gpu.svg"}
TITLES = {"cpu": "On a processor", "cuda": "On a GPU"}
COMMANDS = {
    "cpu": "hypervla bench engines --out docs",
    "cuda": "hypervla bench engines --device cuda --beside openvla --out docs",
}
COLOURS = ("#555555", "#9db4d3", "#2b5797", "#f0c9a8", "#e3a06f", "#d07a3c", "#a34f14")
LABELS: dict[str, Any] = {
    "padding": 3,
    "fontsize": 7,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
}
INTRODUCTION = """# Performance

One control step on every engine, from camera image to action chunk, with random weights. Engines are timed in turn,
one call of each after another; where memory does not hold them all, one engine after another, each in turn with the
floor. *calls* is how many were timed: of fewer than 20 there is no p95, of fewer than 100 no p99.

- *× floor*: in multiples of the time that the model's own matrix products and convolutions take, one after another and
  nothing else, in float32 (on a GPU in bfloat16, as one CUDA graph). Several libraries compute them, each in its own
  way; the fastest one, in the same turns as the engine, is the floor. At batch 64 it is eight times that of 8. An
  engine that joins several products, or computes in fewer bits, can be below 1.
- *× backbone*: in multiples of what the task policies share, on the same engine at the same batch size: what it costs
  that every robot has weights of its own.
- *first chunk*: opening an engine and acting once. *memory*: what a fresh process grows by for that.
- *error*: against eager PyTorch in shares of the actions' range. Random weights say little of eight bits;
  `docs/log.md` has the error and the success of trained ones.

Bringing a camera's image to the network's size, and what is done once an episode, stand apart below."""


def groups(found: Found) -> dict[tuple[str, int], list[Row]]:
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
        str(row["steps"]),
        *(milliseconds(row[q]) if row["steps"] >= least else "–" for q, least in QUANTILES.items()),
        f"{row['times_floor']:.2f}",
        "–" if row["times_backbone"] is None else f"{row['times_backbone']:.2f}",
        f"{row['frames_per_second']:,.0f}" if row["frames_per_second"] >= 10 else f"{row['frames_per_second']:.1f}",
        f"{row['cold_start']:.2f} s" if exported else "–",
        f"{row['memory'] / 2**20:,.0f} MiB" if exported else "–",
        f"{row['error_p99']:.1e}" if exported else "–",
    ]


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms" if seconds < 0.1 else f"{1000 * seconds:,.0f} ms"


def tables(found: Found) -> Group:
    """For a terminal."""
    shown: list[Any] = []
    for (model, batch), rows in groups(found).items():
        table = Table(title=f"{model}, batch {batch}, on {_place(found)}", caption=_floors(rows))
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == "engine" else "right")
        for row in rows:
            table.add_row(*cells(row))
        shown.append(table)
    return Group(*shown, *_beside(found))


def write(found: Found, folder: Path) -> None:
    """The numbers and a chart of them, and the page of all numbers that lie in the folder."""
    kind = found["kind"]
    (folder / NUMBERS[kind]).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NUMBERS[kind], (json.dumps(found, indent=2) + "\n").encode())
    draw(found, folder / CHARTS[kind])
    known = {kind: folder / name for kind, name in NUMBERS.items()}
    runs = {kind: json.loads(path.read_text()) for kind, path in known.items() if path.is_file()}
    write_atomically(folder / PAGE, page(runs).encode())


def page(runs: Mapping[str, Found]) -> str:
    """As Markdown: a processor's run, and a GPU's; one that was not made is said so."""
    lines = [INTRODUCTION, ""]
    for kind, title in TITLES.items():
        lines += [f"## {title}", ""]
        lines += _section(kind, runs[kind]) if kind in runs else [f"Not measured: `{COMMANDS[kind]}` does it.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(kind: str, found: Found) -> list[str]:
    installed = ", ".join(f"{name} {number}" for name, number in found["machine"]["versions"].items())
    limits = found["limits"]
    lines = [
        f"`{shlex.join(found['command'])}` at commit `{_short(found['commit'])}`, on {_place(found)}, {installed}. All "
        f"numbers are in `{NUMBERS[kind]}`.",
        "",
        f"The machine's own limits in the same run: {limits['float32'] / 1e9:,.0f} GFLOP/s in PyTorch's float32, "
        f"{limits['bfloat16'] / 1e9:,.0f} in its bfloat16, {limits['bytes'] / 1e9:.1f} GB/s.",
        "",
        f"![Median time of a control step on each engine, beside the floor]({CHARTS[kind]})",
        "",
    ]
    for (model, batch), rows in groups(found).items():
        lines += [f"### `{model}`, batch {batch}", "", _floors(rows), "", *_markdown(rows), ""]
    return [*lines, *_once(found["once"]), "", *(word for line in _beside(found) for word in (line, ""))]


def _place(found: Found) -> str:
    return f"{found['threads']} threads of an {found['device']}" if found["kind"] == "cpu" else found["device"]


def _short(commit: str) -> str:
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _floors(rows: Sequence[Row]) -> str:
    """Of each library; from the least to the most where each engine had turns of its own."""
    said = []
    for name in rows[0]["floors"]:
        taken = [row["floors"][name] for row in rows]
        ends = dict.fromkeys(map(milliseconds, (min(taken), max(taken))))
        said.append(f"{' to '.join(ends)} ({name})")
    return f"Floor: {', '.join(said)}."


def _beside(found: Found) -> list[str]:
    """Other models in the same run."""
    return [
        f"{name}: {about['skipped']}"
        if "skipped" in about
        else f"One step of {name} in bfloat16 in the same run: {milliseconds(about['p50'])}."
        for name, about in found["beside"].items()
    ]


def _once(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What is not done by the engine."""
    lines = ["### Beside the engine", "", f"| | {' | '.join(f'`{model}`' for model in found)} |"]
    lines.append("|---" * (len(found) + 1) + "|")
    for name, words in ONCE.items():
        lines.append(f"| {words} | {' | '.join(milliseconds(one[name]) for one in found.values())} |")
    return lines


def _markdown(rows: Sequence[Row]) -> list[str]:
    head = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    return head + [f"| {' | '.join(cells(row))} |" for row in rows]


def draw(found: Found, path: Path) -> None:
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
        axis.bar_label(drawn, [milliseconds(row["p50"]) for _, row in bars], **LABELS)
    axis.axvline(1, color="#c0504d", linewidth=1)
    axis.set_yticks([-g for g in range(len(sorted_out))], [f"{model}\nbatch {batch}" for model, batch in sorted_out])
    axis.set_xlabel("median time of a control step, in multiples of the floor (the line at 1)")
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path)
    pyplot.close(figure)
