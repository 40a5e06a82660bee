"""LeRobot datasets to read and to damage, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

VIDEO = Path("videos/observation.images.top/chunk-000/file-000.mp4")
DATA = Path("data/chunk-000/file-000.parquet")
EPISODES = Path("meta/episodes/chunk-000/file-000.parquet")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_lines(path: Path, number: int, **changes: object) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number] |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rewrite(path: Path, name: str, values: object) -> None:
    """Replace a column of a parquet file."""
    table = pq.ParquetFile(path).read()
    column = values if isinstance(values, pa.Array) else pa.array(values)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)


def change(name: str, row: int, value: object) -> Callable[[Path], None]:
    """Damage one cell of the data."""

    def damage(root: Path) -> None:
        table = pq.ParquetFile(root / DATA).read()
        values = table.column(name).to_pylist()
        values[row] = value
        rewrite(root / DATA, name, pa.array(values, table.schema.field(name).type))

    return damage


def episode_row(number: int, **changes: object) -> Callable[[Path], None]:
    """Damage one row of the table of episodes."""

    def damage(root: Path) -> None:
        table = pq.ParquetFile(root / EPISODES).read()
        rows = table.to_pylist()
        rows[number] |= {name.replace("__", "/"): value for name, value in changes.items()}
        for name in ("from_timestamp", "to_timestamp"):
            if name in rows[number]:
                rows[number][f"videos/observation.images.top/{name}"] = rows[number].pop(name)
        pq.write_table(pa.Table.from_pylist(rows, table.schema), root / EPISODES)

    return damage
