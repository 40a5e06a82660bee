"""Where things are in a LIBERO task, and how large: what the simulator knows and a policy never sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from hypervla.simulation.demonstrators.aim import Vector
from hypervla.simulation.libero import LiberoEnvironment


@dataclass(frozen=True)
class Box:
    """What a thing reaches from and to, in the world."""

    low: Vector
    high: Vector

    @property
    def middle(self) -> Vector:
        return (self.low + self.high) / 2


class Scene:
    """The task that an environment has open."""

    def __init__(self, environment: LiberoEnvironment) -> None:
        self._simulator = environment.simulator

    @property
    def goals(self) -> list[list[str]]:
        """What the task asks for, as its description says it."""
        return self._task.parsed_problem["goal_state"]

    @property
    def things(self) -> tuple[str, ...]:
        """All things of the task that can be touched."""
        return tuple(thing for thing in self._task.obj_body_id if len(self._shapes[thing]))

    def at(self, thing: str) -> Vector:
        """A thing's own origin."""
        return np.array(self._data.body_xpos[self._task.obj_body_id[thing]])

    def box(self, thing: str) -> Box:
        """What a thing can be touched at."""
        centres, turned, half = self._solids(thing)
        reach = np.einsum("nij,nj->ni", np.abs(turned), half)
        return Box((centres - reach).min(0), (centres + reach).max(0))

    def distance(self, thing: str, point: Vector) -> float:
        """Metres from a point to the nearest part of a thing, each a box turned as it stands; 0 inside of one."""
        centres, turned, half = self._solids(thing)
        inside = np.einsum("nij,ni->nj", turned, point - centres)
        return float(np.linalg.norm(np.maximum(0, np.abs(inside) - half), axis=1).min())

    def _solids(self, thing: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres, rotations and half the sides of the boxes around a thing's shapes."""
        shapes = self._shapes[thing]
        turned = np.array(self._data.geom_xmat[shapes]).reshape(-1, 3, 3)
        aabb = np.array(self._model.geom_aabb[shapes])
        return self._data.geom_xpos[shapes] + np.einsum("nij,nj->ni", turned, aabb[:, :3]), turned, aabb[:, 3:]

    def holds(self, goal: list[str]) -> bool:
        """Whether one of the task's goals is reached."""
        return bool(self._task._eval_predicate(goal))

    def place(self, target: str) -> Vector:
        """Where the underside of what is put onto a thing, or into a region, comes to stand."""
        if target in self._task.obj_body_id:
            box = self.box(target)
            return np.array([*box.middle[:2], box.high[2]])
        region = self._task.object_sites_dict[target]
        centre = np.array(self._data.get_site_xpos(region.name))
        parent = region.parent_name
        height = self.box(parent).high[2] if parent in self._task.obj_body_id else centre[2]
        return np.array([*centre[:2], height])

    def hand(self) -> tuple[Vector, Float64[np.ndarray, "3 3"]]:
        """Where the fingers close, and the hand's rotation."""
        site = self._simulator.robots[0].eef_site_id
        return np.array(self._data.site_xpos[site]), np.array(self._data.site_xmat[site]).reshape(3, 3)

    @property
    def _task(self) -> Any:
        return self._simulator.env

    @property
    def _model(self) -> Any:
        return self._simulator.sim.model._model

    @property
    def _data(self) -> Any:
        return self._simulator.sim.data

    @cached_property
    def _shapes(self) -> dict[str, list[int]]:
        """The shapes of each thing that touch others, by number in MuJoCo's model."""
        model, found = self._model, {}
        roots = {body: thing for thing, body in self._task.obj_body_id.items()}
        found = {thing: [] for thing in roots.values()}
        for geom in range(model.ngeom):
            body = int(model.geom_bodyid[geom])
            while body and body not in roots:
                body = int(model.body_parentid[body])
            if body and (model.geom_contype[geom] or model.geom_conaffinity[geom]):
                found[roots[body]].append(geom)
        return found
