"""A world small enough to read at a glance, for tests of everything that needs an environment or a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hypervla.contracts import ActionChunk, Episode, Observation, Outcome, Situation
from hypervla.embodiment import Camera, Embodiment, Gripper

POINT = Embodiment(
    name="point",
    cameras=(Camera("top", height=32, width=32, crop=(4, 4, 24, 24)),),
    action_names=("dx", "dy", "gripper"),
    action_low=(-0.1, -0.1, -1.0),
    action_high=(0.1, 0.1, 1.0),
    proprio_names=("x", "y"),
    control_hz=10.0,
    gripper=Gripper(index=2, open=-1.0, closed=1.0),
)
SAYINGS = {"find": ("go to the goal", "find the goal"), "flee": ("go to the far corner", "flee to the corner")}


class PointWorld:
    """A red dot in the unit square is to reach a green goal ("find") or the far corner ("flee"); an Environment."""

    embodiment = POINT

    def __init__(self, task: str) -> None:
        self.task, self.instructions = task, SAYINGS[task]
        self.executed: list[np.ndarray] = []

    def reset(self, seed: int) -> None:
        self.dot, goal = np.random.default_rng(seed).uniform(0.15, 0.85, (2, 2))
        self.goal = goal if self.task == "find" else np.ones(2)

    def observe(self) -> Observation:
        image = np.full((32, 32, 3), 40, np.uint8)
        for (x, y), colour in ((self.goal, (0, 220, 0)), (self.dot, (220, 0, 0))):
            row, column = int(y * 27), int(x * 27)
            image[row : row + 5, column : column + 5] = colour
        return Observation(images={"top": image}, proprio=self.dot.astype(np.float32))

    def environment_state(self) -> np.ndarray:
        return self.goal.astype(np.float32)

    def execute(self, chunk: ActionChunk) -> Outcome:
        for steps, action in enumerate(chunk.actions, start=1):
            self.executed.append(action)
            self.dot = np.clip(self.dot + action[:2], 0, 1)
            if np.abs(self.dot - self.goal).max() < 0.05:
                return Outcome(success=True, steps=steps)
        return Outcome(success=False, steps=len(chunk))

    def close(self) -> None: ...


class SituatedWorld(PointWorld):
    """PointWorld that says how things stand: the dot is the hand, and there is nothing else."""

    def situation(self) -> Situation:
        return Situation(np.array([*self.dot, 0.0]), None, {}, frozenset(), frozenset())


class PointExpert:
    """Walks straight to where the dot should go; a Demonstrator."""

    def __init__(self, world: PointWorld) -> None:
        self.world = world

    def action(self) -> np.ndarray:
        step = np.clip(self.world.goal - self.world.dot, -0.1, 0.1)
        return np.array([*step, -1.0], np.float32)


def make_point_world(task: str) -> tuple[PointWorld, PointExpert]:
    world = PointWorld(task)
    return world, PointExpert(world)


class ScriptedPolicy:
    """Does what `script` says to do on seeing the observation; a Policy."""

    def __init__(self, embodiment: Embodiment, script: Callable[[Observation], np.ndarray]) -> None:
        self.embodiment, self.script = embodiment, script

    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.float32(self.script(observation)))


def seek_goal(observation: Observation) -> np.ndarray:
    """A script that reaches PointWorld's goal from the image alone: one action, (1, 3)."""
    image = observation.images["top"].astype(int)
    centre = {
        channel: np.argwhere(image[..., channel] - image[..., 1 - channel] > 100).mean(axis=0)[::-1]
        for channel in (0, 1)
        if (image[..., channel] - image[..., 1 - channel] > 100).any()
    }
    way = (centre[1] - centre[0]) / 27 if len(centre) == 2 else np.zeros(2)
    return np.array([[*np.clip(way, -0.1, 0.1), -1.0]], np.float32)


class NumberedReader:
    """Episodes whose images, actions and proprio carry the number of their row; an EpisodeReader."""

    def __init__(
        self, lengths: Sequence[int], *, name: str = "numbers", robot: Embodiment = POINT, silent: Sequence[int] = ()
    ) -> None:
        self.name, self.embodiment, self.digest = name, robot, f"{name}-{len(lengths)}"
        self.starts = np.cumsum([0, *lengths])
        rows = np.arange(self.starts[-1], dtype=np.float32)
        self.actions = np.stack([rows + 0.25 * i for i in range(robot.action_size)], 1)
        self.proprio = np.stack([rows, -rows], 1) if robot.proprio_size else None
        self.paraphrases = {"task 0": ["do zero", "zero please"]}
        self.validation_episodes = np.arange(len(lengths))[3::4]
        self.silent = set(silent)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def instruction(self, row: int) -> str:
        episode = int(np.searchsorted(self.starts, row, side="right")) - 1
        return "" if episode in self.silent else f"task {episode % 3}"

    def images(self, camera: str, rows: Sequence[int]) -> list[np.ndarray]:
        size, index = self.embodiment.camera(camera), [c.name for c in self.embodiment.cameras].index(camera)
        return [np.full((size.height, size.width, 3), (row % 256, row // 256, index), np.uint8) for row in rows]

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        def of(values: np.ndarray) -> dict[str, np.ndarray]:
            return {"mean": np.zeros(values.shape[1]), "std": np.ones(values.shape[1])}

        return {"action": of(self.actions)} | ({} if self.proprio is None else {"observation.state": of(self.proprio)})

    def episode(self, index: int) -> Episode:
        raise NotImplementedError
