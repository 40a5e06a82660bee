"""Camera images to H.264 in mp4 files and back. The only importer of PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from hypervla.contracts import Image, UserError

try:
    import av
    from av.error import FFmpegError
    from av.video.reformatter import Interpolation, VideoReformatter
except ModuleNotFoundError as error:
    raise UserError("Videos need PyAV: pip install 'hypervla[data]'.") from error

CODEC_INFO = {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.g": 2, "video.crf": 16}
_OPTIONS = {"preset": "veryfast", "g": "2", "crf": "16", "bf": "0"}
"""A key frame every second frame makes seeking exact and cheap; without B-frames files join by copying packets."""

EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""With one thread: the same frame gave two pictures once, two levels apart, and sharing it out is the suspect."""


def encode(images: UInt8[np.ndarray, "T height width 3"], fps: int) -> bytes:
    """An mp4 of these frames, one after another at `fps`. Raises UserError for sizes H.264 cannot hold."""
    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"H.264 holds images of even height and width, but {height}x{width} came: crop or resize them.")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=dict(_OPTIONS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class JoinedVideo:
    """One mp4 that grows by whole videos of ours; packets are copied, nothing is encoded again."""

    def __init__(self, path: Path, fps: int) -> None:
        self.frames = 0
        self.size = 0
        self._fps = fps
        self._stream = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"})

    def append(self, source: Path) -> int:
        """Copy the video at `source` behind what is there; returns how many frames it had."""
        start = self.frames
        with av.open(f"file:{source}") as episode:
            template = episode.streams.video[0]
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(template)
            for packet in episode.demux(template):
                if packet.size == 0:
                    continue
                self.size += packet.size
                packet.stream = self._stream
                packet.time_base = Fraction(1, self._fps)
                packet.pts = packet.dts = self.frames
                packet.duration = 1
                self._container.mux(packet)
                self.frames += 1
        return self.frames - start

    def close(self) -> None:
        self._container.close()


def decode(path: Path, start: float, count: int, fps: int) -> Iterator[Image]:
    """The `count` RGB frames from `start` seconds on. Raises UserError when the file holds fewer or is damaged."""
    if not path.is_file():
        raise UserError(f"The video {path} is missing: copy the dataset again, with its videos/ folder.")
    done, to_rgb = 0, VideoReformatter()
    try:
        with av.open(f"file:{path}") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            earliest = start - 0.5 / fps
            assert stream.time_base is not None
            container.seek(max(0, round(start / stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                if frame.time < earliest:
                    continue
                if done == count:
                    return
                if abs(frame.time - start - done / fps) > 0.5 / fps:
                    break
                yield to_rgb.reformat(frame, format="rgb24", interpolation=EXACT, threads=1).to_ndarray()
                done += 1
    except (FFmpegError, IndexError) as error:
        raise UserError(f"The video {path} is damaged ({error}): copy or record the dataset again.") from error
    if done < count:
        raise UserError(
            f"The video {path} should hold {count} frames from {start:.3f} s on, but holds {done}: "
            f"it is cut off or belongs to another dataset; copy or record the dataset again."
        )
