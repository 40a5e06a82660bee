"""A command of hypervla in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_child(python: str | Path, words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """`hypervla WORDS` with this Python and these environment variables more. It hears of Ctrl-C itself and is waited
    for. Raises SystemExit with its status when it fails: it has said why."""
    process = subprocess.Popen([python, "-m", "hypervla.cli", *words], env=os.environ | (variables or {}))
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise KeyboardInterrupt("Stopped; the same command goes on.") from None
    if status:
        raise SystemExit(128 + signal.SIGINT if status == -signal.SIGINT else status)
