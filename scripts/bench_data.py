"""`make bench-data`: how fast images are read and augmented, beside lerobot's own loader, and whether memory grows.

Everything runs in one go on one core, on the same frames of a simulated table: as LeRobot video, LeRobot images and
RLDS. Frames are drawn at random; ours are decoded and augmented, lerobot's are only decoded. Prints JSON and writes it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from hypervla.contracts import Episode, EpisodeReader
from hypervla.data.augment import OCTO, augment
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_writer import LeRobotWriter
from hypervla.data.mixture import Mixture
from hypervla.data.rlds import RldsDataset
from hypervla.data.staged import stage_episode
from hypervla.data.stream import SampleStream, Sampling
from hypervla.embodiment import METAWORLD_SAWYER, Camera, Embodiment

SIZE, BATCH = 224, 32
ROOT = Path(__file__).resolve().parents[1]


def robot(size: int) -> Embodiment:
    return replace(METAWORLD_SAWYER, cameras=(Camera("corner2", size, size),))


def episodes(count: int, length: int, size: int) -> Iterator[Episode]:
    """Metaworld's drawer, opened by its scripted expert, at `size`² pixels."""
    from hypervla.contracts import ActionChunk
    from hypervla.simulation.demonstrators.metaworld import make

    environment, expert = make("drawer-open-v3")
    for seed in range(count):
        environment.reset(seed)
        images, actions, states = [], [], []
        for _ in range(length):
            images.append(environment.render(size))
            states.append(environment.proprio())
            actions.append(np.asarray(expert.action(), np.float32))
            environment.execute(ActionChunk(actions[-1][None]))
        yield Episode("open the drawer", {"corner2": np.stack(images)}, np.stack(actions), np.stack(states))
    environment.close()


def write_all(folder: Path, recorded: list[Episode], size: int) -> dict[str, EpisodeReader]:
    """The same episodes as LeRobot video, LeRobot images and RLDS."""
    for kind in ("video", "image"):
        writer = LeRobotWriter(folder / kind, robot(size), images=kind)
        for number, episode in enumerate(recorded):
            stage_episode(folder / f"staging-{kind}/{number}", episode, writer.fps, images=kind)
            writer.add(folder / f"staging-{kind}/{number}")
        writer.finish(paraphrases={}, about={})
    write_rlds(folder / "rlds", recorded)
    return {
        "LeRobot video (h264)": LeRobotDataset(folder / "video"),
        "LeRobot images (PNG)": LeRobotDataset(folder / "image"),
        "RLDS (JPEG)": RldsDataset(folder / "rlds"),
    }


def write_rlds(root: Path, recorded: list[Episode]) -> None:
    """The episodes as a dataset like BridgeData, JPEG at quality 95."""
    sys.path.insert(0, str(ROOT))
    from tests.data.rlds_files import BRIDGE, bridge_episode, group, image, steps, tensor, write_dataset

    size = recorded[0].images["corner2"].shape[1]
    pictures = {"image_0": image(size, size, 3), "image_1": image(20, 16, 3)}
    features = BRIDGE | {"observation": group({"state": tensor("float32", 7), **pictures})}
    episodes = []
    for number, episode in enumerate(recorded):
        stored = bridge_episode(len(episode), number)
        stored["steps/observation/image_0"] = [jpeg(pixels) for pixels in episode.images["corner2"]]
        episodes.append(stored)
    write_dataset(root, steps(features), {"train": [episodes]})


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def rate(work: Callable[[np.ndarray], None], rows: int, seconds: float) -> float:
    """Frames per second of `work` on random rows, in batches, after one batch to warm up."""
    random, done = np.random.default_rng(0), 0
    work(random.integers(rows, size=BATCH))
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        work(random.integers(rows, size=BATCH))
        done += BATCH
    return done / elapsed


