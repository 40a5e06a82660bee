"""Every frame that is asked for is the frame of its time, whatever the video is made of."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from tests.data.numbered import number_in, numbered_images

from hypervla.contracts import UserError
from hypervla.data.handles import Handles
from hypervla.data.video import can_copy, encode
from hypervla.data.video_reader import OpenVideo

COUNT, FPS = 120, 15


def write(path: Path, **options: str) -> Path:
    """A video of numbered frames by x264 with these options."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", **options})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for image in numbered_images(0, COUNT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "options",
    [{"g": "2", "bf": "0"}, {"g": "250", "bf": "0"}, {"g": "30", "bf": "3"}, {"g": "30", "x264-params": "open-gop=1"}],
    ids=str,
)
def test_frames_are_found_with_any_key_frames_and_in_any_order(tmp_path: Path, options: dict[str, str]) -> None:
    video = OpenVideo(write(tmp_path / "a.mp4", **options), 32, 32)
    random = np.random.default_rng(0)
    for rows in (
        [5],
        [5],
        [4],
        list(range(COUNT)),
        [COUNT - 1],
        [0],
        *(sorted(random.integers(COUNT, size=9)) for _ in range(20)),
    ):
        found = video.at([row / FPS for row in map(int, rows)], 1 / FPS)
        assert [number_in(image) for image in found] == [int(row) for row in rows]
    assert video.check([row / FPS for row in range(COUNT)]) == COUNT


def test_images_are_the_callers_own(tmp_path: Path) -> None:
    video = OpenVideo(write(tmp_path / "a.mp4"), 32, 32)
    first = video.at([0.2, 0.2], 1 / FPS)
    first[0][:] = 0
    first[1][:] = 0
    assert number_in(video.at([0.2], 1 / FPS)[0]) == 3


def test_a_frame_that_is_not_at_its_time_is_refused(tmp_path: Path) -> None:
    video = OpenVideo(write(tmp_path / "a.mp4"), 32, 32)
    for time, message in (
        (0.21, r"frame at 0\.2100 s, but the next one is at 0\.2667 s"),
        (9.0, "its end comes before"),
    ):
        with pytest.raises(UserError, match=message):
            video.at([time], 1 / FPS)
    assert number_in(video.at([0.2], 1 / FPS)[0]) == 3, "and the video is still good"
    with pytest.raises(UserError, match="frames of 32×32 pixels, but meta/info.json says 32×64"):
        OpenVideo(tmp_path / "a.mp4", 32, 64)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"b\.mp4 is damaged"):
        OpenVideo(tmp_path / "b.mp4", 32, 32)


def test_only_packets_that_stand_alone_are_copied(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.mp4", g="2", bf="0")
    assert can_copy(plain, 0.0, COUNT, FPS) == can_copy(plain, 4 / FPS, 7, FPS) == "h264"
    assert can_copy(plain, 5 / FPS, 7, FPS) is None, "between two key frames"
    assert can_copy(plain, 4 / FPS, COUNT, FPS) is None, "more than there is"
    assert can_copy(plain, 0.0, COUNT, 10) is None, "another rate"
    assert can_copy(write(tmp_path / "b.mp4", g="30", bf="3"), 0.0, COUNT, FPS) is None, "frames out of order"


def test_equal_frames_give_equal_files() -> None:
    images = numbered_images(7, 12)
    assert len({encode(images, FPS) for _ in range(300)}) == 1


class Thing:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_handles_keep_the_latest_and_none_of_another_process() -> None:
    handles, made = Handles(2), {name: Thing() for name in "abc"}
    for name in "abac":
        assert handles.get(name, lambda name=name: made[name]) is made[name]
    assert [made[name].closed for name in "abc"] == [False, True, False]
    child = os.fork()
    if child == 0:
        os._exit(0 if handles.get("a", lambda: "new") == "new" and not made["a"].closed else 1)
    assert os.waitpid(child, 0)[1] == 0
