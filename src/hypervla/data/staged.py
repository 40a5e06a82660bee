"""One episode on its way into a LeRobot dataset: encoded in any process, then taken by the writer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hypervla.contracts import Episode
from hypervla.data.lerobot_robot import IMAGES
from hypervla.data.pictures import encode_picture
from hypervla.data.statistics import image_histogram
from hypervla.data.video import Codec, encode
from hypervla.durable import write_atomically

Images = Literal["video", "image"]
"""How a dataset keeps camera images: in mp4 files, or one PNG a frame among the numbers."""


def image_key(camera: str) -> str:
    """The LeRobot feature of a camera."""
    return IMAGES + camera


def write_json(path: Path, value: Any) -> None:
    """The value as JSON, all of it or nothing."""
    write_atomically(path, to_json(value))


def to_json(value: Any) -> bytes:
    """The value as the JSON that our files hold."""
    return json.dumps(value, indent=4, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Piece:
    """Frames of a video file: `count` from `start` seconds on, or all."""

    path: Path
    start: float = 0.0
    count: int | None = None


@dataclass(frozen=True)
class StagedEpisode:
    """An episode by LeRobot's features."""

    columns: Mapping[str, np.ndarray]
    """Numbers by feature, without those that place a frame in the dataset; the first axis is time."""
    instructions: Sequence[str]
    """One, or one for every step."""
    videos: Mapping[str, Piece] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    """PNG files by feature, one for every step."""
    histograms: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of the pixels, by image feature; see statistics.py."""
    source: Mapping[str, Any] = field(default_factory=dict)


def columns_of(episode: Episode) -> dict[str, np.ndarray]:
    """The numbers of an episode by LeRobot's names."""
    columns: dict[str, np.ndarray] = {}
    if episode.proprio is not None:
        columns["observation.state"] = episode.proprio
    columns["action"] = episode.actions
    if episode.environment_state is not None:
        columns["observation.environment_state"] = episode.environment_state
    if episode.success is not None:
        done = np.zeros(len(episode), bool)
        done[-1] = True
        columns |= {
            "next.reward": episode.success.astype(np.float32),
            "next.done": done,
            "next.success": episode.success,
        }
    return columns


def stage_episode(folder: Path, episode: Episode, fps: int, *, images: Images = "video", codec: Codec = "h264") -> None:
    """Encode one episode into `folder`, from which `LeRobotWriter.add` takes it; safe to call in many processes."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = columns_of(episode)
    for camera, pixels in episode.images.items():
        if images == "video":
            (folder / f"{camera}.mp4").write_bytes(encode(pixels, fps, codec))
        else:
            encoded = [encode_picture(image) for image in pixels]
            arrays[f"picture/{camera}"] = np.frombuffer(b"".join(encoded), np.uint8)
            arrays[f"sizes/{camera}"] = np.array([len(data) for data in encoded])
        arrays[f"histogram/{camera}"] = image_histogram(pixels)
    np.savez(folder / "arrays.npz", **arrays)  # NumPy 1 would take more arguments for arrays
    write_json(folder / "episode.json", {"instruction": episode.instruction, "source": dict(episode.source)})


def read_staged(folder: Path) -> StagedEpisode:
    """What `stage_episode` left in `folder`."""
    described = json.loads((folder / "episode.json").read_text(encoding="utf-8"))
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    groups: dict[str, dict[str, np.ndarray]] = {"histogram": {}, "picture": {}, "sizes": {}}
    for name in list(arrays):
        kind, _, camera = name.partition("/")
        if camera and kind in groups:
            groups[kind][camera] = arrays.pop(name)
    pictures = {
        image_key(camera): _cut(data.tobytes(), groups["sizes"][camera]) for camera, data in groups["picture"].items()
    }
    videos = {image_key(path.stem): Piece(path) for path in sorted(folder.glob("*.mp4"))}
    histograms = {image_key(camera): counts for camera, counts in groups["histogram"].items()}
    return StagedEpisode(arrays, [described["instruction"]], videos, pictures, histograms, described["source"])


def _cut(data: bytes, sizes: np.ndarray) -> list[bytes]:
    ends = np.cumsum(sizes).tolist()
    return [data[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]
