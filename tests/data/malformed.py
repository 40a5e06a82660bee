"""Damages datasets in every way the issue names, and judges what reading them comes to.

    python -m tests.data.malformed --count 2000      # the full run (make fuzz-data)

A *structural* fault (wrong type, count, index, rate, missing or doubled episode, bomb) must be refused with or without
a manifest; a *byte* fault (truncated, flipped, spliced, zeroed, extended, swapped files) must be refused with one.
Nothing may crash, hang or end in anything but a UserError.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from tests.data.recordings import READERS
from tests.data.rlds_files import frame

from hypervla.contracts import UserError
from hypervla.data import manifest as manifests
from hypervla.data.opening import check, kind_of, open_dataset
from hypervla.data.tfrecord import Example, records

Random = np.random.Generator
TIMEOUT, MEMORY_MB = 30.0, 512


def files(root: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in root.rglob(pattern) if path.is_file() and path.name != manifests.NAME)


def any_of(random: Random, items: list) -> Any:
    return items[random.integers(len(items))]


# Byte faults: any file, anywhere


def truncate(root: Path, random: Random) -> str:
    path = any_of(random, [file for file in files(root) if file.stat().st_size > 1])
    keep = int(random.integers(path.stat().st_size))
    path.write_bytes(path.read_bytes()[:keep])
    return f"{path.name} cut to {keep} bytes"


def flip(root: Path, random: Random) -> str:
    path = any_of(random, [file for file in files(root) if file.stat().st_size])
    data = bytearray(path.read_bytes())
    for _ in range(int(random.integers(1, 4))):
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
    changed = bytes(data) != path.read_bytes()
    path.write_bytes(data if changed else data + b"x")
    return f"{path.name} with flipped bits"


def splice(root: Path, random: Random) -> str:
    path, other = any_of(random, files(root)), any_of(random, files(root))
    data, source = bytearray(path.read_bytes()), other.read_bytes()
    at, start, length = (int(random.integers(max(1, n))) for n in (len(data), len(source), 400))
    piece = source[start : start + length + 1]
    new = bytes(data[:at]) + piece + bytes(data[at + len(piece) :])
    path.write_bytes(new if new != bytes(data) else new + piece)
    return f"{path.name} with bytes of {other.name}"


def extend(root: Path, random: Random) -> str:
    path = any_of(random, files(root))
    path.write_bytes(path.read_bytes() + random.bytes(int(random.integers(1, 300))))
    return f"{path.name} extended"


def zero(root: Path, random: Random) -> str:
    path = any_of(random, [file for file in files(root) if any(file.read_bytes())])
    data = bytearray(path.read_bytes())
    at = int(any_of(random, [i for i, byte in enumerate(data) if byte]))
    data[at : at + 200] = bytes(len(data[at : at + 200]))
    path.write_bytes(data)
    return f"{path.name} with zeros"


BYTES = (truncate, flip, splice, extend, zero)


# Structural faults of any LeRobot dataset


def edit_json(root: Path, name: str, edit: Callable[[Any], None]) -> None:
    path = root / name
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def wrong_info(root: Path, random: Random) -> str:
    changes: list[tuple[str, Any]] = [
        ("fps", 0), ("fps", -3), ("fps", "ten"), ("fps", None), ("fps", float("1e300")), ("fps", 11),
        ("total_episodes", 2**40), ("total_episodes", 1), ("total_episodes", "4"), ("total_frames", 2**40),
        ("total_frames", 3), ("total_frames", -1), ("features", {}), ("features", []), ("features", None),
        ("codebase_version", "v1.6"), ("codebase_version", None), ("data_path", "/etc/passwd"),
        ("data_path", "../../{episode_index}"), ("data_path", "{0.__class__}"), ("video_path", "../x.mp4"),
        ("chunks_size", 0),
    ]  # fmt: skip
    key, value = any_of(random, changes)
    if key == "video_path" and not list(root.rglob("*.mp4")):
        key, value = "fps", 0
    edit_json(root, "meta/info.json", lambda info: info.__setitem__(key, value))
    return f"{key} is {value!r}"


def wrong_feature(root: Path, random: Random) -> str:
    changes = [("action", "shape", [9]), ("action", "shape", [-1]), ("action", "dtype", "string"),
               ("action", "shape", "two"), ("timestamp", "dtype", "int64"), ("index", "dtype", "float32"),
               ("observation.images.top", "shape", [2**20, 2**20, 3]), ("observation.images.top", "shape", [32]),
               ("observation.images.top", "dtype", "audio"), ("observation.state", "shape", [1])]  # fmt: skip
    feature, key, value = any_of(random, changes)
    edit_json(root, "meta/info.json", lambda info: info["features"][feature].__setitem__(key, value))
    return f"{key} of {feature} is {value!r}"


def data_files(root: Path) -> list[Path]:
    return files(root / "data", "*.parquet")


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    table = pq.ParquetFile(path).read()
    pq.write_table(change(table), path, **options)


def wrong_table(root: Path, random: Random) -> str:
    path = any_of(random, data_files(root))

    def replaced(name: str, edit: Callable[[np.ndarray], Any]) -> Callable[[pa.Table], pa.Table]:
        def change(table: pa.Table) -> pa.Table:
            place, values = table.column_names.index(name), table.column(name).combine_chunks()
            new = edit(values.to_numpy(zero_copy_only=False))
            return table.set_column(place, name, new if isinstance(new, pa.Array) else pa.array(new))

        return change

    def moved(values: np.ndarray) -> np.ndarray:
        new = np.array(values)
        new[random.integers(len(new))] += 1
        return new

    def hole(table: pa.Table, name: str) -> pa.Table:
        column = table.column(name).combine_chunks()
        mask = np.zeros(len(column), bool)
        mask[random.integers(len(column))] = True
        return table.set_column(table.column_names.index(name), name, pc.if_else(pa.array(mask), None, column))

    def not_a_number(table: pa.Table) -> pa.Table:
        column = table.column("action").combine_chunks()
        values = np.array(column.flatten().to_numpy(), np.float32)
        values[random.integers(len(values))] = any_of(random, [np.nan, np.inf, -np.inf])
        new = pa.FixedSizeListArray.from_arrays(pa.array(values), column.type.list_size)
        return table.set_column(table.column_names.index("action"), "action", new)

    swap = random.permutation(len(pq.ParquetFile(path).read(columns=["index"])))
    if (swap == np.arange(len(swap))).all():
        swap = swap[::-1] if len(swap) > 1 else np.array([0, 0])
    faults: dict[str, Callable[[pa.Table], pa.Table]] = {
        "a row is missing": lambda table: table.slice(0, len(table) - 1),
        "a row is doubled": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
        "rows are out of order": lambda table: table.take(pa.array(swap)),
        "no action": lambda table: table.drop_columns(["action"]),
        "no index": lambda table: table.drop_columns(["index"]),
        "an index is wrong": replaced("index", moved),
        "a frame_index is wrong": replaced("frame_index", moved),
        "an episode_index is wrong": replaced("episode_index", moved),
        "an unknown task": replaced("task_index", lambda values: np.array(values) + 1000),
        "a timestamp is wrong": replaced("timestamp", moved),
        "timestamps of another rate": replaced("timestamp", lambda values: np.float32(np.array(values) * 1.1 + 0.01)),
        "timestamps in float64": replaced("timestamp", lambda values: np.array(values, np.float64)),
        "indices in text": replaced("index", lambda values: [str(value) for value in values]),
        "an action is null": lambda table: hole(table, "action"),
        "an index is null": lambda table: hole(table, "index"),
        "an action is no number": not_a_number,
        "another column of actions": lambda table: table.append_column("action", table.column("action")),
    }
    name = any_of(random, list(faults))
    rewrite(path, faults[name])
    return f"{path.name}: {name}"


def lost_file(root: Path, random: Random) -> str:
    path = any_of(random, [*files(root, "*.parquet"), *files(root, "*.mp4"), *files(root, "*.jsonl")])
    path.unlink()
    return f"{path.relative_to(root)} is gone"


def bomb(root: Path, random: Random) -> str:
    kind = any_of(random, ["rows", "columns", "lists", "picture"])
    path = any_of(random, data_files(root))
    if kind == "picture":
        image_columns = [f for f in pq.ParquetFile(path).schema_arrow if pa.types.is_struct(f.type)]
        if image_columns:
            data = huge_png()

            def paint(table: pa.Table) -> pa.Table:
                rows = [{"bytes": data, "path": "x.png"}] * len(table)
                name = image_columns[0].name
                return table.set_column(table.column_names.index(name), name, pa.array(rows, image_columns[0].type))

            rewrite(path, paint)
            return f"{path.name}: a picture of 30,000² pixels"
        kind = "rows"
    if kind == "rows":
        count = 20_000_000
        table = pa.table({"index": pa.nulls(0, pa.int64())})
        table = pa.table(
            {"index": pa.array(np.zeros(count, np.int64)), "action": pa.array(np.zeros(count, np.float32))}
        )
        pq.write_table(table, path, compression="zstd")
    elif kind == "columns":
        pq.write_table(pa.table({f"c{i}": pa.array([0]) for i in range(20_000)}), path)
    else:
        flat = np.zeros(20_000_000, np.float32)
        rows = len(pq.ParquetFile(path).read(columns=["index"]))
        offsets = np.concatenate([[0], np.full(rows, len(flat))]).astype(np.int32)

        def stretch(table: pa.Table) -> pa.Table:
            new = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
            return table.set_column(table.column_names.index("action"), "action", new)

        rewrite(path, stretch, compression="zstd")
    return f"{path.name}: far more {kind} than said"


def huge_png() -> bytes:
    """A valid PNG of 30,000² grey pixels in about 100 kB."""
    global _huge
    if not _huge:
        buffer = io.BytesIO()
        Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
        Image.new("1", (30_000, 30_000)).save(buffer, "PNG", compress_level=9)
        Image.MAX_IMAGE_PIXELS, _huge = before, buffer.getvalue()
    return _huge


_huge = b""


# Structural faults of one LeRobot version


def episode_rows(root: Path, random: Random) -> str:
    """v3.0: the table of episodes."""
    path = any_of(random, files(root / "meta/episodes", "*.parquet"))
    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    number = int(random.integers(len(rows)))
    times = [key for key in rows[0] if key.endswith("from_timestamp")]
    faults: dict[str, Callable[[], Any]] = {
        "missing": lambda: rows.pop(number),
        "doubled": lambda: rows.insert(number, dict(rows[number])),
        "longer": lambda: rows[number].update(length=rows[number]["length"] + 1),
        "elsewhere": lambda: rows[number].update({"data/file_index": 700}),
        "shifted": lambda: rows[number].update(dataset_from_index=rows[number]["dataset_from_index"] + 1),
        "of 2^40 steps": lambda: rows[number].update(length=2**40, dataset_to_index=2**40),
        "null": lambda: rows[number].update(length=None),
    }
    if times:
        faults["later in the video"] = lambda: rows[number].update({times[0]: rows[number][times[0]] + 0.1})
        faults["before the video"] = lambda: rows[number].update({times[0]: -5.0})
    name = any_of(random, list(faults))
    faults[name]()
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return f"episode {number} is {name}"


def episode_lines(root: Path, random: Random) -> str:
    """v2.1: the list of episodes."""
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    number = int(random.integers(len(rows)))
    faults: dict[str, Callable[[], Any]] = {
        "missing": lambda: rows.pop(number),
        "doubled": lambda: rows.insert(number, dict(rows[number])),
        "longer": lambda: rows[number].update(length=rows[number]["length"] + 1),
        "of 2^40 steps": lambda: rows[number].update(length=2**40),
        "of negative length": lambda: rows[number].update(length=-1),
        "of unknown task": lambda: rows[number].update(tasks=["sing"]),
        "no row": lambda: rows.__setitem__(number, 7),
        "renumbered": lambda: rows[number].update(episode_index=99),
    }
    name = any_of(random, list(faults))
    faults[name]()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"episode {number} is {name}"


def other_video(root: Path, random: Random) -> str:
    """A whole video of another episode, size or length in place of one."""
    from hypervla.data.video import encode

    path = any_of(random, files(root, "*.mp4"))
    size, count, fps = any_of(random, [(32, 2, 10), (16, 40, 10), (32, 40, 5), (32, 300, 10)])
    path.write_bytes(encode(np.zeros((count, size, size, 3), np.uint8), fps))
    return f"{path.name} is a video of {count} frames of {size}² at {fps}"


# Structural faults of RLDS


def shards(root: Path) -> list[Path]:
    return files(root, "*.tfrecord-*")


def rlds_records(root: Path, random: Random) -> str:
    """Whole, correctly framed records that are too many, too few or not what features.json says."""
    path = any_of(random, shards(root))
    payloads = [payload for _, payload in records(path)]
    number = int(random.integers(len(payloads)))
    name = any_of(random, ["missing", "doubled", "text", "without a feature", "short", "of another type", "a bomb",
                           "without steps", "with a picture of another size", "not a number"])  # fmt: skip
    example = Example.FromString(payloads[number])
    feature = example.features.feature
    image = next(key for key in sorted(feature) if key.startswith("steps/observation/image"))
    if name == "missing":
        payloads.pop(number)
    elif name == "doubled":
        payloads.insert(number, payloads[number])
    elif name == "text":
        payloads[number] = b"this is no example"
    else:
        key = any_of(random, [k for k in sorted(feature) if k.startswith("steps/")])
        if name == "without a feature":
            feature.pop(key)
        elif name == "short":
            kind = feature[key].WhichOneof("kind")
            getattr(feature[key], kind).value.pop()
        elif name == "of another type":
            kind = feature[key].WhichOneof("kind")
            feature[key].Clear()
            if kind == "bytes_list":
                feature[key].int64_list.value.extend([1, 2, 3])
            else:
                feature[key].bytes_list.value.append(b"x")
        elif name == "a bomb":
            feature[image].bytes_list.value[0] = huge_png()
        elif name == "without steps":
            for each in [k for k in feature if k.startswith("steps/")]:
                kind = feature[each].WhichOneof("kind")
                del getattr(feature[each], kind).value[:]
        elif name == "not a number":
            feature["steps/action"].float_list.value[0] = float("nan")
        else:
            buffer = io.BytesIO()
            Image.new("RGB", (9, 7)).save(buffer, "JPEG")
            feature[image].bytes_list.value[0] = buffer.getvalue()
        payloads[number] = example.SerializeToString(deterministic=True)
    path.write_bytes(b"".join(frame(payload) for payload in payloads))
    info = files(root, "dataset_info.json")[0].parent
    if random.integers(2):  # sizes that fit, so that the fault itself has to be found

        def resize(about: dict) -> None:
            split = next(s for s in about["splits"] if s["name"] == "train")
            all_shards = shards(root)
            total = sum(file.stat().st_size for file in all_shards)
            split["numBytes"] = str(total - 16 * sum(len(list(records(file))) for file in all_shards))

        edit_json(info, "dataset_info.json", resize)
    return f"record {number} of {path.name} is {name}"


def rlds_info(root: Path, random: Random) -> str:
    folder = files(root, "dataset_info.json")[0].parent
    changes: list[tuple[str, Callable[[dict], Any]]] = [
        ("2^40 episodes", lambda split: split.update(shardLengths=[str(2**40)])),
        ("a negative length", lambda split: split.update(shardLengths=["-1"])),
        ("no lengths", lambda split: split.update(shardLengths=[])),
        ("text for a length", lambda split: split.update(shardLengths=["many"])),
        (
            "one episode fewer",
            lambda split: split["shardLengths"].__setitem__(0, str(int(split["shardLengths"][0]) - 1)),
        ),
        ("other bytes", lambda split: split.update(numBytes=str(int(split["numBytes"]) + 1))),
        ("a path", lambda split: split.update(filepathTemplate="../../../etc/{SPLIT}")),
        ("no name", lambda split: split.pop("name")),
    ]
    name, change = any_of(random, changes)
    edit_json(folder, "dataset_info.json", lambda about: change(about["splits"][0]))
    return f"dataset_info.json with {name}"


def rlds_features(root: Path, random: Random) -> str:
    folder = files(root, "features.json")[0].parent
    text = (folder / "features.json").read_text()
    changes = [
        ('"float32"', '"complex64"'), ('"7"', '"-7"'), ('"7"', '"9"'), ('"7"', '"9223372036854775807"'),
        ("float32", "int64"), ("jpeg", "webm"), ("python_class_name", "p"), ("pythonClassName", "p"),
    ]  # fmt: skip
    usable = [pair for pair in changes if pair[0] in text]
    old, new = any_of(random, usable)
    (folder / "features.json").write_text(text.replace(old, new))
    return f"features.json with {new} for {old}"


def rlds_lost(root: Path, random: Random) -> str:
    path = any_of(random, [*shards(root), *files(root, "*.json")])
    path.unlink()
    return f"{path.name} is gone"


# Structural faults of LIBERO's HDF5 files


def hdf5_demo(root: Path, random: Random) -> str:
    """One dataset of one demonstration is gone, or not what it was."""
    import h5py

    path = any_of(random, files(root))
    with h5py.File(path, "a") as file:
        demo = file["data"][any_of(random, list(file["data"]))]
        name = any_of(random, ["actions", "states", "obs/ee_states", "obs/gripper_states", "obs/joint_states",
                               "obs/agentview_rgb", "obs/eye_in_hand_rgb"])  # fmt: skip
        values = demo[name][()]
        faults = ["gone", "shorter", "longer", "narrower", "text", "complex", "a group", "flat", "unwritten", "a bomb"]
        fault = any_of(random, [*faults, "not a number"] if values.ndim == 2 else faults)
        del demo[name]
        if fault == "a group":
            demo.create_group(name)
        elif fault == "unwritten":
            demo.create_dataset(name, values.shape, values.dtype)
        elif fault == "a bomb":
            demo.create_dataset(name, (2**33, *values.shape[1:]), values.dtype, chunks=True, compression="gzip")
            demo[name][0] = values[0]
        elif fault != "gone":
            spoilt = {
                "shorter": values[:-1],
                "longer": np.concatenate([values, values[:1]]),
                "narrower": values[..., : 1 if name == "states" else -1],
                "text": values.astype("S8"),
                "complex": values.astype(np.complex64),
                "flat": values.ravel(),
                "not a number": np.where(np.arange(values.size).reshape(values.shape) == 0, np.nan, values),
            }
            demo.create_dataset(name, data=spoilt[fault])
    return f"{name} of {path.name} is {fault}"


def hdf5_about(root: Path, random: Random) -> str:
    import h5py

    path = any_of(random, files(root))
    with h5py.File(path, "a") as file:
        demo = any_of(random, list(file["data"]))
        fault = any_of(random, ["gone", "renamed", "of other length", "one of 2^40", "one of many"])
        if fault == "gone":
            del file["data"][demo]
        elif fault == "renamed":
            file["data"].move(demo, "demo")
        elif fault == "of other length":
            file["data"][demo].attrs["num_samples"] = 2**40
        else:
            file["data"].attrs["num_demos"] = 2**40 if fault == "one of 2^40" else "many"
    return f"{demo} of {path.name} is {fault}"


STRUCTURAL = {
    "lerobot v3.0": (wrong_info, wrong_feature, wrong_table, lost_file, bomb, episode_rows, other_video),
    "lerobot v2.1": (wrong_info, wrong_feature, wrong_table, lost_file, bomb, episode_lines),
    "rlds": (rlds_records, rlds_info, rlds_features, rlds_lost),
    "libero": (hdf5_demo, hdf5_about),
}


# Judging


@dataclass(frozen=True)
class Verdict:
    fault: str
    outcome: str
    """refused, accepted, or what went wrong."""
    seconds: float
    grown_mb: float

    def wrong(self, must_refuse: bool) -> str | None:
        """What this verdict breaks, if anything."""
        if self.outcome not in ("refused", "accepted"):
            return self.outcome
        if must_refuse and self.outcome == "accepted":
            return "accepted silently"
        if self.seconds > TIMEOUT:
            return f"took {self.seconds:.0f} s"
        return f"took {self.grown_mb:.0f} MB" if self.grown_mb > MEMORY_MB else None


def read_whole(root: Path) -> None:
    """Check the dataset as `hypervla data check` would, then open and read it as training would."""
    check(root)
    reader = open_dataset(root)
    _ = reader.digest, reader.statistics()
    for camera in reader.embodiment.cameras:
        reader.images(camera.name, range(len(reader.actions)))


def try_one(kind: str, source: Path, seed: int, structural: bool, with_manifest: bool) -> Verdict:
    """Damage a copy of the dataset and read it whole."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        shutil.copytree(source, root)
        if with_manifest:
            manifests.write(root)
        fault = any_of(random, list(STRUCTURAL[kind] if structural else BYTES))(root, random)
        peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        outcome = "accepted"
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                read_whole(root)
        except UserError:
            outcome = "refused"
        except BaseException:
            outcome = traceback.format_exc(limit=-3)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
        return Verdict(f"{fault}", outcome, time.monotonic() - began, grown)


