"""Pictures of a MuJoCo model, without shadows and reflections, which take most of the time and change little."""

from __future__ import annotations

import atexit
from functools import cache
from importlib import import_module
from typing import Any
from weakref import WeakSet

import numpy as np
from jaxtyping import UInt8


class Renderers:
    """One renderer for each size that is asked for; closed with the environment, or before the process ends."""

    def __init__(self, model: Any, data: Any) -> None:
        self._model, self._data = model, data
        self._open: dict[int, Any] = {}

    def draw(self, camera: str, size: int, shown: Any = None) -> UInt8[np.ndarray, "size size 3"]:
        """What the camera sees now, its first row at the top; `shown` is MuJoCo's MjvOption."""
        mujoco: Any = import_module("mujoco")  # its names are compiled: type checkers see none of them
        if size not in self._open:
            self._open[size] = mujoco.Renderer(self._model, size, size)
            _drawing.add(self)
            _close_at_exit()
        renderer = self._open[size]
        renderer.update_scene(self._data, camera=camera, scene_option=shown)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return renderer.render()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


_drawing: WeakSet[Renderers] = WeakSet()


@cache
def _close_at_exit() -> None:
    """Asked for once there is a renderer, so that it comes before MuJoCo's own exit, which takes EGL away."""
    atexit.register(lambda: [renderers.close() for renderers in list(_drawing)])
