"""Where things are in a LIBERO task, and how large: what the simulator knows and a policy never sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from hypervla.simulation.demonstrators.aim import Pose, Rotation, Vector
from hypervla.simulation.libero import LiberoEnvironment
from hypervla.simulation.movables import HINGE, owners

IN_DRAWER = 0.028
"""Metres from a drawer's middle towards its front to where things are put: clear of the handles above."""
IN_MICROWAVE = np.array([-0.03, -0.02, -0.06])
"""Metres from the middle of a microwave's region to where things are put: its room is around another middle."""


@dataclass(frozen=True)
class Box:
    """What a thing reaches from and to, in the world."""

    low: Vector
    high: Vector

    @property
    def middle(self) -> Vector:
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Solids:
    """Boxes around shapes, each turned as its shape is."""

    centres: Float64[np.ndarray, "N 3"]
    turned: Float64[np.ndarray, "N 3 3"]
    half: Float64[np.ndarray, "N 3"]
    """Half the sides, in metres."""

    @cached_property
    def low(self) -> Float64[np.ndarray, "N 3"]:
        """What each reaches from, in the world."""
        return self.centres - self._reach

    @cached_property
    def high(self) -> Float64[np.ndarray, "N 3"]:
        return self.centres + self._reach

    @cached_property
    def _reach(self) -> Float64[np.ndarray, "N 3"]:
        return np.einsum("nij,nj->ni", np.abs(self.turned), self.half)

    @property
    def box(self) -> Box:
        """Around all."""
        return Box(self.low.min(0), self.high.max(0))


@dataclass(frozen=True)
class Joint:
    """How a drawer, a door or a knob moves."""

    opening: Vector
    """Along which, or about which, it opens or is turned on."""
    anchor: Vector
    hinge: bool


@dataclass(frozen=True)
class Knob:
    """A knob's bar: the height of its top, and its angle from the world's x."""

    top: float
    angle: float


@dataclass(frozen=True)
class Panel:
    """A door's panel: its middle, how thick it is, and the height of its top."""

    centre: Vector
    thickness: float
    top: float