def run(kind: str, source: Path, count: int, *, seed: int = 0) -> tuple[Counter, list[str]]:
    """`count` damaged datasets in a process of their own: how they ended, and every wrong ending."""
    assert kind_of(source) == {"libero": "hdf5"}.get(kind, kind.split()[0])
    read_whole(source)  # what is intact is accepted, or nothing here means anything
    pool = None
    endings: Counter = Counter()
    wrong: list[str] = []
    for number in range(seed, seed + count):
        structural, with_manifest = bool(number % 2), bool(number // 2 % 2)
        if pool is None:
            pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            verdict = pool.submit(try_one, kind, source, number, structural, with_manifest).result(2 * TIMEOUT)
        except (BrokenProcessPool, TimeoutError) as error:
            for process in getattr(pool, "_processes", {}).values():
                process.kill()
            pool, verdict = None, Verdict("unknown", f"crash or hang ({type(error).__name__})", 0, 0)
        complaint = verdict.wrong(must_refuse=structural or with_manifest)
        group = "structural" if structural else "bytes"
        endings[f"{group}, {'' if with_manifest else 'no '}manifest: {verdict.outcome.splitlines()[-1][:40]}"] += 1
        if complaint:
            wrong.append(f"{kind} seed {number} ({verdict.fault}): {complaint}")
    if pool is not None:
        pool.shutdown()
    return endings, wrong


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", choices=list(STRUCTURAL), default=None)
    chosen = options.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, write in READERS.items():
            if chosen.kind not in (None, kind):
                continue
            began = time.monotonic()
            endings, wrong = run(kind, write(Path(folder) / kind.replace(" ", "-")), chosen.count, seed=chosen.seed)
            print(f"{kind}: {chosen.count} datasets in {time.monotonic() - began:.0f} s, {len(wrong)} wrong endings")
            for ending, count in sorted(endings.items()):
                print(f"  {count:6} {ending}")
            for line in wrong[:40]:
                print(f"  WRONG {line}")
            failures += len(wrong)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
