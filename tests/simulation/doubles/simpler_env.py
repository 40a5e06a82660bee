"""A stand-in for SimplerEnv: its interface, its draws and its rules in a world of points. Nothing here moves as there.

Facts from simpler-env/SimplerEnv at 4ab7178 (simpler_env/__init__.py: the names and `make`) and
simpler-env/ManiSkill2_real2sim at ef7a4d4, in mani_skill2_real2sim: envs/sapien_env.py (a first reset when made, reset,
step, close, `reconfigure`), envs/custom_scenes/base_env.py (options of the robot, `urdf_version`, `_configure_agent`,
the photograph), grasp_single_in_scene.py, move_near_in_scene.py and open_drawer_in_scene.py beside it (what
`prepackaged_config` sets and draws, options of things, success, instructions), utils/wrappers/observation.py (`rgb`),
utils/registration.py (gymnasium's wrappers around it), agents/configs/google_robot/defaults.py (the camera).
"""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

DRAWERS = ("top", "middle", "bottom")
ENVIRONMENTS = [
    *(f"google_robot_pick_{lying}_coke_can" for lying in ("horizontal", "vertical", "standing")),
    "google_robot_pick_object",
    "google_robot_move_near",
    *(f"google_robot_{way}_{drawer}_drawer" for way in ("open", "close") for drawer in DRAWERS),
]
COLOURS = ["", *(f"recolor_{n}" for n in ("tabletop_visual_matching_1", "tabletop_visual_matching_2"))]
COLOURS += ["recolor_cabinet_visual_matching_1"]
TRIPLETS = ("bottle can orange", "7up apple sponge", "coke redbull apple", "sponge bottle 7up", "orange can redbull")
ARRANGED = (((-0.33, 0.04), (-0.33, 0.34), (-0.13, 0.19)), ((-0.13, 0.04), (-0.33, 0.19), (-0.13, 0.34)))
PAIRS = list(permutations(range(3), 2))
OPEN_HAND, SHUT_HAND = 0.0, 1.3


def make(task_name: str, **kwargs) -> Wrapped:
    assert task_name in ENVIRONMENTS, f"Task {task_name} is not supported."
    kinds = {"pick": Grasp, "move": MoveNear, "open": Drawer, "close": Drawer}
    core = kinds[task_name.split("_")[2]](task_name, **{"prepackaged_config": True, **kwargs})
    return Wrapped(core, 113 if "drawer" in task_name else 80)


class Wrapped:
    """gymnasium's TimeLimit around a task."""

    def __init__(self, core: Core, limit: int) -> None:
        self.unwrapped, self.limit, self.elapsed = core, limit, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.elapsed = 0
        return self.unwrapped.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.elapsed += 1
        seen, reward, terminated, _, info = self.unwrapped.step(action)
        return seen, reward, terminated, self.elapsed >= self.limit, info

    def close(self) -> None:
        self.unwrapped.closed = True


class Core:
    """What every task has in common: a hand at `tcp` that closes on what is within 3 cm, and one thing to move."""

    photograph: str
    layout: tuple = ()

    def __init__(self, name: str, prepackaged_config: bool) -> None:
        self.name, self.prepackaged_config, self.urdf_version, self.closed = name, prepackaged_config, "", False
        folder = Path(os.environ.get("MS2_REAL2SIM_ASSET_DIR", "data")) / "real_inpainting"
        self.rgb_overlay_path = str(folder / self.photograph)
        if not os.path.exists(self.rgb_overlay_path):
            raise FileNotFoundError(f"rgb_overlay_path {self.rgb_overlay_path} is not found.\nGet it.")
        self.rgb_overlay_img = self._photograph(self.rgb_overlay_path)
        self._configure_agent()
        self.reset(seed=2022, options={"reconfigure": True})

    def _configure_agent(self) -> None:
        self._agent_cfg = "google_robot" + (f"_{self.urdf_version}" if self.urdf_version else "") + ".urdf"

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        options, self._episode_rng = dict(options or {}), np.random.RandomState(seed)
        things = options.get("obj_init_options", {})
        self._choose(things)
        if self.prepackaged_config:
            options["robot_init_options"] = self._drawn_robot()
            colour = self._episode_rng.choice(COLOURS)
            if colour != self.urdf_version:
                self.urdf_version = colour
                self._configure_agent()
                options["reconfigure"] = True
        if options.get("reconfigure", False):
            self.urdf = self._agent_cfg  # another description is loaded with the whole scene, not before
        robot = options.get("robot_init_options", {})
        self.base = np.array([*robot["init_xy"], *robot["init_rot_quat"]])
        self.thing = np.array([*self._place(things), 0.0])
        self.tcp, self.hand, self.elapsed, self.commands = np.array([0.0, 0.2, 0.2]), OPEN_HAND, 0, []
        self.start, self.lifted_for = self.thing.copy(), 0
        return self.get_obs(), {"urdf_version": self.urdf_version}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        assert isinstance(action, np.ndarray)
        assert action.shape == (7,)
        self.elapsed += 1
        self.commands.append(action)
        self.tcp = np.clip(self.tcp + action[:3], -1, 1)
        self.hand = float(np.clip(self.hand + 0.3 * action[6], OPEN_HAND, SHUT_HAND))
        if self.hand > 0.8 and np.linalg.norm(self.thing - (self.tcp - action[:3])) < 0.03:
            self.thing = self.tcp.copy()
        else:
            self.thing[2] = 0.0
        success, stats = self.evaluate()
        info = {"elapsed_steps": self.elapsed, "success": success, "episode_stats": stats}
        return self.get_obs(), float(success), bool(success), False, info

    def get_obs(self) -> dict:
        picture = np.empty((512, 640, 3), np.uint8)
        picture[:] = 255 * self.rgb_overlay_img[0, 0]
        picture[:32, :32] = 60 * COLOURS.index(self.urdf[13:-5])
        for (x, y, _), colour in ((self.thing, (230, 0, 0)), (self.tcp, (0, 230, 100 * (self.tcp[2] + 1)))):
            row, column = int(256 - 200 * x), int(320 + 200 * y)
            picture[row : row + 16, column : column + 16] = colour
        extra = {"tcp_pose": np.array([*self.tcp, 1, 0, 0, 0])}
        agent = {"qpos": np.full(11, self.hand), "base_pose": self.base}
        return {"agent": agent, "extra": extra, "image": {"overhead_camera": {"rgb": picture}}}

    def is_final_subtask(self) -> bool:
        return True

    def _choose(self, things: dict) -> None: ...

    @staticmethod
    def _photograph(path: str) -> np.ndarray:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB")) / 255


