"""A child process ends with the process that asked for it, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ASK = """
import sys
from hypervla.child import run_child
run_child(sys.executable, ["serve", "embedded", "--port", "0"], {"PYTHONUNBUFFERED": "1"})
"""


def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as said:
        parent = subprocess.Popen([sys.executable, "-c", ASK], stdout=said, stderr=said)
    _wait(lambda: b"ws://" in (tmp_path / "said").read_bytes())
    (child,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
    parent.kill()
    assert parent.wait(10) == -signal.SIGKILL
    _wait(lambda: not _lives(child))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def _wait(until: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)
