"""Pictures of a trial: a filmstrip and a small video for the report, a captioned video for a person."""

from __future__ import annotations

import os
import shutil
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from hypervla.contracts import Environment, Image, UserError

STRIP_FRAMES = 8
PLAYBACK_HZ = 27.0
VIDEO, POSTER = "video.mp4", "poster.jpg"


@runtime_checkable
class Filmable(Protocol):
    """An environment with a view for people."""

    def render(self, size: int) -> Image: ...


@dataclass
class Film:
    """What a spectator sees of one trial, every few steps."""

    environment: Environment
    size: int = 240
    every: int = 4
    smooth: int = 2
    """Render this many times larger and average: environments draw without anti-aliasing, for speed. MuJoCo draws
    pictures of 480 rows at most."""
    frames: list[Image] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """The step at which each frame was seen."""

    @property
    def hz(self) -> float:
        """Frames per second of a film that runs as fast as the robot did, from 1 to 30."""
        steps_per_frame = self.steps[-1] / max(1, len(self.steps) - 1) or self.every
        return min(max(self.environment.embodiment.control_hz / steps_per_frame, 1.0), 30.0)

    def look(self, step: int, *, last: bool = False) -> None:
        """Keep the view of this step if it is due, or the last."""
        since = step - self.steps[-1] if self.steps else self.every
        if since >= self.every or (last and since > 0):
            self.frames.append(self._view())
            self.steps.append(step)

    def captioned(self, instruction: str, ending: str) -> list[Image]:
        """The frames with the sentence and the step below, the last one with how it ended, held for a second."""
        remarks = [*(f"step {step}" for step in self.steps[:-1]), ending]
        frames = [caption(frame, instruction, remark) for frame, remark in zip(self.frames, remarks, strict=True)]
        return frames + frames[-1:] * round(self.hz)

    def _view(self) -> Image:
        if isinstance(self.environment, Filmable):
            return shrink(self.environment.render(self.smooth * self.size), self.smooth)
        picture = next(iter(self.environment.observe().images.values()))
        return shrink(picture, max(1, picture.shape[0] // self.size))


@dataclass(frozen=True)
class Filmstrip:
    """A film as the report shows it."""

    frames: tuple[tuple[int, bytes], ...]
    """Step and JPEG, evenly spaced from first to last."""
    video: bytes | None
    """MP4, or None where PyAV is not installed."""
    poster: bytes | None = None
    """JPEG of the video's end."""


def filmstrip(film: Film, instruction: str, ending: str) -> Filmstrip:
    """Evenly spaced pictures of the film, and all of it as a small captioned video. Raises UserError when the disk is
    full."""
    places = np.linspace(0, len(film.frames) - 1, min(STRIP_FRAMES, len(film.frames))).round().astype(int)
    frames = tuple((film.steps[place], jpeg(film.frames[place])) for place in places)
    try:
        import av  # noqa: F401
    except ModuleNotFoundError:
        return Filmstrip(frames, None)  # the report shows the filmstrip alone
    captioned = film.captioned(instruction, ending)
    try:
        with tempfile.TemporaryDirectory(prefix="hypervla-film-") as folder:
            video = Path(folder) / VIDEO
            write_video(video, captioned, film.hz)
            return Filmstrip(frames, video.read_bytes(), jpeg(captioned[-1]))
    except OSError as error:
        raise UserError(f"A film could not be encoded in {tempfile.gettempdir()}: {error}.") from error


def save_filmstrip(strip: Filmstrip, folder: Path) -> None:
    """Write the pictures and the video, whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for step, picture in strip.frames:
        (partial / f"step-{step:04d}.jpg").write_bytes(picture)
    for name, content in ((VIDEO, strip.video), (POSTER, strip.poster)):
        if content is not None:
            (partial / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load_filmstrips(folder: Path) -> dict[str, Filmstrip]:
    """Filmstrips by task, as `save_filmstrip` left them in FOLDER/TASK."""
    strips = {}
    for task in sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")):
        frames = tuple(
            (int(path.stem.removeprefix("step-")), path.read_bytes()) for path in sorted(task.glob("step-*.jpg"))
        )
        video, poster = (path.read_bytes() if path.exists() else None for path in (task / VIDEO, task / POSTER))
        strips[task.name] = Filmstrip(frames, video, poster)
    return strips


def shrink(frame: Image, factor: int) -> UInt8[np.ndarray, "smaller narrower 3"]:
    """The mean of each factor × factor block."""
    height, width = (side // factor for side in frame.shape[:2])
    blocks = frame[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def jpeg(frame: Image) -> bytes:
    buffer = BytesIO()
    Picture.fromarray(frame).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_video(path: Path, frames: Sequence[Image], hz: float) -> None:
    """Write an H.264 MP4 that browsers play (yuv420p), whole or not at all. Raises UserError without PyAV."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError("Writing a video needs PyAV: pip install 'hypervla[data]'.") from error
    partial = path.with_name(f".{path.name}.partial")
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    with av.open(f"file:{partial}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=round(hz), options={"crf": "24", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    os.replace(partial, path)


def caption(frame: Image, instruction: str, remark: str) -> UInt8[np.ndarray, "taller width 3"]:
    """The frame above a bar with the instruction and a remark (the step, or how it ended)."""
    width = frame.shape[1]
    size = max(12, width // 24)
    font = ImageFont.load_default(size)
    across = max(20, int(width / (0.55 * size)))
    lines = textwrap.wrap(f"“{instruction}”", width=across, max_lines=3, placeholder=" …")
    bar = Picture.new("RGB", (width, (size + 6) * (len(lines) + 1) + 8), (20, 22, 27))
    draw = ImageDraw.Draw(bar)
    for row, line in enumerate(lines):
        draw.text((10, 6 + row * (size + 6)), line, fill=(240, 240, 240), font=font)
    draw.text((10, 6 + len(lines) * (size + 6)), remark, fill=(150, 156, 168), font=font)
    return np.concatenate([frame, np.asarray(bar)])
