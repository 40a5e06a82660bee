"""Reads and writes datasets with the lerobot package itself. Run by tests/data/oracle.py, never imported.

python lerobot_dataset.py read ROOT OUT.npz DELTAS.json     every item of a dataset
python lerobot_dataset.py write ROOT EPISODES.npz           a dataset of these episodes
python lerobot_dataset.py rate ROOT SECONDS                 items a second, in random order
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import av
import numpy as np
import torch
from lerobot.datasets import lerobot_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def decode(path, timestamps, tolerance_s, *_, **__) -> torch.Tensor:
    """What lerobot's own PyAV path does, without torchvision: from the key frame before, the nearest frames."""
    frames, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(max(0, int(min(timestamps) / stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).movedim(-1, 0))
            times.append(frame.time)
            if frame.time >= max(timestamps):
                break
    wanted, there = torch.tensor(timestamps, dtype=torch.float64), torch.tensor(times, dtype=torch.float64)
    nearest = (wanted[:, None] - there).abs().min(1)
    assert (nearest.values < tolerance_s).all(), f"{path}: no frame at {timestamps}"
    return torch.stack([frames[i] for i in nearest.indices]).float() / 255


lerobot_dataset.decode_video_frames = decode
stack = torch.stack
torch.stack = lambda tensors, *rest, **named: stack(list(tensors), *rest, **named)  # 0.3.3 gives it a lazy column


def read(root: Path, out: Path, deltas: dict[str, list[float]]) -> None:
    dataset = LeRobotDataset("oracle/dataset", root=root, delta_timestamps=deltas or None)
    items = [dataset[i] for i in range(len(dataset))]
    kept = [name for name in items[0] if name not in ("task", "subtask")]
    columns = {name: np.stack([np.asarray(item[name]) for item in items]) for name in kept}
    tasks = np.array([item["task"] for item in items])
    stats = {
        f"stats/{name}/{key}": np.asarray(value)
        for name, group in dataset.meta.stats.items()
        for key, value in group.items()
    }
    np.savez(out, task=tasks, **columns, **stats)


def write(root: Path, source: Path) -> None:
    arrays = dict(np.load(source))
    about = json.loads(str(arrays.pop("about")))
    features = {name: {**feature, "shape": tuple(feature["shape"])} for name, feature in about["features"].items()}
    dataset = LeRobotDataset.create(
        "oracle/dataset", about["fps"], features, root=root, robot_type="point", use_videos=True,
    )  # fmt: skip
    first = 0
    for length, task in zip(about["lengths"], about["tasks"], strict=True):
        for row in range(first, first + length):
            frame = {name: values[row] for name, values in arrays.items()}
            if hasattr(dataset, "finalize"):
                dataset.add_frame(frame | {"task": task})
            else:
                dataset.add_frame(frame, task=task)
        dataset.save_episode()
        first += length
    if hasattr(dataset, "finalize"):
        dataset.finalize()


def rate(root: Path, seconds: float) -> None:
    dataset = LeRobotDataset("oracle/dataset", root=root)
    order = np.random.default_rng(0).permutation(len(dataset))
    for i in order[:20]:
        dataset[int(i)]
    done, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        dataset[int(order[done % len(order)])]
        done += 1
    print(done / (time.process_time() - began))


if __name__ == "__main__":
    command, root = sys.argv[1], Path(sys.argv[2])
    if command == "read":
        read(root, Path(sys.argv[3]), json.loads(Path(sys.argv[4]).read_text()))
    elif command == "write":
        write(root, Path(sys.argv[3]))
    else:
        rate(root, float(sys.argv[3]))
