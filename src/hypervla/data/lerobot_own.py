"""What our recordings add to a LeRobot dataset's metadata, and which episodes are kept for validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from hypervla.data.lerobot_layout import read_json
from hypervla.data.parquet import damaged
from hypervla.embodiment import Embodiment

VALIDATION_EVERY = 32
"""One episode in so many is kept from training where the dataset has no split of its own."""
VALIDATION_SPLITS = ("val", "validation", "valid", "test")


def read_about(root: Path) -> dict[str, Any]:
    """meta/hypervla.json, which our recordings have, with its embodiment made one."""
    path = root / "meta/hypervla.json"
    if not path.is_file():
        return {}
    try:
        about = read_json(path)
        return {**about, "embodiment": Embodiment.from_json(about["embodiment"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"it describes no robot: {error}") from error


def validation_episodes(root: Path, info: Mapping[str, Any]) -> Int64[np.ndarray, " V"]:
    """The episodes of the dataset's own validation splits, or one in 32."""
    splits, total = info.get("splits") or {}, info["total_episodes"]
    if not isinstance(splits, dict):
        raise damaged(root / "meta/info.json", "'splits' is no table")
    ranges = []
    for name, span in splits.items():
        match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", str(span))
        if match is None or not int(match[1]) <= int(match[2]) <= total:
            raise damaged(root / "meta/info.json", f"the split '{name}' is {span} of {total} episodes")
        if name in VALIDATION_SPLITS:
            ranges.append(np.arange(int(match[1]), int(match[2]), dtype=np.int64))
    if ranges:
        return np.unique(np.concatenate(ranges))
    return np.arange(VALIDATION_EVERY - 1, total, VALIDATION_EVERY, dtype=np.int64)
