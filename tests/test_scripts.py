"""The scripts beside the package: what they make, and what they refuse."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hypervla.data.tasks import read_paraphrases

PUBLISHED = {
    "open the drawer": "pull the drawer. Slide  it open.. ",
    "close it": "",
    "poser la tasse sur l'étagère": "mets la tasse là-haut",
}
"""As Octo's file holds them: sentences in one string, some empty."""


def converted(repository: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, repository / "scripts/convert_paraphrases.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_published_paraphrases_become_lists_of_sentences(repository: Path, tmp_path: Path, protocol: int) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(PUBLISHED, protocol))
    done = converted(repository, tmp_path / "p.pkl", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert "3 instructions, 3 paraphrases" in done.stdout
    assert read_paraphrases(tmp_path / "p.json") == {
        "open the drawer": ["pull the drawer", "Slide it open"],
        "close it": [],
        "poser la tasse sur l'étagère": ["mets la tasse là-haut"],
    }
    assert "étagère" in (tmp_path / "p.json").read_text(encoding="utf-8")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_is_a_program_is_refused_and_not_run(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"open it": Trap(tmp_path / "sprung")}))
    done = converted(repository, tmp_path / "p.pkl", tmp_path / "p.json")
    assert done.returncode != 0
    assert "is not a pickle of plain text (its instruction STACK_GLOBAL makes something else)" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.pkl"], "nothing ran, and nothing was written"


REFUSED = {
    "a list": pickle.dumps(["open it"]),
    "numbers": pickle.dumps({"open it": 3}),
    "lists": pickle.dumps({"open it": ["pull it"]}),
    "bytes": pickle.dumps({b"open it": "pull it"}),
    "an array": pickle.dumps({"open it": np.float32(1)}),
    "a class": pickle.dumps(pytest.raises),
    "nothing": b"",
    "text": b"hello",
    "a part": pickle.dumps(PUBLISHED)[:-20],
    "a huge memo": b"\x80\x04}r\xff\xff\xff\x7f.",
    "a huge string": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00.",
    "an outside object": b"\x80\x04\x8c\x01xQ.",
    "an extension": b"\x80\x04\x82\x01.",
    "text alone": pickle.dumps("open it"),
    "a name": b"\x80\x02cos\nmkdir\n.",
    "nothing on the stack": b"\x80\x04s.",
}


@pytest.fixture(scope="module")
def refusals(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each, by one interpreter with 2 GB of memory at most."""
    folder = tmp_path_factory.mktemp("refused")
    for name, data in REFUSED.items():
        (folder / name).write_bytes(data)
    code = """
import json, resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
script, target, *paths = sys.argv[1:]
found = {}
for path in paths:
    sys.argv = [script, path, target]
    try:
        runpy.run_path(script, run_name="__main__")
        found[path] = ""
    except SystemExit as error:
        found[path] = str(error)
print(json.dumps(found))
"""
    command = [sys.executable, "-c", code, repository / "scripts/convert_paraphrases.py", folder / "out.json"]
    done = subprocess.run([*command, *(folder / name for name in REFUSED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "out.json").exists()
    return {Path(path).name: words for path, words in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_in_one_line(refusals: dict[str, str], name: str) -> None:
    assert name in refusals[name], "the file is named"
    assert refusals[name].count("\n") == 0
    assert "is not a pickle of plain text" in refusals[name] or "not a dictionary" in refusals[name]


def test_a_file_that_is_not_there_and_a_call_for_help_are_answered(repository: Path, tmp_path: Path) -> None:
    missing = converted(repository, tmp_path / "none.pkl", tmp_path / "p.json")
    assert (missing.returncode, "No such file" in missing.stderr, "Traceback" in missing.stderr) == (1, True, False)
    asked = converted(repository, "--help")
    assert asked.returncode == 0
    assert "paraphrases_oxe.pkl" in asked.stdout
