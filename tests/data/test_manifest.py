"""A manifest finds any change of any file, and costs a look at the names where nothing changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from hypervla.contracts import UserError
from hypervla.data import manifest
from hypervla.data.manifest import Hashes, Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name, content in (("data/a", b"one"), ("data/deep/b.json", b"{}"), (".hidden", b"x"), (".git/c", b"y")):
        (tmp_path / name).write_bytes(content)
    manifest.write(tmp_path)
    return tmp_path


def test_it_lists_every_file_that_is_not_hidden(folder: Path) -> None:
    found = Manifest.read(folder)
    assert found is not None
    assert list(found.files) == ["data/a", "data/deep/b.json"]
    assert found.files["data/a"]["bytes"] == 3
    found.check_listing(folder)
    found.check(folder)
    assert Manifest.read(folder / "data") is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "data/a").unlink(), "data/a is missing, though"),
        (lambda root: (root / "data/new").write_bytes(b""), "data/new is not in hypervla-manifest.json"),
        (lambda root: (root / "data/a").write_bytes(b"longer"), "data/a has 6 bytes, but .* says 3"),
        (lambda root: (root / "data/a").write_bytes(b"onE"), "data/a is damaged: its sha256 is not the one"),
        (lambda root: (root / manifest.NAME).write_text("{"), "hypervla-manifest.json is damaged"),
        (lambda root: (root / manifest.NAME).write_text("[]"), "hypervla-manifest.json is damaged"),
        (lambda root: (root / manifest.NAME).write_text('{"format": 7, "files": {}}'), "is no manifest of format 1"),
    ],
)
def test_any_change_is_found_and_named(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as refusal:
        manifest.digest(folder)
    assert str(folder) in str(refusal.value)


def test_the_digest_is_that_of_names_and_contents(folder: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(folder, tmp_path / "twin")
    assert manifest.digest(twin) == manifest.digest(twin) != manifest.digest(twin, ["*.json"])
    assert manifest.digest(twin / "data") != manifest.digest(twin)
    (twin / manifest.NAME).unlink()
    (twin / "data/a").rename(twin / "data/z")
    first = manifest.digest(twin)
    (twin / "data/z").rename(twin / "data/a")
    assert manifest.digest(twin) not in (first, manifest.digest(twin, ["*.json"]))


def test_hashes_are_remembered_only_of_files_that_rest(folder: Path) -> None:
    old = time.time() - 100
    os.utime(folder / "data/a", (old, old))
    hashes = Hashes(folder)
    known = {path: hashes[path] for path in ("data/a", "data/deep/b.json")}
    hashes.save()
    kept = json.loads(hashes._path.read_text())
    assert set(kept) == {"data/a"}, "the other was written just now and may change within the same time stamp"
    assert kept["data/a"][2] == known["data/a"]
    (folder / "data/a").write_bytes(b"two")
    assert Hashes(folder)["data/a"] != known["data/a"]


def test_a_file_yet_to_come_can_be_listed(folder: Path) -> None:
    manifest.write(folder, pending={"last.json": b"[1]"})
    with pytest.raises(UserError, match=r"last\.json is missing"):
        manifest.digest(folder)
    (folder / "last.json").write_bytes(b"[1]")
    manifest.digest(folder)
    (folder / "last.json").write_bytes(b"[2, 3]")
    manifest.update(folder, ["last.json"])
    manifest.digest(folder)


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERVLA_CACHE", str(tmp_path / "own"))
    assert manifest.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HYPERVLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert manifest.cache_folder() == tmp_path / "hypervla"
