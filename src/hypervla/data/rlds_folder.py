"""An RLDS dataset on disk, as TFDS lays it out: dataset_info.json, features.json and shards of TFRecords by split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError
from hypervla.data.manifest import Hashes, Manifest
from hypervla.data.rlds_features import Feature, read_features
from hypervla.data.tfrecord import FRAME, parse, records

INFO = "dataset_info.json"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
"""How TFDS names shards when dataset_info.json does not say."""


@dataclass(frozen=True)
class Record:
    """One episode as it is stored."""

    number: int
    """Position in its split."""
    shard: int
    """Position of its shard among those of the split."""
    offset: int
    """Where its payload begins in the shard."""
    payload: bytes
    features: Mapping[str, Any]
    """Messages tf.train.Feature by name."""
    where: str
    """Its name in an error."""


@dataclass(frozen=True)
class Split:
    """A named part of the dataset."""

    name: str
    shards: tuple[Path, ...]
    lengths: tuple[int, ...]
    """Records of each shard."""
    size: int
    """numBytes of dataset_info.json."""

    def __len__(self) -> int:
        return sum(self.lengths)

    @cached_property
    def missing(self) -> list[Path]:
        """Shards that are not here."""
        return [path for path in self.shards if not path.is_file()]

    @property
    def is_absent(self) -> bool:
        """Whether nothing of it is here."""
        return len(self.missing) == len(self.shards)

    def check_sizes(self) -> None:
        """Compare the shards with dataset_info.json. Raises UserError when they are absent or of other sizes.

        TFDS counts payloads; its Beam writers that do not shuffle count whole files.
        """
        absent = self.missing
        if absent or not self.shards:
            what = f"{len(absent)} of its {len(self.shards)} shards, {absent[0].name} first" if absent else "all shards"
            raise UserError(f"Split '{self.name}' lacks {what}: copy them, or read another split.")
        total = sum(path.stat().st_size for path in self.shards)
        if self.size not in (total, total - FRAME * len(self)):
            raise UserError(
                f"The {len(self.shards)} shards of split '{self.name}' from {self.shards[0]} on have {total} bytes, "
                f"but {len(self)} records of {self.size} bytes in all should have {self.size + FRAME * len(self)}: "
                f"copy them again."
            )

    def __iter__(self) -> Iterator[Record]:
        """The episodes in order, one in memory at a time. Raises UserError for damage or a wrong number."""
        number = 0
        for shard, (path, length) in enumerate(zip(self.shards, self.lengths, strict=True)):
            before = number
            for offset, payload in records(path):
                where = f"episode {number} (record {number - before} of {path})"
                if number - before == length:
                    raise UserError(f"{path} has more than the {length} records of dataset_info.json: copy it again.")
                yield Record(number, shard, offset, payload, parse(payload, where), where)
                number += 1
            if number - before != length:
                raise UserError(f"{path} has {number - before} records, not {length}: copy it again.")


class RldsFolder:
    """The folder of one version of one dataset; nothing of its shards is read yet."""

    root: Path
    name: str
    splits: Mapping[str, Split]

    def __init__(self, path: Path) -> None:
        """`path` is the version's folder, or one or two levels above where only one dataset lies.

        Raises UserError for anything else, and for metadata that TFDS cannot have written.
        """
        self.root = _locate(path)
        self.info_path = self.root / INFO
        try:
            self.info = json.loads(self.info_path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise UserError(f"{self.info_path} is damaged ({error}): copy the dataset again.") from error
        try:
            self.name = str(self.info["name"])
            self.splits = {split["name"]: self._split(split) for split in self.info["splits"]}
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.info_path} is not what TFDS writes ({type(error).__name__}: {error}): copy the dataset again."
            ) from error

    @cached_property
    def features(self) -> dict[str, Feature]:
        """The leaves of features.json by name. Raises UserError for a damaged one."""
        return read_features(self.root / "features.json")

    def check_manifest(self, known: Hashes | None = None) -> int:
        """Compare all files with the manifest in this folder or one of the two above, if there is one; their number.

        Raises UserError naming the first that differs. `known` remembers hashes; without it every byte is read.
        """
        root = self.root.absolute()
        for folder in (root, *root.parents[:2]):
            found, inside = Manifest.read(folder), "" if folder == root else f"{root.relative_to(folder).as_posix()}/"
            listed = {} if found is None else found.files
            own = {path.removeprefix(inside): row for path, row in listed.items() if path.startswith(inside)}
            if own:
                Manifest(own).check_listing(self.root)
                Manifest(own).check(self.root, known=known)
                return len(own)
        return 0

    @property
    def left_out(self) -> list[str]:
        """Splits that are announced but of which nothing is here."""
        return [split.name for split in self.splits.values() if split.is_absent]

    def choose(self, name: str | None) -> list[Split]:
        """The split of that name, or all that are here: train, which may not lack, then val, then others.

        Raises UserError when there is none, or when shards lack or have the wrong size.
        """
        if name is not None and name not in self.splits:
            raise UserError(f"{self.root} has no split '{name}'; it has {', '.join(self.splits) or 'none'}.")
        order = sorted(self.splits, key=lambda known: {"train": 0, "val": 1}.get(known, 2))
        present = [known for known in order if known not in self.left_out or known == "train"]
        names = present if name is None else [name]
        if not names:
            raise UserError(f"{self.root} has the shards of none of its splits ({', '.join(self.splits)}): copy them.")
        chosen = [self.splits[name] for name in names]
        for split in chosen:
            split.check_sizes()
        return chosen

    def _split(self, about: Mapping[str, Any]) -> Split:
        lengths = tuple(int(length) for length in about.get("shardLengths", ()))
        size = int(about.get("numBytes", 0))
        if min(lengths, default=0) < 0 or size < 0:
            raise ValueError(f"split '{about['name']}' has negative sizes")
        kind = self.info.get("fileFormat", "tfrecord") or "tfrecord"
        if kind != "tfrecord":
            raise UserError(f"{self.root} is stored as {kind}, but tfrecord is read here: write it as tfrecord.")
        template = about.get("filepathTemplate") or TEMPLATE
        names = [self._shard(template, str(about["name"]), index, len(lengths)) for index in range(len(lengths))]
        return Split(str(about["name"]), tuple(self.root / name for name in names), lengths, size)

    def _shard(self, template: str, split: str, index: int, count: int) -> str:
        digits = max(5, len(str(count)))
        fields = {
            "DATASET": self.name,
            "SPLIT": split,
            "FILEFORMAT": "tfrecord",
            "SHARD_INDEX": f"{index:0{digits}d}",
            "NUM_SHARDS": f"{count:0{digits}d}",
            "SHARD_X_OF_Y": f"{index:0{digits}d}-of-{count:0{digits}d}",
        }
        name = template
        for key, value in fields.items():
            name = name.replace("{" + key + "}", value)
        if "{" in name or "\0" in name or name in (".", "..") or Path(name).name != name:
            raise ValueError(f"'{template}' names no file of this folder")
        return name


def _locate(path: Path) -> Path:
    """The folder with the dataset_info.json. Raises UserError when there is none or more than one."""
    if (path / INFO).is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: name the folder of an RLDS dataset.")
    found = sorted({file.parent for pattern in (f"*/{INFO}", f"*/*/{INFO}") for file in path.glob(pattern)})
    if len(found) != 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        what = f"holds {len(found)} datasets or versions ({names}): name one of them" if found else f"has no {INFO}"
        raise UserError(f"{path} {what}{'' if found else ': name the folder of an RLDS dataset'}.")
    return found[0]
