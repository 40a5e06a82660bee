"""Where LIBERO's things are grasped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hypervla.simulation.demonstrators.aim import Pose, Rotation, Vector
from hypervla.simulation.demonstrators.libero_motions import UP, pointing
from hypervla.simulation.demonstrators.libero_scene import Scene

OPENING = 0.074
"""Metres that the fingers can reach around."""
FINGER = 0.05
"""Metres from the middle of the hand to a finger of the open gripper."""
PALM, PALM_HEIGHT = 0.1, 0.07
"""Metres from the middle of the hand to its broad sides, and from where fingers close up to them."""
WAY_DOWN = (0.11, 0.15, 0.19, 0.23)
"""Metres above a grasp at which the hand comes past what is above."""
QUARTER = np.pi / 2
LEAN = 0.6
"""Radians that a hand leans where something is above what it grasps."""
RIM = {"akita_black_bowl": 0.045, "plate": 0.062, "porcelain_mug": 0.04, "white_yellow_mug": 0.047}
"""Metres from the middle of a bowl or mug to where its rim is grasped, by kind."""
RIM_CENTRE = {"porcelain_mug": 0.014, "white_yellow_mug": -0.018}
"""Metres along a mug's own x from its origin to the middle of its rim, by kind."""
KNOB = {"moka_pot": 0.008}
"""Metres below the top of a knob to where it is grasped, by kind."""

HANDLE = {"white_yellow_mug": (0.05, 0.06)}
"""Metres along a mug's own x from its origin to its handle, and above, by kind."""


@dataclass(frozen=True)
class Grasp:
    """Where the hand closes, from above: an offset from the thing's place, and radians that the hand is turned, and
    leans outwards."""

    offset: Vector
    turn: float
    lean: float = 0.0

    @property
    def rotation(self) -> Rotation:
        outwards = self.offset * [1, 1, 0]
        return pointing(-outwards / max(float(np.linalg.norm(outwards)), 1e-9), self.lean, self.turn)

    def pose(self, place: Vector, before: float = 0.0) -> Pose:
        """Of the hand for a thing at a place, so many metres before it closes there."""
        return Pose(place + self.offset - before * self.rotation[:, 2], self.rotation)


def choose(scene: Scene, thing: str, target: str) -> Grasp:
    """The grasp from above with the most room, where the thing is and where it goes."""
    kind = thing.rsplit("_", 1)[0]
    covered = scene.is_covered(thing)
    grasps = _at_the_knob(scene, thing, KNOB[kind]) if kind in KNOB else _across(scene, thing)
    if kind in RIM:
        grasps = _around_the_rim(scene, thing, RIM[kind], RIM_CENTRE.get(kind, 0.0))
        grasps += _leaning(scene, thing, grasps) if covered else []

    def worth(grasp: Grasp) -> tuple[float, float, float, float]:
        """Larger is better: touching nothing, then straight, since the arm reaches less far when not, then room."""
        here = _room(scene, thing, scene.at(thing), grasp, WAY_DOWN if covered else ())
        there = _room(scene, thing, scene.place(target, thing), grasp) if scene.joints(target) else here
        return min(here, there, 0.0), -grasp.lean, -abs(grasp.turn), here

    return max(grasps, key=worth)


def _around_the_rim(scene: Scene, thing: str, reach: float, centre: float) -> list[Grasp]:
    """Up to four places on a rim: not where a handle is."""
    box, at = scene.box(thing), scene.at(thing)
    middle = scene.rotation(thing) @ np.array([centre, 0, 0])
    middle[2] = _depth(scene, thing, 0.03)
    grasps, handles = [], []
    for axis, turn in ((1, 0.0), (0, QUARTER)):
        for side in (1, -1):
            edge = side * ((box.high if side > 0 else box.low)[axis] - at[axis] - middle[axis])
            grasp = Grasp(middle + side * reach * np.eye(3)[axis], turn)
            (handles if centre and edge > reach + 0.02 else grasps).append(grasp)
    return grasps or handles


def _leaning(scene: Scene, thing: str, grasps: list[Grasp]) -> list[Grasp]:
    """The same less deep, with the hand leaning outwards: not where it is turned, since the arm does not reach so."""
    higher = (_depth(scene, thing, 0.015) - _depth(scene, thing, 0.03)) * UP
    return [Grasp(grasp.offset + higher, 0.0, LEAN) for grasp in grasps if not grasp.turn]


def _at_the_knob(scene: Scene, thing: str, below: float) -> list[Grasp]:
    offset = np.array([0, 0, scene.box(thing).high[2] - below - scene.at(thing)[2]])
    return [Grasp(offset, turn) for turn in (0.0, QUARTER)]


def _across(scene: Scene, thing: str) -> list[Grasp]:
    """From above, across whichever side fits between the fingers, in the middle and beside it."""
    box, at = scene.box(thing), scene.at(thing)
    size, centre = box.high - box.low, np.array([*(box.middle - at)[:2], _depth(scene, thing, 0.05)])
    fitting = [turned for turned in (False, True) if size[0 if turned else 1] < OPENING] or [size[0] < size[1]]
    grasps = []
    for turned in fitting:
        across = np.array([0, 1.0, 0]) if turned else np.array([1.0, 0, 0])
        reach = max(0.0, float(size @ across) / 2 - 0.02)
        turn = QUARTER if turned else 0.0
        grasps += [Grasp(centre + share * reach * across, turn) for share in (0.0, 0.5, -0.5, 1.0, -1.0)]
    return grasps


def _depth(scene: Scene, thing: str, below: float) -> float:
    """How high above a thing's origin the fingers close: so far below its top, and not on what it stands on."""
    box = scene.box(thing)
    return float(max(box.low[2] + 0.012, box.high[2] - below) - scene.at(thing)[2])


def _room(scene: Scene, thing: str, at: Vector, grasp: Grasp, way: tuple[float, ...] = ()) -> float:
    """Metres between the open hand around a thing at a place and the nearest other thing, up to what is enough; also
    where its palm comes past on its way, at heights above."""
    place = at + grasp.offset
    along, up = grasp.rotation[:, 0], -grasp.rotation[:, 2]
    points = [(place + side * FINGER * along, 0.01) for side in (1, -1)]
    heights = (PALM_HEIGHT, *way)
    points += [(place + side * PALM * along + h * up, 0.03) for side in (1, 0.5, -0.5, -1) for h in heights]
    points += [(place + h * up, 0.05) for h in way]
    others = [name for name in scene.things if name != thing]
    return min([0.02, *(scene.distance(name, point) - size for name in others for point, size in points)])
