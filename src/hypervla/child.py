"""Processes of our own: a command of hypervla, which ends with the one that asked for it; and who hears of Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

PARENT = "HYPERVLA_PARENT"


def run_child(python: str | Path, words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """`hypervla WORDS` with this Python and these environment variables more. It hears of Ctrl-C itself and is waited
    for; where this process is ended otherwise, it ends too. Raises SystemExit with its status when it fails: it has
    said why."""
    environment = os.environ | (variables or {}) | {PARENT: str(os.getpid())}
    process = subprocess.Popen([python, "-m", "hypervla.cli", *words], env=environment)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise KeyboardInterrupt("Stopped; the same command goes on.") from None
    if status:
        raise SystemExit(128 + signal.SIGINT if status == -signal.SIGINT else status)


def end_with_parent() -> None:
    """Where this process is such a child, end it within a second of its parent."""
    parent = int(os.environ.pop(PARENT, 0))
    if parent:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def interrupts_kept_from_children() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; a child started in here inherits that it is not for them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock the signal again (CPython 3.11)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
