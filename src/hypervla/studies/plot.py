"""The picture of a study: success of every system, a panel for each column."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from hypervla.durable import write_atomically
from hypervla.evaluation.intervals import Estimate, Rate

MOST_ACROSS = 3
"""Panels beside each other."""
FIRST, OTHER, LINE = "#2b5797", "#9db4d3", "#555555"


def draw(
    systems: Sequence[str],
    columns: Mapping[str, Sequence[Rate | Estimate | None]],
    notes: Sequence[str],
    path: Path,
) -> None:
    """Write a PNG of each column's values with their intervals, system by system; None is left out. The notes stand
    below."""
    from matplotlib.figure import Figure

    across = min(MOST_ACROSS, len(columns))
    down = -(-len(columns) // across)
    size = (2 + 3 * across, down * (1.0 + 0.32 * len(systems)))
    figure = Figure(size, dpi=130, layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    for panel, (name, values) in zip(panels, columns.items(), strict=False):
        shown = {place: value for place, value in enumerate(values) if value is not None}
        ends = [(value.mean - value.interval.low, value.interval.high - value.mean) for value in shown.values()]
        panel.barh(
            list(shown),
            [value.mean for value in shown.values()],
            0.6,
            xerr=list(zip(*ends, strict=True)) or None,
            color=[OTHER if place else FIRST for place in shown],
            ecolor=LINE,
        )
        panel.set_title(textwrap.fill(name, 36), fontsize="medium")
        panel.set_yticks(range(len(systems)), systems)
        panel.set_ylim(len(systems) - 0.5, -0.5)
        panel.set_xlim(0, 1)
        panel.set_xticks([0, 0.5, 1])
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(figure.axes)[len(columns) :]:
        panel.remove()
    below = [line for note in notes for line in textwrap.wrap(note, int(size[0] * 14))]
    figure.supxlabel("\n".join(["success, 95 % intervals", *below]), fontsize="small")
    drawn = io.BytesIO()
    figure.savefig(drawn)
    write_atomically(path, drawn.getvalue())
