"""Every frame of whole LeRobot datasets, decoded into memory at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from hypervla.contracts import UserError
from hypervla.data.progress import decoding_progress
from hypervla.data.video import decode
from hypervla.embodiment import Camera

if TYPE_CHECKING:
    from hypervla.data.lerobot import LeRobotDataset

FRAMES_PER_SPAN = 2000
"""Frames that one thread decodes in one go."""


@dataclass(frozen=True)
class Frames:
    """Every frame of a dataset in memory, episode after episode."""

    images: Mapping[str, UInt8[np.ndarray, "F height width 3"]]
    """By camera, cut to its crop."""
    actions: Float32[np.ndarray, "F A"]
    proprio: Float32[np.ndarray, "F P"] | None
    episode_starts: Int64[np.ndarray, " starts"]
    episode_instruction: list[str]

    def __len__(self) -> int:
        return len(self.actions)


def load_frames(
    *datasets: LeRobotDataset, workers: int = 2, cameras: Sequence[str] | None = None, margin: int = 0
) -> Frames:
    """Decode whole datasets of one robot, one behind the other, with `workers` threads.

    `margin` keeps so many pixels more on each side of the view, for views that are shifted at random. Needs frames ×
    view height × view width × 3 bytes a camera. Raises UserError when the robots differ.
    """
    robot, total = datasets[0].embodiment, sum(dataset.frames for dataset in datasets)
    for dataset in datasets[1:]:
        if dataset.embodiment != robot:
            raise UserError(f"{dataset.root} was recorded with another robot or camera than {datasets[0].root}.")
    names = [camera.name for camera in robot.cameras] if cameras is None else cameras
    chosen = [robot.camera(name).wider(margin) for name in names]
    images = {camera.name: np.empty((total, *camera.view_size, 3), np.uint8) for camera in chosen}
    offsets = np.cumsum([0] + [dataset.frames for dataset in datasets])

    def fill(camera: Camera, span: _Span, offset: int, fps: int | float) -> int:
        target = images[camera.name][offset + span.row : offset + span.row + span.count]
        for row, image in enumerate(decode(span.path, span.start, span.count, fps)):
            target[row] = camera.view(image)
        return span.count

    with ThreadPoolExecutor(workers) as pool, decoding_progress(total * len(chosen)) as advance:
        futures = [
            pool.submit(fill, camera, span, int(offset), dataset.fps)
            for dataset, offset in zip(datasets, offsets[:-1], strict=True)
            for camera in chosen
            for span in _spans(dataset, robot.camera(camera.name))
        ]
        try:
            for future in as_completed(futures):
                advance(future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

    def column(name: str) -> Float32[np.ndarray, "F D"]:
        return np.concatenate([np.asarray(dataset.column(name), np.float32) for dataset in datasets])

    starts = [dataset.episode_starts[:-1] + offset for dataset, offset in zip(datasets, offsets[:-1], strict=True)]
    return Frames(
        images=images,
        actions=column("action"),
        proprio=column("observation.state") if robot.proprio_size > 0 else None,
        episode_starts=np.concatenate([*starts, offsets[-1:]]),
        episode_instruction=[text for dataset in datasets for text in dataset.episode_instructions],
    )


@dataclass(frozen=True)
class _Span:
    """Consecutive episodes that lie one behind the other in one file."""

    path: Path
    start: float
    row: int
    count: int


def _spans(dataset: LeRobotDataset, camera: Camera) -> list[_Span]:
    spans: list[_Span] = []
    for index, (first, end) in enumerate(zip(dataset.episode_starts[:-1], dataset.episode_starts[1:], strict=True)):
        (path, start), count = dataset.video(index, camera), int(end - first)
        last = spans[-1] if spans else None
        follows = last is not None and last.path == path and abs(last.start + last.count / dataset.fps - start) < 1e-4
        if last is not None and follows and last.count + count <= FRAMES_PER_SPAN:
            spans[-1] = _Span(path, last.start, last.row, last.count + count)
        else:
            spans.append(_Span(path, start, int(first), count))
    return spans
