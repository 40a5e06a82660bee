"""The numbers of an RLDS dataset and the places of its images: one pass over the shards, then kept in a cache."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt32

from hypervla.contracts import UserError
from hypervla.data.manifest import SETTLED, cache_folder
from hypervla.data.oxe import OxeRow
from hypervla.data.rlds_features import STEPS, Feature, decode, length
from hypervla.data.rlds_folder import Record, RldsFolder, Split
from hypervla.data.tfrecord import crc32c
from hypervla.durable import write_atomically

SHOWN = 1 << 27
"""Bytes from which on reading shows its progress."""

FORMAT = 1
"""Of the cached file and of the standardisation in it; a new one makes old caches worthless."""


@dataclass(frozen=True)
class Images:
    """Where each row's image of one camera lies in its shard."""

    offsets: Int64[np.ndarray, " F"]
    lengths: Int32[np.ndarray, " F"]
    checksums: UInt32[np.ndarray, " F"]
    """CRC32C of the encoded image."""


@dataclass(frozen=True)
class Index:
    """All numbers of a dataset after standardisation, and where its images are."""

    starts: Int64[np.ndarray, " starts"]
    actions: Float32[np.ndarray, "F A"]
    proprio: Float32[np.ndarray, "F P"] | None
    instructions: tuple[str, ...]
    """The different ones."""
    instruction_of: Int32[np.ndarray, " F"]
    records: Int32[np.ndarray, " E"]
    """Which record of its split each episode is."""
    shards: Int32[np.ndarray, " E"]
    """The shard of each episode, counted over all splits."""
    images: Mapping[str, Images]
    """By camera."""
    empty: int
    """Episodes left out because no step is left of them."""


class Steps(Mapping[str, Any]):
    """The steps of one episode by feature, decoded when asked for; names are those below `steps`."""

    def __init__(self, features: Mapping[str, Feature], record: Record) -> None:
        self._features, self._record = features, record
        self.count = length(features, record.features, record.where)

    def __getitem__(self, name: str) -> Any:
        feature = self._features.get(STEPS + name)
        if feature is None:
            raise UserError(
                f"{self._record.where} has no step feature '{name}'; there are {', '.join(sorted(self))}: "
                f"correct the dataset's row."
            )
        return decode(feature, self._record.features, self.count, self._record.where)

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(STEPS) for name, feature in self._features.items() if feature.in_steps)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def open_index(folder: RldsFolder, splits: Sequence[Split], row: OxeRow) -> Index:
    """The index from the cache if it is of these very files, else built, and kept for the next time.

    A cache that is damaged, or of other files, is built anew; one that cannot be written is done without.
    """
    names = "-".join(split.name for split in splits)
    place = hashlib.sha256(f"{folder.root.absolute()}\0{row.name}\0{names}".encode()).hexdigest()[:32]
    path, key = cache_folder() / "rlds" / f"{folder.name}-{place}.index", _key(folder, splits, row)
    index = _load(path, key, row)
    if index is None:
        began = time.time()
        index = build(folder, splits, row)
        newest = max(shard.stat().st_mtime for split in splits for shard in split.shards)
        if _key(folder, splits, row) == key and began - newest > SETTLED:
            with suppress(OSError):
                _save(path, key, index)
    return index


def build(folder: RldsFolder, splits: Sequence[Split], row: OxeRow) -> Index:
    """Read all records once, one in memory at a time, checking every checksum, count and type that is needed.

    Raises UserError naming the episode and the feature that are not as announced.
    """
    keys = {camera: camera_feature(folder, row, camera) for camera in row.cameras}
    found, before = _Pass({camera: [] for camera in keys}), 0
    with _progress(folder.name, sum(path.stat().st_size for split in splits for path in split.shards)) as advance:
        for split in splits:
            for record in split:
                found.add(record, before, Steps(folder.features, record), row, keys)
                advance(len(record.payload))
            before += len(split.shards)
    if not found.lengths:
        raise UserError(f"{folder.root} has no episode with a step in {', '.join(split.name for split in splits)}.")
    return found.index(row)


def _key(folder: RldsFolder, splits: Sequence[Split], row: OxeRow) -> bytes:
    """sha256 of all that an index depends on."""
    shards = [path for split in splits for path in split.shards]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in shards]
    about = [path.read_bytes() for path in (folder.info_path, folder.root / "features.json")]
    return hashlib.sha256(repr((FORMAT, about, states, [split.name for split in splits], row)).encode()).digest()


def _save(path: Path, key: bytes, index: Index) -> None:
    """Key, sha256 of what follows, then the arrays as .npz."""
    arrays: dict[str, Any] = {name: value for name, value in vars(index).items() if isinstance(value, np.ndarray)}
    arrays |= {f"{camera}/{name}": a for camera, images in index.images.items() for name, a in vars(images).items()}
    words = np.frombuffer(json.dumps(index.instructions).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, instructions=words, empty=np.array(index.empty), **arrays)
    data = content.getvalue()
    write_atomically(path, key + hashlib.sha256(data).digest() + data)


