"""A folder is written by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hypervla.alone import alone_in
from hypervla.contracts import UserError

HOLDER = """
import sys
from pathlib import Path
from hypervla.alone import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_whoever_comes_second_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=r"Another process writes into .*a/b"), alone_in(folder):
            pass
        first.kill()  # with no chance to tidy up
        first.wait()
        with alone_in(folder), alone_in(tmp_path):
            assert not list(folder.iterdir()), "nothing is left in it"
    with alone_in(folder):
        pass


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match=r"cannot be written into .*choose another --out"), alone_in(place):
            pass
