"""A damaged dataset is refused in a sentence: it crashes nothing, hangs nowhere and is never taken for a whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.malformed import run
from tests.data.recordings import READERS

RUNS = 100
"""The full run has 2,000 for each reader: make fuzz-data."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_dataset_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "libero":
        pytest.importorskip("h5py")
    endings, wrong = run(kind, READERS[kind](tmp_path / "source"), RUNS, seed=1_000_000)
    assert not wrong, "\n".join(wrong)
    assert sum(count for ending, count in endings.items() if ending.endswith("refused")) > RUNS / 2