class Grasp(Core):
    photograph = "google_coke_can_real_eval_1.png"

    def _choose(self, things: dict) -> None:
        any_thing = self.name.endswith("object")
        self.model = self._episode_rng.choice(["apple", "sponge", "eggplant"]) if any_thing else "coke can"

    def _drawn_robot(self) -> dict:
        return {"init_xy": [0.35, 0.20], "init_rot_quat": [0, 0, 0, 1]}

    def _place(self, things: dict) -> np.ndarray:
        drawn = self._episode_rng.uniform([-0.35, -0.02], [-0.12, 0.42], [2])
        return np.array(things.get("init_xy", drawn))

    def evaluate(self) -> tuple[bool, dict]:
        self.lifted_for += self.thing[2] > 0.02
        return self.thing[2] > 0.01 or self.lifted_for >= 5, {"n_lift_significant": self.lifted_for}

    def get_language_instruction(self) -> str:
        return f"pick {self.model}"


class MoveNear(Core):
    photograph = "google_move_near_real_eval_1.png"

    def _choose(self, things: dict) -> None:
        number = things.get("episode_id", self._episode_rng.randint(60))
        self.names = TRIPLETS[number // 12].split()
        self.pair, self.places = PAIRS[number % 6], ARRANGED[number % 12 // 6]
        self.layout = (*self.names, *self.pair, *self.places)

    def _drawn_robot(self) -> dict:
        return {"init_xy": [0.35, 0.21], "init_rot_quat": [np.sin(0.045), 0, 0, np.cos(0.045)]}

    def _place(self, things: dict) -> tuple[float, float]:
        return self.places[self.pair[0]]

    def evaluate(self) -> tuple[bool, dict]:
        moved = bool(np.linalg.norm(self.thing[:2] - self.start[:2]) > 0.03)
        near = bool(np.linalg.norm(self.thing[:2] - self.places[self.pair[1]]) < 0.15)
        return moved and near, {"moved_correct_obj": moved, "near_tgt_obj": near}

    def get_language_instruction(self) -> str:
        return f"move {self.names[self.pair[0]]} near {self.names[self.pair[1]]}"


class Drawer(Core):
    photograph = "open_drawer_a0.png"

    def _drawn_robot(self) -> dict:
        xs = [0.644, 0.765, 0.889, 0.652, 0.752, 0.851, 0.665, 0.765, 0.865]
        ys = [-0.179, -0.182, -0.203, 0.009, 0.009, 0.035, 0.224, 0.222, 0.222]
        turns = [-0.03, -0.02, -0.06, 0, 0, 0, 0, -0.025, -0.025]
        chosen = self._episode_rng.choice(9)
        name = [f"{row}{column}" for row in "abc" for column in "012"][chosen]
        self.rgb_overlay_img = self._photograph(str(Path(self.rgb_overlay_path).parent / f"open_drawer_{name}.png"))
        half = turns[chosen] / 2
        return {"init_xy": [xs[chosen], ys[chosen]], "init_rot_quat": [-np.sin(half), 0, 0, np.cos(half)]}

    def _place(self, things: dict) -> tuple[float, float]:
        self.opening = things.setdefault("cabinet_init_qpos", 0.2 if "close" in self.name else 0.0)
        return (-0.2 + self.opening, 0.0)

    def evaluate(self) -> tuple[bool, dict]:
        opening = self.thing[0] + 0.2
        return opening <= 0.05 if "close" in self.name else opening >= 0.15, {"qpos": f"{opening:.3f}"}

    def get_language_instruction(self) -> str:
        _, _, way, drawer, _ = self.name.split("_")
        return f"{way} {drawer} drawer"