class Scene:
    """The task that an environment has open."""

    def __init__(self, environment: LiberoEnvironment) -> None:
        self.task = environment.task
        self._environment, self._simulator = environment, environment.simulator

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

    def rotation(self, thing: str) -> Rotation:
        return np.array(self._data.body_xmat[self._task.obj_body_id[thing]]).reshape(3, 3)

    def box(self, thing: str) -> Box:
        """What a thing can be touched at."""
        return self._solids(self._shapes[thing]).box

    def distance(self, thing: str, point: Vector) -> float:
        """Metres from a point to the nearest part of a thing, each a box turned as it stands; 0 inside of one."""
        solids = self._solids(self._shapes[thing])
        inside = np.einsum("nij,ni->nj", solids.turned, point - solids.centres)
        return float(np.linalg.norm(np.maximum(0, np.abs(inside) - solids.half), axis=1).min())

    def _solids(self, shapes: list[int]) -> Solids:
        turned = np.array(self._data.geom_xmat[shapes]).reshape(-1, 3, 3)
        aabb = np.array(self._model.geom_aabb[shapes])
        centres = self._data.geom_xpos[shapes] + np.einsum("nij,nj->ni", turned, aabb[:, :3])
        return Solids(centres, turned, aabb[:, 3:])

    def holds(self, goal: list[str]) -> bool:
        """Whether one of the task's goals is reached."""
        return bool(self._task._eval_predicate(goal))

    def place(self, target: str, thing: str) -> Vector:
        """Where the underside of a thing that is put onto a target, or into a region, comes to stand."""
        return self._middle(target) + self._share(target, thing)

    def _middle(self, target: str) -> Vector:
        if target in self._task.obj_body_id:
            box = self.box(target)
            return np.array([*box.middle[:2], box.high[2]])
        region = self._task.object_sites_dict[target]
        centre = np.array(self._data.get_site_xpos(region.name))
        if self.joints(target):
            drawer = self._solids(self._joint_shapes(target)).box
            centre += IN_DRAWER * self.joint(target).opening
            return np.array([*centre[:2], drawer.high[2]])
        parent = region.parent_name
        height = self.box(parent).high[2] if parent in self._task.obj_body_id else centre[2]
        return np.array([*centre[:2], height])

    def _share(self, target: str, thing: str) -> Vector:
        """From a target's middle to a thing's own part of it: things that go onto the same stand side by side."""
        things = [goal[1] for goal in self.goals if goal[0] == "on" and goal[2] == target]
        from_middle = things.index(thing) - (len(things) - 1) / 2 if things else 0.0
        size = self.box(thing).high - self.box(thing).low
        narrow = int(size[:2].argmin())
        return from_middle * (size[narrow] + 0.01) * np.eye(3)[narrow]

    def half_size(self, region: str) -> Vector:
        """Half the sides of a region on the table."""
        return np.array(self._task.object_sites_dict[region].size[:3])

    def place_inside(self, region: str) -> Vector:
        """Where the origin of what is slid into a region comes to stand, from its own frame's front."""
        centre = np.array(self._data.get_site_xpos(region))
        fixture = self._task.object_sites_dict[region].parent_name
        return centre + self.rotation(fixture) @ IN_MICROWAVE

    def is_covered(self, thing: str) -> bool:
        """Whether something else is above a thing."""
        return bool(self._covers(thing, self.box(thing)).any())

    def way_from_under(self, thing: str) -> Vector:
        """The shortest way along x or y to where nothing is above a thing and the hand that holds it from above."""
        box, hand = self.box(thing), self.hand()
        breadth = 0.04 + 0.06 * np.abs(hand.rotation[:, 0])
        low, high = np.minimum(box.low, hand.place - breadth), np.maximum(box.high, hand.place + breadth)
        sides = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]])
        ways = (distance * side for distance in np.arange(0, 0.3, 0.02) for side in sides)
        free = (way for way in ways if not self._covers(thing, Box(low + way, high + way)).any())
        return next(free, np.zeros(3))

    def _covers(self, thing: str, box: Box) -> np.ndarray:
        """Which shapes of other things are above a box and the thing itself."""
        shapes = [shape for name in self.things if name != thing for shape in self._shapes[name]]
        solids = self._solids(shapes)
        within = ((solids.low < box.high) & (solids.high > box.low))[:, :2].all(1)
        return within & (solids.low[:, 2] > self.box(thing).high[2])

    def panel(self, fixture: str) -> Panel:
        """The largest flat part of a door."""
        solids = self._solids(self._joint_shapes(fixture))
        largest = int(solids.half.prod(1).argmax())
        thickness = float(2 * solids.half[largest].min())
        return Panel(solids.centres[largest], thickness, float(solids.high[largest, 2]))

    def top_between(self, start: Vector, end: Vector, breadth: float, without: str = "") -> float:
        """Height of the highest part of anything within so many metres of the straight way between two places."""
        shapes = [shape for thing in self.things if thing != without for shape in self._shapes[thing]]
        solids = self._solids(shapes)
        low, high, way = solids.low[:, :2], solids.high[:, :2], np.linspace(start[:2], end[:2], 20)[:, None]
        apart = np.linalg.norm(np.maximum(0, np.maximum(low - way, way - high)), axis=2).min(0)
        return float(max(solids.high[apart < breadth, 2], default=-np.inf))

    def joints(self, name: str) -> list[str]:
        """Names of the joints that a fixture, or a fixture's region, moves with."""
        owner = self._task.object_sites_dict.get(name) or self._task.get_object(name)
        return list(getattr(owner, "joints", None) or ())

    def joint(self, name: str) -> Joint:
        """The joint of a drawer's region, of a door or of a knob."""
        number = self._joint_number(name)
        low, high = self._model.jnt_range[number]
        opening = np.array(self._data.xaxis[number]) * np.sign(max(low, high, key=abs))
        anchor = np.array(self._data.xanchor[number])
        return Joint(opening, anchor, int(self._model.jnt_type[number]) == HINGE)

    def is_shut(self, target: str) -> bool:
        """Whether a region is in a drawer that is not open."""
        return target in self._task.object_sites_dict and bool(self.joints(target)) and not self.holds(["open", target])

    def is_enclosed(self, target: str) -> bool:
        """Whether things cannot be put into a region from above."""
        return target.endswith("heating_region")

    def handle(self, drawer: str) -> Box:
        """What sticks out farthest of a drawer."""
        solids = self._solids(self._joint_shapes(drawer))
        farthest = int((solids.centres @ self.joint(drawer).opening).argmax())
        return Box(solids.low[farthest], solids.high[farthest])

    def knob(self, fixture: str) -> Knob:
        """What sticks up highest of what turns."""
        solids = self._solids(self._joint_shapes(fixture))
        highest = int(solids.high[:, 2].argmax())
        axes = solids.turned[highest][:2] * solids.half[highest]
        long = axes[:, np.linalg.norm(axes, axis=0).argmax()]
        angle = np.arctan2(long[1], long[0])
        return Knob(float(solids.high[highest, 2]), float((angle + np.pi / 2) % np.pi - np.pi / 2))

    def hand(self) -> Pose:
        """Where the fingers close, and the hand's rotation."""
        site = self._simulator.robots[0].eef_site_id
        return Pose(np.array(self._data.site_xpos[site]), np.array(self._data.site_xmat[site]).reshape(3, 3))

    def fingers(self) -> Float32[np.ndarray, "2"]:
        """Where both fingers are, in metres."""
        return self._environment.proprio()[-2:]

    @property
    def _task(self) -> Any:
        return self._simulator.env

    @property
    def _model(self) -> Any:
        return self._simulator.sim.model._model

    @property
    def _data(self) -> Any:
        return self._simulator.sim.data

    def _joint_number(self, name: str) -> int:
        return int(self._simulator.sim.model.joint_name2id(self.joints(name)[0]))

    def _joint_shapes(self, name: str) -> list[int]:
        """The shapes that move with a joint."""
        body = int(self._model.jnt_bodyid[self._joint_number(name)])
        return [shape for shape, of in enumerate(self._model.geom_bodyid) if of == body and self._touches(shape)]

    def _touches(self, shape: int) -> bool:
        """Whether it is there for more than to be seen."""
        return bool(self._model.geom_contype[shape] or self._model.geom_conaffinity[shape])

    @cached_property
    def _shapes(self) -> dict[str, list[int]]:
        """The shapes of each thing that touch others, by number in MuJoCo's model."""
        things = self._task.obj_body_id
        found: dict[str, list[int]] = {thing: [] for thing in things}
        for shape, thing in owners(self._model, {body: thing for thing, body in things.items()}).items():
            if self._touches(shape):
                found[thing].append(shape)
        return found
