"""One meaning for every dataset's numbers: a gripper at 1 is open and at 0 closed, rotations are euler angles.

The conventions of Octo's pipeline, which HyperVLA follows. Each function is pure; those that lose something say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int

OPEN, CLOSED = 0.95, 0.05
"""Beyond these a gripper command is settled; between them the gripper moves."""
COMMANDED = 0.1
"""From this size on a relative gripper command is one."""
GIMBAL_LOCK = 1e-6


def binarise_gripper(commands: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    """Settled values become 1 (open) or 0 (closed), and those between them the next settled one.

    Values after the last settled one keep the raw value of the last step. It has no inverse: between is lost.
    """
    settled = (commands > OPEN) | (commands < CLOSED)
    values = np.append(np.where(settled, commands > OPEN, 0), commands[-1:]).astype(np.float32)
    following = np.where(settled, np.arange(len(commands)), len(commands))
    return values[np.minimum.accumulate(following[::-1])[::-1]]


def relative_to_absolute_gripper(commands: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    """Commands to close (+1) or open (−1), and 0 to stay, become the state they lead to: 1 open, 0 closed.

    Before the first command the gripper is in the state that command changes; without any it is open. It has no
    inverse: commands that change nothing are lost.
    """
    given = np.abs(commands) > COMMANDED
    if not given.any():
        return np.ones(len(commands), np.float32)
    first = int(np.argmax(given))
    last = np.maximum.accumulate(np.where(given, np.arange(len(commands)), -1))
    closing = np.where(last < 0, commands[first] < 0, commands[last] > 0)
    return (~closing).astype(np.float32)


def invert(commands: Float32[np.ndarray, "*T"]) -> Float32[np.ndarray, "*T"]:
    """1 − x: closed at 1 becomes open at 1. It is its own inverse."""
    return np.float32(1) - commands


def clip(commands: Float32[np.ndarray, "*T"]) -> Float32[np.ndarray, "*T"]:
    """Kept in [0, 1]. It has no inverse."""
    return np.clip(commands, 0, 1)


def unchanged(commands: Float32[np.ndarray, "*T"]) -> Float32[np.ndarray, "*T"]:
    return commands


GRIPPER_RULES: Mapping[str, Callable[[Float32[np.ndarray, " T"]], Float32[np.ndarray, " T"]]] = {
    "as is": unchanged,
    "clip": clip,
    "invert": invert,
    "clip and invert": lambda commands: invert(clip(commands)),
    "binarise": binarise_gripper,
    "relative": relative_to_absolute_gripper,
}
"""What makes 1 open and 0 closed of the stored commands."""


def relabel_arm_actions(states: Float32[np.ndarray, "T 6"]) -> Float32[np.ndarray, "moves 6"]:
    """What the arm did instead of what it was told: the state reached at the next step minus this one's.

    One action fewer than states, as nothing follows the last (BridgeData). `relabelled_states` is its inverse.
    """
    return states[1:] - states[:-1]


def relabelled_states(
    first: Float32[np.ndarray, " 6"], moves: Float32[np.ndarray, "moves 6"]
) -> Float32[np.ndarray, "T 6"]:
    """The states that `relabel_arm_actions` made the moves of, given the first."""
    return np.cumsum(np.concatenate([first[None], moves]), axis=0, dtype=np.float64).astype(np.float32)


def euler_from_quaternion(quaternions: Float32[np.ndarray, "T 4"]) -> Float32[np.ndarray, "T 3"]:
    """Roll, pitch and yaw (rotation about x, then y, then z) of unit quaternions (x, y, z, w).

    Where pitch is ±90° and roll and yaw turn about the same axis, yaw is 0. `quaternion_from_euler` is its inverse, up
    to the sign of the quaternion.
    """
    x, y, z, w = quaternions.T
    down = np.clip(2 * (x * z - w * y), -1, 1)
    roll = np.arctan2(2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    yaw = np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))
    side = np.where(down < 0, np.float32(-1), np.float32(1))
    locked = np.abs(np.abs(down) - 1) < GIMBAL_LOCK
    locked_roll = np.arctan2(-side * 2 * (x * y - w * z), -side * 2 * (x * z + w * y))
    angles = np.stack(
        [
            np.where(locked, locked_roll, roll),
            np.where(locked, -side * np.float32(np.pi / 2), -np.arcsin(down)),
            np.where(locked, np.float32(0), yaw),
        ],
        axis=-1,
    )
    return angles.astype(np.float32)


def quaternion_from_euler(angles: Float32[np.ndarray, "T 3"]) -> Float32[np.ndarray, "T 4"]:
    """Unit quaternions (x, y, z, w), w ≥ 0 or the opposite of one, of roll, pitch and yaw."""
    (sr, sp, sy), (cr, cp, cy) = np.sin(angles.T / 2), np.cos(angles.T / 2)
    parts = [sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy]
    return np.stack([*parts, cr * cp * cy + sr * sp * sy], axis=-1).astype(np.float32)


def sentence(said: bytes | str) -> str:
    """An instruction as text; empty when it says nothing. Raises UnicodeDecodeError for bytes that are no UTF-8."""
    text = said.decode("utf-8") if isinstance(said, bytes) else said
    return text if text.strip() else ""


def letters(codes: Sequence[int] | Int[np.ndarray, " n"]) -> str:
    """The text whose Unicode numbers these are, up to the first 0; numbers that are no letters become U+FFFD."""
    kept = np.asarray(codes)
    end = int(np.argmax(kept == 0)) if (kept == 0).any() else len(kept)
    return sentence("".join(_letter(int(code)) for code in kept[:end]))


def _letter(code: int) -> str:
    return chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
