"""What a run says of itself while it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervla.training.metrics import Metrics, processor_seconds

MEASURED = {"loss": 1.0, "samples_per_second": 100.0, "processor_seconds": 600.0}


def test_it_says_how_long_it_will_still_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(tmp_path, 10**9, 0, minutes=40.0) as metrics:
        metrics.report(50, **MEASURED)
        assert capsys.readouterr().out.endswith("30 min of processor time left\n")
    with Metrics(tmp_path, 10**9, 50, minutes=40.0) as metrics:  # what was spent before counts
        for left in ("20", "10", "0", "0"):
            metrics.report(100, **MEASURED)
            assert capsys.readouterr().out.endswith(f" {left} min of processor time left\n")
    assert processor_seconds(tmp_path) == 3000
    (tmp_path / "short").mkdir()
    with Metrics(tmp_path / "short", 100, 0, minutes=40.0) as metrics:
        metrics.report(100, **MEASURED)
        assert capsys.readouterr().out.endswith(", 0 min left\n")
