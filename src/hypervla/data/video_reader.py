"""Single frames out of long videos: as few seeks as possible, each frame checked to be the one of its time."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypervla.contracts import Image, UserError
from hypervla.data.video import EXACT

try:
    import av
    from av.error import FFmpegError
    from av.video.reformatter import VideoReformatter
except ModuleNotFoundError as error:
    raise UserError("Videos need PyAV: pip install 'hypervla[data]'.") from error

TOLERANCE = 1e-4
"""Seconds that a frame may lie from where it is looked for, as LeRobot has it."""
EARLIER = (1.0, 10.0)
"""Seconds by which a seek is repeated earlier: with B-frames it may land behind the frame."""
NEAR = 3
"""Frames that are decoded and dropped rather than sought over."""


class OpenVideo:
    """One video file and the place in it up to which it is decoded."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        """Raises UserError when the file is no video of this size."""
        self.path, self.size = path, (height, width)
        if not path.is_file():
            raise UserError(f"The video {path} is missing: copy the dataset again, with its videos/ folder.")
        try:
            self._container = av.open(f"file:{path.absolute()}")
            stream = self._container.streams.video[0]
        except (FFmpegError, IndexError, ValueError) as error:
            raise self._damaged(error) from error
        codec = stream.codec_context
        if (codec.height, codec.width) != self.size:
            self.close()
            raise UserError(
                f"The video {path} has frames of {codec.height}×{codec.width} pixels, but meta/info.json says "
                f"{height}×{width}: copy or record the dataset again."
            )
        if stream.time_base is None:
            raise self._damaged("no time base")
        codec.thread_count = 1
        self._stream, self._tick = stream, float(stream.time_base)
        self._keys = sorted(entry.timestamp for entry in stream.index_entries if entry.is_keyframe)
        self._ahead: Iterator[Any] = iter(())
        self._latest: tuple[int, Any] | None = None
        """Time of the frame last given, in ticks, and the frame."""
        self._to_rgb = VideoReformatter()

    def at(self, times: Sequence[float], spacing: float) -> list[Image]:
        """The frames at these ascending times in seconds, of a video with a frame every `spacing` seconds.

        Raises UserError when one is missing or damaged.
        """
        try:
            return [self._frame(time, spacing) for time in times]
        except (FFmpegError, ValueError, OSError, MemoryError) as error:
            self._latest, self._ahead = None, iter(())
            if isinstance(error, UserError):
                raise
            raise self._damaged(error) from error

    def check(self, times: Sequence[float]) -> int:
        """Decode the whole file, whose first frames must be at these ascending times; returns how many there are.

        Raises UserError at the first that is damaged or at another time.
        """
        slack, found = max(TOLERANCE, self._tick / 2), 0
        try:
            self._seek(0.0)
            for frame in self._ahead:
                self._check_frame(frame)
                if found < len(times) and abs(frame.pts * self._tick - times[found]) > slack:
                    raise UserError(
                        f"The video {self.path} has a frame at {frame.pts * self._tick:.4f} s where the metadata puts "
                        f"one at {times[found]:.4f} s: it belongs to another dataset, or one of another rate."
                    )
                found += 1
        except (FFmpegError, ValueError, OSError, MemoryError) as error:
            if isinstance(error, UserError):
                raise
            raise self._damaged(error) from error
        return found

    def close(self) -> None:
        self._container.close()

    def _frame(self, time: float, spacing: float) -> Image:
        wanted, slack = time / self._tick, max(TOLERANCE / self._tick, 0.5)
        if self._latest is not None and abs(self._latest[0] - wanted) <= slack:
            return self._picture(self._latest[1])
        frame = self._next(wanted - slack) if self._is_ahead(wanted, spacing / self._tick) else None
        for seconds in (0.0, *EARLIER):
            if frame is not None and frame.pts <= wanted + slack:
                break
            self._seek(wanted - seconds / self._tick)
            frame = self._next(wanted - slack)
        if frame is None or abs(frame.pts - wanted) > slack:
            near = "its end comes before" if frame is None else f"the next one is at {frame.pts * self._tick:.4f} s"
            raise UserError(
                f"The video {self.path} should hold a frame at {time:.4f} s, but {near}: "
                f"it is cut off or belongs to another dataset; copy or record the dataset again."
            )
        self._check_frame(frame)
        self._latest = (frame.pts, frame)
        return self._picture(frame)

    def _picture(self, frame: Any) -> Image:
        return self._to_rgb.reformat(frame, format="rgb24", interpolation=EXACT, threads=1).to_ndarray()

    def _check_frame(self, frame: Any) -> None:
        if frame.pts is None:
            raise self._damaged("a frame has no time")
        where = f"the frame at {frame.pts * self._tick:.4f} s"
        if frame.is_corrupt:
            raise self._damaged(f"{where} cannot be decoded whole")
        if (frame.height, frame.width) != self.size:
            raise self._damaged(f"{where} has {frame.height}×{frame.width} pixels")

    def _is_ahead(self, wanted: float, spacing: float) -> bool:
        """Whether decoding on gets there as fast as a seek."""
        if self._latest is None or self._latest[0] >= wanted:
            return False
        if wanted - self._latest[0] <= (NEAR + 0.5) * spacing:
            return True
        between = bisect.bisect_right(self._keys, wanted) - bisect.bisect_right(self._keys, self._latest[0])
        return bool(self._keys) and between == 0

    def _seek(self, wanted: float) -> None:
        self._latest = None
        self._container.seek(max(0, round(wanted)), stream=self._stream)
        self._ahead = self._container.decode(self._stream)

    def _next(self, earliest: float) -> Any:
        """The first frame from here on that is not too early; None at the end."""
        for frame in self._ahead:
            if frame.pts is None:
                raise self._damaged("a frame has no time")
            if frame.pts >= earliest:
                return frame
        return None

    def _damaged(self, reason: object) -> UserError:
        return UserError(f"The video {self.path} is damaged ({reason}): copy or record the dataset again.")
