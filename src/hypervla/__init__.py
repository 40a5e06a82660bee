"""HyperVLA: a hypernetwork reads a task once and writes the weights of the small policy that then moves the robot.

    from hypervla import load

    model = load("path/or/name")
    policy = model.compile("put the spoon on the towel", {"camera": image})   # large network, once
    chunk = policy.act(observation)                                           # small network, every step

The public names load on first use, so that importing hypervla costs nothing and pulls in no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypervla.contracts import ActionChunk, Observation, TaskContext
    from hypervla.embodiment import Embodiment
    from hypervla.runtime.compiler import load
    from hypervla.runtime.task_policy import TaskPolicy

__version__ = "0.1.0"
__all__ = ["ActionChunk", "Embodiment", "Observation", "TaskContext", "TaskPolicy", "__version__", "load"]

_HOMES = {
    "ActionChunk": "contracts",
    "Embodiment": "embodiment",
    "Observation": "contracts",
    "TaskContext": "contracts",
    "TaskPolicy": "runtime.task_policy",
    "load": "runtime.compiler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hypervla' has no attribute '{name}'")
    return getattr(import_module(f"hypervla.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