def _load(path: Path, key: bytes, row: OxeRow) -> Index | None:
    """The index that was saved under the key; None when it is another's, damaged or not there."""
    try:
        with open(path, "rb") as file:
            known, content = file.read(32), file.read(32)
            if known != key or content != hashlib.file_digest(file, "sha256").digest():
                return None
            file.seek(64)
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays}
    except OSError:
        return None
    images = {
        camera: Images(**{name: found.pop(f"{camera}/{name}") for name in ("offsets", "lengths", "checksums")})
        for camera in row.cameras
    }
    words, empty = json.loads(found.pop("instructions").tobytes()), int(found.pop("empty"))
    return Index(**{"proprio": None, **found}, instructions=tuple(words), images=images, empty=empty)


def camera_feature(folder: RldsFolder, row: OxeRow, camera: str) -> Feature:
    """The image feature of a camera. Raises UserError when the dataset has none of that name and kind."""
    name = f"{STEPS}observation/{row.cameras[camera]}"
    feature = folder.features.get(name)
    if feature is None or feature.kind != "image":
        images = sorted(name for name, known in folder.features.items() if known.kind == "image" and known.in_steps)
        raise UserError(
            f"Camera '{camera}' of {row.name} is '{name}', but {folder.root} has the images "
            f"{', '.join(images) or 'none'}: correct the dataset's row."
        )
    if feature.dtype != "uint8" or len(feature.shape) != 3 or feature.shape[2] not in (None, 3):
        raise UserError(
            f"Camera '{camera}' of {row.name} is '{name}', an image of {feature.dtype} {feature.shape}, "
            f"but uint8 with three channels is needed: name another one in the dataset's row."
        )
    return feature


@dataclass
class _Pass:
    """What one pass gathers, episode by episode."""

    places: dict[str, list[np.ndarray]]
    """By camera and episode: offsets, lengths and checksums (T, 3)."""
    lengths: list[int] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    proprio: list[np.ndarray] = field(default_factory=list)
    words: dict[str, int] = field(default_factory=dict)
    spoken: list[np.ndarray] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    empty: int = 0

    def add(self, record: Record, before: int, steps: Steps, row: OxeRow, cameras: Mapping[str, Feature]) -> None:
        """Take in one episode; so many shards come before those of its split.

        Raises UserError for numbers that are not finite.
        """
        if not steps.count:
            self.empty += 1
            return
        try:
            done = row.standardise(steps)
        except UserError as error:
            known = record.where in str(error)
            raise error if known else UserError(f"{record.where}: {error}") from error
        if not len(done.kept):
            self.empty += 1
            return
        for name, values in (("action", done.actions), ("proprio", done.proprio)):
            if values is not None and not np.isfinite(values).all():
                step = int(done.kept[np.flatnonzero(~np.isfinite(values).all(axis=1))[0]])
                raise UserError(f"The {name} of step {step} of {record.where} holds NaN or infinity: repair it.")
        if done.proprio is not None and self.proprio and done.proprio.shape[1] != self.proprio[0].shape[1]:
            raise UserError(
                f"{record.where} has {done.proprio.shape[1]} numbers of proprio, but those before it have "
                f"{self.proprio[0].shape[1]}: copy or write the dataset again."
            )
        for camera, feature in cameras.items():
            images = decode(feature, record.features, steps.count, record.where)
            assert isinstance(images, list)
            self.places[camera].append(_places(record, images)[done.kept])
        self.lengths.append(len(done.kept))
        self.actions.append(done.actions)
        if done.proprio is not None:
            self.proprio.append(done.proprio)
        said = [self.words.setdefault(text, len(self.words)) for text in done.instructions]
        self.spoken.append(np.array(said, np.int32))
        self.records.append(record.number)
        self.shards.append(before + record.shard)

    def index(self, row: OxeRow) -> Index:
        places = {camera: np.concatenate(found) for camera, found in self.places.items()}
        return Index(
            starts=np.cumsum([0, *self.lengths], dtype=np.int64),
            actions=np.concatenate(self.actions),
            proprio=np.concatenate(self.proprio) if self.proprio else None,
            instructions=tuple(self.words),
            instruction_of=np.concatenate(self.spoken),
            records=np.array(self.records, np.int32),
            shards=np.array(self.shards, np.int32),
            images={
                camera: Images(where[:, 0], where[:, 1].astype(np.int32), where[:, 2].astype(np.uint32))
                for camera, where in places.items()
            },
            empty=self.empty,
        )


def _places(record: Record, images: Sequence[bytes]) -> Int64[np.ndarray, "T 3"]:
    """Offset in the shard, length and CRC32C of each image of a record."""
    places, cursor = np.empty((len(images), 3), np.int64), 0
    for step, data in enumerate(images):
        if not record.payload.startswith(data, cursor):  # else it follows the one before, as it nearly always does
            cursor = record.payload.find(data)
        places[step] = record.offset + cursor, len(data), crc32c(data)
        following = len(images[step + 1]) if step + 1 < len(images) else 0
        cursor += len(data) + 1 + _varint_size(following)
    return places


def _varint_size(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line elsewhere, nothing where it takes no time."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if total < SHOWN or not console.is_terminal:
        if total >= SHOWN:
            print(f"reading {total / 1e9:.1f} GB of {name} once, to check and index it", file=sys.stderr, flush=True)
        yield lambda size: None
        return
    with Progress(console=console) as bar:
        task = bar.add_task(f"indexing {name}", total=total)
        yield lambda size: bar.advance(task, size)