def ours(reader: EpisodeReader, seconds: float, augmented: bool) -> float:
    camera = reader.embodiment.cameras[0].name

    out = np.empty((SIZE, SIZE, 3), np.uint8)

    def work(rows: np.ndarray) -> None:
        for number, image in enumerate(reader.images(camera, rows.tolist())):
            if augmented:
                augment(image, OCTO, (number, 0), out)

    return rate(work, len(reader.actions), seconds)


def jpeg_ceiling(recorded: list[Episode], seconds: float) -> float:
    """Frames per second of decoding alone, from memory."""
    files = [jpeg(image) for image in np.concatenate([episode.images["corner2"] for episode in recorded])[:256]]

    def work(rows: np.ndarray) -> None:
        for row in rows:
            np.asarray(Image.open(io.BytesIO(files[row])).convert("RGB"))

    return rate(work, len(files), seconds)


def theirs(root: Path, seconds: float) -> float | None:
    """Frames per second of lerobot's own loader on a LeRobot dataset; None where lerobot is not installed."""
    scripts, package = ROOT / "tests/oracles", Path(sys.prefix) / "oracles/lerobot-0.4.4"
    if not package.is_dir():
        return None
    with TemporaryDirectory() as caches:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(scripts / "standins"), str(package)]),
            "HF_HOME": caches,
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, str(scripts / "lerobot_dataset.py"), "rate", str(root), str(seconds)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_growth(reader: EpisodeReader, size: int, samples: int) -> dict[str, float]:
    """Resident memory after a tenth of the samples and after all, augmented, in MB."""
    mixture = Mixture([reader])
    sampling = Sampling(image_size=size, augmentation=OCTO, unlabelled=True)
    stream = SampleStream(mixture, mixture.robots("normal"), sampling, seed=0, reads_proprio=False)
    sizes: dict[str, float] = {}
    for step in range(samples // BATCH):
        stream.batch(step, BATCH)
        if step + 1 in (samples // 10 // BATCH, samples // BATCH):
            sizes[f"after {(step + 1) * BATCH:,}"] = round(resident_mb(), 1)
    first, last = sizes.values()
    return sizes | {"growth": round(last / first - 1, 4)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=10, help="length of each measurement")
    options.add_argument("--episodes", type=int, default=24)
    options.add_argument(
        "--samples", type=int, default=100_000, help="samples of the memory measurement; 0 leaves it out"
    )
    options.add_argument("--memory-size", type=int, default=64, help="image size of the memory measurement")
    options.add_argument("--out", type=Path, default=Path("runs/bench-data.json"))
    chosen = options.parse_args()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    with TemporaryDirectory() as folder:
        recorded = list(episodes(chosen.episodes, 60, SIZE))
        readers = write_all(Path(folder) / "fast", recorded, SIZE)
        result: dict[str, object] = {"device": cpu(), "frames per second": {}}
        table = result["frames per second"]
        for name, kind in (("LeRobot video (h264)", "video"), ("LeRobot images (PNG)", "image"), ("RLDS (JPEG)", None)):
            reader = readers[name]
            row = {"decoded": ours(reader, chosen.seconds, False), "augmented": ours(reader, chosen.seconds, True)}
            other = theirs(Path(folder) / "fast" / kind, chosen.seconds) if kind else None
            if other is not None:
                row["lerobot, decoded"] = other
                row |= {f"{what} / lerobot": row[what] / other for what in ("decoded", "augmented")}
            table[name] = {key: round(value, 2) for key, value in row.items()}
        table["JPEG decoding alone"] = {"decoded": round(jpeg_ceiling(recorded, chosen.seconds), 2)}
        if chosen.samples:
            small = [
                replace(e, images={"corner2": e.images["corner2"][:, ::4, ::4][:, :56, :56]}) for e in recorded[:8]
            ]
            readers = write_all(Path(folder) / "long", small, 56)
            result["resident MB"] = {
                name: memory_growth(reader, chosen.memory_size, chosen.samples) for name, reader in readers.items()
            }
    print(json.dumps(result, indent=2))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")


def cpu() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"one core of {names[0] if names else 'an unknown processor'}"


if __name__ == "__main__":
    main()
