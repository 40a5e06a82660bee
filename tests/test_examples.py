"""The examples run as they stand, on the shipped checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hypervla.checkpoint import EMBEDDED, shipped

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.skipif(EMBEDDED not in shipped(), reason="no checkpoint is shipped")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_its_robots_succeed(path: Path) -> None:
    pytest.importorskip("metaworld")
    environment = os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    ran = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert "success" in ran.stdout.replace("no success", ""), ran.stdout
