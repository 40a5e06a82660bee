"""Runs the lerobot package, which `make oracles` installs beside the environment, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "oracles"
PACKAGES = {"v3.0": "lerobot-0.4.4", "v2.1": "lerobot-0.3.3"}
"""The package that knows a version of the format."""


def run(version: str, folder: Path, *words: object) -> str:
    """What `lerobot_dataset.py` prints; skips the test where lerobot is not installed. `folder` takes its caches."""
    package = Path(sys.prefix) / "oracles" / PACKAGES[version]
    if not package.is_dir():
        pytest.skip(f"{package.name} is not installed: make oracles")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS / "standins"), str(package)]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "HF_LEROBOT_HOME": str(folder / "lerobot"),
        "SVT_LOG": "1",
    }
    command = [sys.executable, str(SCRIPTS / "lerobot_dataset.py"), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read(version: str, root: Path, folder: Path, deltas: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Every item of a dataset, stacked by feature; global statistics as `stats/<feature>/<statistic>`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "deltas.json").write_text(json.dumps(deltas))
    run(version, folder, "read", root, folder / "items.npz", folder / "deltas.json")
    with np.load(folder / "items.npz") as items:
        return dict(items)


def write(version: str, root: Path, folder: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """A dataset of these frames; `about` has fps, features, and the lengths and tasks of its episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "episodes.npz", about=np.array(json.dumps(about)), **arrays)
    run(version, folder, "write", root, folder / "episodes.npz")
