"""Where an evaluation keeps every trial as it ends, and goes on from after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError
from hypervla.evaluation.results import FORMAT, Conditions, TrialRecord, disk


class Journal:
    """`results.jsonl`: the conditions, then one line per trial as it ends. Interrupted evaluations go on from it."""

    def __init__(self, path: Path, conditions: Conditions) -> None:
        """Open the journal, or start one. Raises UserError when it belongs to a different evaluation."""
        self.path = path
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # a torn last line is dropped
        try:
            rows = [json.loads(line) for line in lines]
            there = Conditions.from_json(rows[0]["conditions"]) if rows else conditions
            records = [TrialRecord.from_json(row) for row in rows[1:]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not the journal of an evaluation: choose another --out or delete it."
            ) from error
        _refuse_other(path, there, conditions)
        self.records = {record.trial.name: record for record in records}
        with disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if lines else "wb")
            self._file.truncate(sum(len(line) + 1 for line in lines))
            self._file.seek(0, os.SEEK_END)
        if not lines:
            self._write({"format": FORMAT, "conditions": asdict(conditions)})

    def append(self, record: TrialRecord) -> None:
        self.records[record.trial.name] = record
        self._write(record.to_json())

    def close(self) -> None:
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        with disk(self.path):
            self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            self._file.flush()


def _refuse_other(path: Path, there: Conditions, here: Conditions) -> None:
    different = [row.name for row in fields(Conditions) if getattr(there, row.name) != getattr(here, row.name)]
    if different:
        name = different[0]
        raise UserError(
            f"{path} is of another evaluation ({name} is {getattr(there, name)} there, {getattr(here, name)} here): "
            f"choose another --out, or delete that folder."
        )
