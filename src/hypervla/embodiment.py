"""Robots as a policy sees them: cameras, action space, gripper convention, control rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from hypervla.contracts import ActionChunk, Image, Observation, UserError

Flip = Literal["none", "vertical", "horizontal", "both"]
FLIPS: Mapping[Flip, tuple[int, int]] = {"none": (1, 1), "vertical": (-1, 1), "horizontal": (1, -1), "both": (-1, -1)}

ActionKind = Literal[
    "unknown", "delta end-effector", "absolute end-effector", "absolute joint", "delta joint", "velocity"
]
"""What an action means, which decides what is safe to do without one: "delta" and "velocity" stop at zero."""


@dataclass(frozen=True)
class Camera:
    """One camera: the size of its images and the part of them a policy looks at."""

    name: str
    height: int
    width: int
    crop: tuple[int, int, int, int] | None = None
    """(top, left, height, width) in pixels of the camera's image; None is the whole image."""
    flip: Flip = "none"
    """How the part a policy looks at is turned before it does; "both" is a half turn."""

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width of what a policy looks at."""
        return self.crop[2:] if self.crop else (self.height, self.width)

    def wider(self, margin: int) -> Camera | None:
        """This camera with `margin` more pixels on each side of its view; None where the image ends before."""
        if margin == 0:
            return self
        top, left, height, width = self.crop or (0, 0, self.height, self.width)
        crop = (top - margin, left - margin, height + 2 * margin, width + 2 * margin)
        if min(crop[:2]) < 0 or crop[0] + crop[2] > self.height or crop[1] + crop[3] > self.width:
            return None
        return replace(self, crop=crop)

    def middle(self, area: float) -> Camera:
        """This camera with the middle of its view, of this share of the area, in whole pixels."""
        top, left, height, width = self.crop or (0, 0, self.height, self.width)
        rows, columns = (round(side * area**0.5) for side in (height, width))
        return replace(self, crop=(top + (height - rows) // 2, left + (width - columns) // 2, rows, columns))

    def view(self, image: UInt8[np.ndarray, "*T height width 3"]) -> UInt8[np.ndarray, "*T h w 3"]:
        """The part of the image, or of each image, that a policy looks at."""
        top, left, height, width = self.crop or (0, 0, self.height, self.width)
        seen = image[..., top : top + height, left : left + width, :]
        down, right = FLIPS[self.flip]
        return seen[..., ::down, ::right, :]


@dataclass(frozen=True)
class Gripper:
    """Which entry of the action drives the gripper, and the commands that open and close it."""

    index: int
    open: float
    closed: float


@dataclass(frozen=True)
class Embodiment:
    """A robot as the policy sees it. Facts only: nothing above asks which robot this is."""

    name: str
    cameras: tuple[Camera, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    proprio_names: tuple[str, ...]
    control_hz: float
    gripper: Gripper | None
    action_kind: ActionKind = "unknown"

    @property
    def action_size(self) -> int:
        return len(self.action_names)

    @property
    def proprio_size(self) -> int:
        return len(self.proprio_names)

    def camera(self, name: str) -> Camera:
        """The camera of that name. Raises UserError naming the known ones."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        known = ", ".join(camera.name for camera in self.cameras)
        raise UserError(f"{self.name} has no camera '{name}'; it has {known}.")

    def check_image(self, name: str, image: Any) -> UInt8[np.ndarray, "height width 3"]:
        """The image, if it is what this camera delivers. Raises UserError otherwise."""
        camera = self.camera(name)
        wanted = (camera.height, camera.width, 3)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != wanted:
            shape, dtype = getattr(image, "shape", "no shape"), getattr(image, "dtype", type(image).__name__)
            raise UserError(
                f"Camera '{name}' of {self.name} delivers uint8 images of shape {wanted}, but {dtype} {shape} came: "
                f"resize the image or convert it to uint8 RGB."
            )
        return image

    def by_camera(self, images: Image | Mapping[str, Image]) -> Mapping[str, Image]:
        """Images by camera name; one without a name is the only camera's. Raises UserError when there are several."""
        if isinstance(images, Mapping):
            return images
        if len(self.cameras) != 1:
            names = [camera.name for camera in self.cameras]
            raise UserError(f"{self.name} has several cameras: pass the images by name, {names}.")
        return {self.cameras[0].name: images}

    def check_observation(self, observation: Observation, *, needs_proprio: bool) -> None:
        """Refuse an observation this robot cannot have made. Raises UserError."""
        for camera in self.cameras:
            if camera.name not in observation.images:
                raise UserError(
                    f"The observation lacks camera '{camera.name}'; it has {sorted(observation.images) or 'no images'}."
                )
            self.check_image(camera.name, observation.images[camera.name])
        if not needs_proprio:
            return
        proprio = observation.proprio
        if proprio is None or proprio.shape != (self.proprio_size,):
            came = "none" if proprio is None else f"shape {proprio.shape}"
            raise UserError(
                f"This policy reads proprio of {self.proprio_size} numbers {list(self.proprio_names)}, but {came} came."
            )
        if not np.isfinite(proprio).all():
            raise UserError(f"The proprio holds NaN or infinite numbers ({proprio.tolist()}): check the robot's state.")

    def middle(self, area: float) -> Embodiment:
        """This robot, of whose cameras' views the middle is looked at."""
        return self if area == 1.0 else replace(self, cameras=tuple(camera.middle(area) for camera in self.cameras))

    def clip(self, actions: Float32[np.ndarray, "H A"]) -> ActionChunk:
        """Actions kept inside the robot's limits."""
        low, high = np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        return ActionChunk(np.clip(actions, low, high).astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Embodiment:
        """The inverse of `to_json`."""

        def camera(row: Mapping[str, Any]) -> Camera:
            crop = tuple(row["crop"]) if row.get("crop") else None
            return Camera(row["name"], row["height"], row["width"], crop, row.get("flip", "none"))

        return Embodiment(
            name=data["name"],
            cameras=tuple(camera(row) for row in data["cameras"]),
            action_names=tuple(data["action_names"]),
            action_low=tuple(data["action_low"]),
            action_high=tuple(data["action_high"]),
            proprio_names=tuple(data["proprio_names"]),
            control_hz=data["control_hz"],
            gripper=Gripper(**data["gripper"]) if data.get("gripper") else None,
            action_kind=data.get("action_kind", "unknown"),
        )


METAWORLD_SAWYER = Embodiment(
    name="metaworld-sawyer",
    cameras=(Camera("corner2", height=192, width=192, crop=(44, 54, 128, 128)),),
    action_names=("dx", "dy", "dz", "gripper"),
    action_low=(-1.0, -1.0, -1.0, -1.0),
    action_high=(1.0, 1.0, 1.0, 1.0),
    proprio_names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
    control_hz=80.0,
    gripper=Gripper(index=3, open=-1.0, closed=0.6),
    action_kind="delta end-effector",
)
"""Metaworld's Sawyer. Its scripted experts close the gripper with 0.6 to 1.0; 0.6 keeps all of them (docs/log.md)."""

WIDOWX = Embodiment(
    name="widowx",
    cameras=(Camera("3rd_view_camera", height=480, width=640),),
    action_names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    action_low=(-0.05, -0.05, -0.05, -0.25, -0.25, -0.25, -1.0),
    action_high=(0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0),
    proprio_names=(),
    control_hz=5.0,
    gripper=Gripper(index=6, open=1.0, closed=-1.0),
    action_kind="delta end-effector",
)

GOOGLE_ROBOT = Embodiment(
    name="google-robot",
    cameras=(Camera("overhead_camera", height=512, width=640),),
    action_names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    action_low=(-1.0,) * 3 + (-np.pi / 2,) * 3 + (0.0,),
    action_high=(1.0,) * 3 + (np.pi / 2,) * 3 + (1.0,),
    proprio_names=(),
    control_hz=3.0,
    gripper=Gripper(index=6, open=1.0, closed=0.0),
    action_kind="delta end-effector",
)
"""The Google robot in metres and radians (rotation about x, then y, then z), within RT-1's action space. Its gripper is
told changes; a policy says whether it should be open, as data/oxe.toml makes fractal20220817_data say."""

LIBERO_PANDA = Embodiment(
    name="libero-panda",
    cameras=(Camera("image", 256, 256, flip="both"), Camera("wrist_image", 256, 256, flip="both")),
    action_names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    action_low=(-1.0,) * 7,
    action_high=(1.0,) * 7,
    proprio_names=("x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "left_finger", "right_finger"),
    control_hz=20.0,
    gripper=Gripper(index=6, open=-1.0, closed=1.0),
    action_kind="delta end-effector",
)
"""LIBERO's Panda: ±1 is 0.05 m and 0.5 rad a step. Its pictures come upside down; the half turn of the published
evaluations makes them upright and mirrored, and whoever wants their data or policies wants that too."""

EMBODIMENTS: Mapping[str, Embodiment] = {
    robot.name: robot for robot in (METAWORLD_SAWYER, WIDOWX, LIBERO_PANDA, GOOGLE_ROBOT)
}


def find_embodiment(name: str) -> Embodiment:
    """The known robot of that name. Raises UserError naming the known ones."""
    if name not in EMBODIMENTS:
        raise UserError(f"There is no robot '{name}'; there is {', '.join(EMBODIMENTS)}.")
    return EMBODIMENTS[name]
