"""Action statistics that others publish beside their weights: Octo's dataset_statistics.json, OpenVLA's config.json."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError

NAMES = {"p01": "q01", "p99": "q99"}
"""What others call a statistic, and what it is called here."""


def read_statistics(path: Path, key: str | None = None) -> dict[str, dict[str, Any]]:
    """Statistics of `action` and `observation.state` as a dataset of ours has them.

    A file may hold those of several datasets by name, `key` is then needed; OpenVLA's stand under `norm_stats`. Raises
    UserError for a file without statistics, and for an unknown key, naming those that are near.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}: Octo publishes dataset_statistics.json, OpenVLA config.json.")
    try:
        data = json.loads(path.read_text())
        data = data.get("norm_stats", data)
        nameless = "action" in data
        found = {"": _ours(data)} if nameless else {name: _ours(row) for name, row in data.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} holds no action statistics ({error!r}): copy it again.") from error
    if nameless and key is not None:
        raise UserError(f"{path} holds the statistics of one dataset without a name: leave out --key.")
    if not found:
        raise UserError(f"{path} holds no action statistics (it is empty): copy it again.")
    if key is None and len(found) == 1:
        return next(iter(found.values()))
    if key is None or key not in found:
        near = difflib.get_close_matches(key or "", found, n=3, cutoff=0.4) or sorted(found)
        what = "several datasets" if key is None else f"no dataset '{key}'"
        raise UserError(f"{path} holds statistics of {what}: say {' or '.join(near)}.")
    return found[key]


def _ours(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    features = {"action": row["action"]}
    if row.get("proprio"):
        features["observation.state"] = row["proprio"]
    return {
        feature: {NAMES.get(str(name), str(name)): value for name, value in values.items()}
        for feature, values in features.items()
    }
