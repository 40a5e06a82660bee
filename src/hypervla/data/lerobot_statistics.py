"""The statistics that a LeRobot dataset carries: compared with its numbers before use, made where they are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import UserError
from hypervla.data import manifest
from hypervla.data.lerobot_layout import Layout, read_json, read_json_lines
from hypervla.data.statistics import column_statistics, histogram_statistics, pixel_histogram, sampled_frames
from hypervla.durable import write_atomically

if TYPE_CHECKING:
    from hypervla.data.lerobot import LeRobotDataset

WANTED = ("mean", "std", "min", "max", "q01", "q99", "count")
COMPARED = ("mean", "std", "min", "max")
TOLERANCE = 1e-3
"""By which stored numbers may differ from ours, in standard deviations: LeRobot adds up float32."""
TABLE, LINES = "meta/stats.json", "meta/episodes_stats.jsonl"


def verified(
    layout: Layout, names: Mapping[str, str], values: Mapping[str, Float32[np.ndarray, "F D"]]
) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of these numbers by our names, if the dataset's stored ones agree with them.

    Quantiles are always true ones: versions of LeRobot aggregate theirs in different ways. Raises UserError when the
    stored statistics are missing, incomplete or those of other data.
    """
    stored, path = _stored(layout)
    found = {}
    for name, numbers in values.items():
        own = {key: np.asarray(value) for key, value in column_statistics(numbers).items()}
        _compare(layout.root, path, names[name], stored.get(names[name]), own)
        found[name] = {key: own[key] if key == "count" else own[key].astype(np.float32) for key in WANTED}
    return found


def _compare(root: Path, path: Path, name: str, stored: Any, own: Mapping[str, np.ndarray]) -> None:
    def refuse(what: str) -> UserError:
        return UserError(f"{path} {what}: make it anew with `hypervla data stats {root}`.")

    missing = [key for key in COMPARED if not isinstance(stored, Mapping) or key not in stored]
    if missing:
        raise refuse(f"lacks {', '.join(missing)} of '{name}'")
    scale = own["std"] + 1e-2 * np.maximum(np.abs(own["min"]), np.abs(own["max"])) + 1e-12
    for key in COMPARED:
        try:
            came = np.asarray(stored[key], np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise refuse(f"gives no numbers for the {key} of '{name}'") from error
        if came.shape != own[key].shape or not (np.abs(came - own[key]) <= TOLERANCE * scale).all():
            raise refuse(f"is of other data: its {key} of '{name}' is not that of the frames")
    if "count" in stored and np.ravel(stored["count"]).tolist() != own["count"].tolist():
        raise refuse(f"is of other data: it counts {np.ravel(stored['count']).tolist()} frames, not {own['count']}")


def _stored(layout: Layout) -> tuple[Mapping[str, Any], Path]:
    """Global statistics by feature, and the file they come from."""
    table, lines = layout.root / TABLE, layout.root / LINES
    if layout.version == "v2.1" and not (lines.is_file() or table.is_file()):
        raise UserError(f"{lines} is missing: make it with `hypervla data stats {layout.root}`.")
    if layout.version == "v2.1" and lines.is_file():
        return _aggregated(layout, lines), lines
    if not table.is_file():
        raise UserError(f"{table} is missing: make it with `hypervla data stats {layout.root}`.")
    stored = read_json(table)
    return (stored if isinstance(stored, Mapping) else {}), table


def _aggregated(layout: Layout, path: Path) -> dict[str, Any]:
    """One set of statistics out of those of the episodes."""
    rows = read_json_lines(path, ("episode_index", "stats"))
    if [row["episode_index"] for row in rows] != list(range(len(layout.entries))):
        raise UserError(
            f"{path} does not have the statistics of every episode: make it anew with "
            f"`hypervla data stats {layout.root}`."
        )
    found = {}
    for name, feature in layout.features.items():
        try:
            groups = [row["stats"][name] for row in rows]
            found[name] = aggregate(groups, int(np.prod(feature["shape"])))
        except (KeyError, TypeError, ValueError):
            continue  # incomplete for this feature: refused if it is asked for
    return found


def aggregate(groups: list[Mapping[str, Any]], size: int) -> dict[str, Any]:
    """Statistics of several parts as those of the whole. Raises KeyError, TypeError or ValueError for unfit parts."""
    stacked = {
        key: np.stack([np.asarray(group[key], np.float64).reshape(size) for group in groups]) for key in COMPARED
    }
    counts = np.array([np.ravel(group["count"])[0] for group in groups], np.float64)[:, None]
    total = counts.sum()
    mean = (stacked["mean"] * counts).sum(axis=0) / total
    variance = ((stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2) * counts).sum(axis=0) / total
    return {
        "mean": mean,
        "std": np.sqrt(variance),
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "count": [int(total)],
    }


# Making them


def write_statistics(root: Path) -> Path:
    """Make the statistics of a dataset from its frames; returns the file they went to.

    Numbers and images of every episode are read. Raises UserError for a dataset that is not intact otherwise.
    """
    from hypervla.data.lerobot import LeRobotDataset

    dataset = LeRobotDataset(root)
    columns = {
        name: values.reshape(len(values), -1)
        for name, feature in dataset.features.items()
        if feature["dtype"] not in ("image", "video", "string", "language")
        for values in [dataset.column(name)]
    }
    pixels = {key: [] for key in dataset.cameras.values()}
    lines = []
    for episode in range(len(dataset)):
        start, end = map(int, dataset.starts[episode : episode + 2])
        stats = {name: column_statistics(values[start:end]) for name, values in columns.items()}
        for key, histograms in pixels.items():
            histogram = episode_histogram(dataset, key, start, end)
            histograms.append(histogram)
            stats[key] = histogram_statistics(histogram)
        lines.append(json.dumps({"episode_index": episode, "stats": stats}))
    if dataset.version == "v2.1":
        write_atomically(root / LINES, "".join(line + "\n" for line in lines).encode())
        manifest.update(root, [LINES])
        return root / LINES
    whole = {name: column_statistics(values) for name, values in columns.items()}
    whole |= {key: histogram_statistics(np.sum(histograms, axis=0)) for key, histograms in pixels.items()}
    write_atomically(root / TABLE, json.dumps(whole, indent=4).encode())
    manifest.update(root, [TABLE])
    return root / TABLE


def episode_histogram(dataset: LeRobotDataset, key: str, start: int, end: int) -> np.ndarray:
    """Pixel counts of an episode's sampled frames, few images in memory at a time."""
    rows = start + sampled_frames(end - start)
    pieces = [rows[first : first + 64] for first in range(0, len(rows), 64)]
    return np.sum([pixel_histogram(dataset.frames_of(key, piece)) for piece in pieces], axis=0)
