"""Which code ran, on what machine, with which versions: what makes a number checkable later."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

COMMAND = "HYPERVLA_COMMAND"
"""Environment variable: the words of the command that started this one elsewhere, as JSON."""
PACKAGES = ("hypervla", "numpy", "torch", "transformers", "onnxruntime", "openvino", "nncf", "mujoco", "metaworld")


def code_commit() -> str:
    """The git commit this package runs from, `-dirty` when files differ from it; its version outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # refuses a checkout that merely surrounds us
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return f"hypervla {version('hypervla') or 'unknown'}"


def command() -> list[str]:
    """The words that a person typed, also where the command went on in another environment."""
    return json.loads(os.environ[COMMAND]) if COMMAND in os.environ else [Path(sys.argv[0]).name, *sys.argv[1:]]


def version(package: str) -> str | None:
    """The installed version, without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, system and the versions that matter, in words."""
    versions = {package: found for package in PACKAGES if (found := version(package))}
    return {
        "processor": processor(),
        "cores": cores(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions},
    }


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
