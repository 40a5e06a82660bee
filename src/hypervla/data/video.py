"""Camera images to mp4 files, and such files joined or cut by copying. Only this and video_reader.py import PyAV."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from hypervla.contracts import UserError

try:
    import av
    from av.error import FFmpegError
    from av.video.reformatter import Interpolation
except ModuleNotFoundError as error:
    raise UserError("Videos need PyAV: pip install 'hypervla[data]'.") from error

Codec = Literal["h264", "hevc", "av1"]
CODECS: Mapping[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "veryfast", "g": "2", "crf": "16", "bf": "0", "x264-params": "mbtree=0"}),
    "hevc": ("libx265", {"preset": "veryfast", "g": "2", "crf": "18", "x265-params": "bframes=0:log-level=error"}),
    "av1": ("libsvtav1", {"preset": "10", "g": "2", "crf": "22"}),
}
"""Encoder and options by codec. A key frame every second frame makes seeking exact and cheap; without B-frames files
join by copying packets. x264's mbtree gave other bits for the same frames in one of 250 encodings (docs/log.md)."""

EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""With one thread, so that a frame is the same picture on a busy machine (docs/log.md)."""


def codec_info(codec: str) -> dict[str, Any]:
    """What LeRobot's metadata say of videos that `encode` makes."""
    options = CODECS[codec][1]
    return {
        "video.codec": codec,
        "video.pix_fmt": "yuv420p",
        "video.g": int(options["g"]),
        "video.crf": int(options["crf"]),
    }


def encode(images: UInt8[np.ndarray, "T height width 3"], fps: int, codec: str = "h264") -> bytes:
    """An mp4 of these frames, one after another at `fps`. Raises UserError for sizes that its codec cannot hold."""
    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(
            f"Videos hold images of even height and width, but {height}x{width} came: crop or resize them, or keep "
            f"them as images."
        )
    name, options = CODECS[codec]
    buffer = io.BytesIO()
    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 describes itself at length
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(name, rate=fps, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class JoinedVideo:
    """One mp4 that grows by pieces of others; packets are copied, nothing is encoded again."""

    def __init__(self, path: Path, fps: int) -> None:
        self.frames = 0
        self.size = 0
        self._fps = fps
        self._stream = None
        self._kind: Any = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"})

    def fits(self, source: Path) -> bool:
        """Whether the video at `source` was encoded so that it can stand in this file."""
        with av.open(f"file:{source}") as episode:
            return self._kind in (None, _kind(episode.streams.video[0]))

    def append(self, source: Path, start: float = 0.0, count: int | None = None) -> int:
        """Copy `count` frames (all) from `start` seconds of a video; returns how many there were."""
        before = self.frames
        with av.open(f"file:{source}") as episode:
            template = episode.streams.video[0]
            if self._stream is None:
                self._stream, self._kind = (
                    self._container.add_stream_from_template(template, opaque=True),
                    _kind(template),
                )
            for packet in _packets(episode, template, start, count, self._fps):
                self.size += packet.size
                packet.stream = self._stream
                packet.time_base = Fraction(1, self._fps)
                packet.pts = packet.dts = self.frames
                packet.duration = 1
                self._container.mux(packet)
                self.frames += 1
        return self.frames - before

    def close(self) -> None:
        self._container.close()


def can_copy(source: Path, start: float, count: int, fps: int) -> str | None:
    """The codec of `count` frames from `start` seconds on, if their packets can be copied; None when they must be
    encoded again: they begin between key frames, are not in order, or not at this rate."""
    try:
        with av.open(f"file:{source}") as container:
            stream = container.streams.video[0]
            tick, ticks = stream.time_base, []
            if tick is None or stream.codec_context.codec.canonical_name not in CODECS:
                return None
            for number, packet in enumerate(_packets(container, stream, start, count, fps)):
                if packet.pts != packet.dts or (number == 0 and not packet.is_keyframe):
                    return None
                ticks.append(packet.pts)
            wanted = start + np.arange(count) / fps
            if len(ticks) != count or (np.abs(np.array(ticks) * float(tick) - wanted) > 1e-3).any():
                return None
            return stream.codec_context.codec.canonical_name
    except (FFmpegError, IndexError, ValueError):
        return None


def _packets(container: Any, stream: Any, start: float, count: int | None, fps: int) -> Iterator[Any]:
    """The packets of `count` frames from `start` seconds on."""
    if start > 0:
        container.seek(round(start / stream.time_base), stream=stream)
    done, earliest = 0, (start - 0.5 / fps) / float(stream.time_base)
    for packet in container.demux(stream):
        if packet.size == 0 or packet.pts is None or packet.pts < earliest:
            continue
        if done == count:
            return
        done += 1
        yield packet


def _kind(stream: Any) -> tuple[Any, ...]:
    codec = stream.codec_context
    return codec.codec.canonical_name, codec.width, codec.height, bytes(codec.extradata or b"")
