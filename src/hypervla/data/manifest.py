"""sha256 of every file of a dataset: a flipped bit in parquet or video is otherwise read as if it were data."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError
from hypervla.durable import write_atomically

NAME = "hypervla-manifest.json"
FORMAT = 1
SETTLED = 2.0
"""Seconds a file must have rested before its sha256 is remembered: a later change could keep its time stamp."""


def cache_folder() -> Path:
    """Where what can be made again is kept: $HYPERVLA_CACHE, or hypervla in the user's cache folder."""
    own = os.environ.get("HYPERVLA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hypervla"


def files(root: Path) -> Iterator[str]:
    """Paths relative to `root` of all its files but the manifest and hidden ones, sorted."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = Path(folder).relative_to(root)
        found += [(place / name).as_posix() for name in names if not name.startswith(".")]
    return (path for path in sorted(found) if path != NAME)


def sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(root: Path, *, pending: Mapping[str, bytes] | None = None) -> Path:
    """List every file of `root` in its manifest; `pending` are files by path that will be written after it."""
    pending = pending or {}
    listed = {path: _entry(root / path) for path in files(root) if path not in pending}
    listed |= {path: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in pending.items()}
    return _save(root, listed)


def update(root: Path, changed: Sequence[str]) -> None:
    """Enter the new contents of the `changed` files, if `root` has a manifest."""
    manifest = Manifest.read(root)
    if manifest is not None:
        _save(root, {**manifest.files, **{path: _entry(root / path) for path in changed}})


@dataclass(frozen=True)
class Manifest:
    """What the files of a dataset were when it was written."""

    files: Mapping[str, Mapping[str, Any]]
    """Size in bytes and sha256, by path relative to the dataset's folder."""

    @staticmethod
    def read(root: Path) -> Manifest | None:
        """The manifest of `root`, None without one. Raises UserError when it is damaged."""
        path = root / NAME
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            listed = content["files"]
            fit = content["format"] == FORMAT and all(
                isinstance(row["bytes"], int) and isinstance(row["sha256"], str) for row in listed.values()
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}): copy the dataset again.") from error
        if not fit:
            raise UserError(f"{path} is no manifest of format {FORMAT}: copy the dataset again, or update hypervla.")
        return Manifest(listed)

    def check_listing(self, root: Path) -> None:
        """Compare names and sizes. Raises UserError naming the first file that is missing, unknown or resized."""
        there = set(files(root))
        for path in sorted(self.files.keys() - there):
            raise UserError(f"{root / path} is missing, though {NAME} lists it: copy the dataset again.")
        for path in sorted(there - self.files.keys()):
            raise UserError(f"{root / path} is not in {NAME}: it does not belong to this dataset, move it away.")
        for path, row in self.files.items():
            size = (root / path).stat().st_size
            if size != row["bytes"]:
                raise UserError(
                    f"{root / path} has {size} bytes, but {NAME} says {row['bytes']}: copy the dataset again."
                )

    def check(self, root: Path, path: str | None = None, *, known: Hashes | None = None) -> None:
        """Compare the sha256 of one file, or of all. Raises UserError naming the first that differs.

        `known` remembers hashes; without it every byte is read.
        """
        for name in self.files if path is None else [path]:
            if name not in self.files:
                raise UserError(f"{root / name} is not in {NAME}: it does not belong to this dataset, move it away.")
            if not (root / name).is_file():
                raise UserError(f"{root / name} is missing, though {NAME} lists it: copy the dataset again.")
            if (sha256(root / name) if known is None else known[name]) != self.files[name]["sha256"]:
                raise UserError(
                    f"{root / name} is damaged: its sha256 is not the one in {NAME}; copy the dataset again."
                )


class Hashes:
    """sha256 of the files in a folder by relative path, remembered on disk as long as size and time stamp stay."""

    def __init__(self, root: Path) -> None:
        self.root = root
        name = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:32]
        self._path = cache_folder() / "sha256" / f"{name}.json"
        self._rows = self._load()
        self._new = False

    def __getitem__(self, path: str) -> str:
        state = (self.root / path).stat()
        key = [state.st_size, state.st_mtime_ns]
        known = self._rows.get(path)
        if known is not None and known[:2] == key:
            return known[2]
        began = time.time()
        found = sha256(self.root / path)
        if began - state.st_mtime > SETTLED:
            self._rows[path], self._new = [*key, found], True
        return found

    def save(self) -> None:
        """Keep what was hashed for the next process; a cache that cannot be written is done without."""
        if not self._new:
            return
        try:
            write_atomically(self._path, json.dumps(self._load() | self._rows).encode())
            self._new = False
        except OSError:
            return

    def _load(self) -> dict[str, list[Any]]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            return {path: row for path, row in rows.items() if len(row) == 3}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


def digest(root: Path, patterns: Sequence[str] = ("*",)) -> str:
    """sha256 over the names and contents of all files whose relative path fits a pattern (`*` matches `/` too).

    With a manifest, all files are checked against it. Raises UserError naming the first that differs.
    """
    manifest, hashes = Manifest.read(root), Hashes(root)
    if manifest is not None:
        manifest.check_listing(root)
        manifest.check(root, known=hashes)
    total = hashlib.sha256()
    for path in files(root):
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            total.update(f"{path}\0{hashes[path]}\n".encode())
    hashes.save()
    return total.hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _save(root: Path, listed: Mapping[str, Mapping[str, Any]]) -> Path:
    content = {"format": FORMAT, "files": {path: listed[path] for path in sorted(listed)}}
    write_atomically(root / NAME, json.dumps(content, indent=1, ensure_ascii=False).encode())
    return root / NAME
