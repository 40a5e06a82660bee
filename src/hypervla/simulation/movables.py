"""What can be moved in a MuJoCo model, where it is, and what the fingers have hold of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from jaxtyping import Float64

FREE, HINGE = 0, 3
"""MuJoCo's joints that hold nothing, and that turn about an axis."""


class Movables:
    """The parts of a model that have a name here; each is a body with a joint, and all that is fixed to it."""

    def __init__(self, model: Any, data: Any, names: Mapping[int, str], fingers: tuple[Iterable[int], Iterable[int]]):
        """`names` by the number of the joint; `fingers` are the numbers of the shapes of the left and the right one."""
        self._body = {name: int(model.jnt_bodyid[joint]) for joint, name in names.items()}
        self.loose = frozenset(name for joint, name in names.items() if model.jnt_type[joint] == FREE)
        """Those that nothing holds."""
        self._marks = {
            name: _farthest(model, data, joint) for joint, name in names.items() if model.jnt_type[joint] == HINGE
        }
        self._fingers = tuple(frozenset(shapes) for shapes in fingers)
        self._owner = owners(model, {body: name for name, body in self._body.items()})

    def places(self, data: Any) -> dict[str, Float64[np.ndarray, "3"]]:
        """Where each is: its origin, or of what turns the shape farthest from its axis."""
        return {
            name: np.array(data.geom_xpos[self._marks[name]] if name in self._marks else data.xpos[body])
            for name, body in self._body.items()
        }

    def held(self, data: Any) -> str | None:
        """What both fingers touch from opposite sides."""
        if not data.ncon:
            return None
        pairs, normals = data.contact.geom, data.contact.frame[:, :3]  # from the first shape to the second
        left, right = (self._pushed(shapes, pairs, normals) for shapes in self._fingers)
        return next((name for name in left if name in right and left[name] @ right[name] < 0), None)

    def _pushed(self, finger: Set[int], pairs: np.ndarray, normals: np.ndarray) -> dict[str, np.ndarray]:
        """The things that a finger touches, and the sum of the directions that it touches them in."""
        pushed: dict[str, np.ndarray] = {}
        for (first, second), normal in zip(pairs.tolist(), normals, strict=True):
            if first in finger and second in self._owner:
                pushed[self._owner[second]] = pushed.get(self._owner[second], 0) + normal
            elif second in finger and first in self._owner:
                pushed[self._owner[first]] = pushed.get(self._owner[first], 0) - normal
        return pushed


def _farthest(model: Any, data: Any, joint: int) -> int:
    """The shape of a joint's body that is farthest from its axis."""
    (shapes,) = np.nonzero(model.geom_bodyid == model.jnt_bodyid[joint])
    arms = np.cross(data.geom_xpos[shapes] - data.xanchor[joint], data.xaxis[joint])
    return int(shapes[np.linalg.norm(arms, axis=1).argmax()])


def owners(model: Any, names: Mapping[int, str]) -> dict[int, str]:
    """The thing that each shape is part of, by the shape's number."""
    owners = {}
    for shape, body in enumerate(model.geom_bodyid.tolist()):
        while body and body not in names:
            body = int(model.body_parentid[body])
        if body:
            owners[shape] = names[body]
    return owners
