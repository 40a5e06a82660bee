"""Parquet files from anywhere: counted and measured by their footer before anything is decompressed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from hypervla.contracts import UserError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise UserError("Reading datasets needs pyarrow: pip install 'hypervla[data]'.") from error

FOOTER_BYTES = 64 * 2**20
COLUMNS = 10_000
PARTS = 100_000
"""Columns, or row groups, that a footer may list before it is parsed no further."""


def damaged(path: Path, reason: object) -> UserError:
    """The refusal of a file, with the first line of the reason."""
    lines = str(reason).splitlines() or [type(reason).__name__]
    return UserError(f"{path} is damaged ({lines[0]}): copy or record the dataset again.")


def open_parquet(path: Path, rows: int | range) -> pq.ParquetFile:
    """Open a file that must hold so many rows. Raises UserError before reading any of them when it does not."""
    if not path.is_file():
        raise UserError(f"{path} is missing: copy or record the dataset again.")
    _check_footer(path)
    try:
        file = pq.ParquetFile(path.absolute(), thrift_string_size_limit=FOOTER_BYTES, thrift_container_size_limit=PARTS)
        about = file.metadata
        counted = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        file.schema_arrow  # noqa: B018  (parsed here, where damage is caught)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, error) from error
    allowed = range(rows, rows + 1) if isinstance(rows, int) else rows
    if about.num_rows not in allowed or sum(counted) != about.num_rows or min(counted, default=0) < 0:
        wanted = f"{allowed[0]}" if len(allowed) == 1 else f"at most {allowed.stop - 1}"
        raise UserError(
            f"{path} holds {about.num_rows} rows, but the metadata says {wanted}: copy or record the dataset again."
        )
    if about.num_columns > COLUMNS:
        raise UserError(f"{path} has {about.num_columns} columns, more than the {COLUMNS} that are read.")
    return file


def _check_footer(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if size < 12 or head != b"PAR1" or tail[4:] != b"PAR1":
        raise damaged(path, "it does not begin and end as a Parquet file")
    length = struct.unpack("<I", tail[:4])[0]
    if length > min(size - 12, FOOTER_BYTES):
        raise damaged(path, f"its footer claims {length} bytes")


def read_columns(
    file: pq.ParquetFile, path: Path, columns: Sequence[str], *, row_bytes: int, groups: Sequence[int] | None = None
) -> pa.Table:
    """These columns of all row groups, or some. Raises UserError when they claim far more than `row_bytes` a row."""
    try:
        claimed, rows, chosen = _claims(file, path, set(columns), groups)
        most = 4 * rows * row_bytes + 2**16 * len(columns) * (1 + len(chosen))
        if claimed > most:
            raise UserError(
                f"{path} claims {claimed:,} bytes for {rows} rows of {', '.join(columns)}, more than the {most:,} they "
                f"can need: it is damaged or hostile; copy the dataset again."
            )
        return file.read_row_groups(chosen, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(path, error) from error


def _claims(
    file: pq.ParquetFile, path: Path, columns: set[str], groups: Sequence[int] | None
) -> tuple[int, int, list[int]]:
    """Unpacked bytes that the footer gives for these columns, rows, row groups. Raises UserError for missing ones."""
    about, names = file.metadata, file.schema_arrow.names
    missing = sorted(columns - set(names))
    if missing:
        raise UserError(f"{path} lacks the column '{missing[0]}': copy or record the dataset again.")
    chosen = list(range(about.num_row_groups)) if groups is None else list(groups)
    rows = sum(about.row_group(group).num_rows for group in chosen)
    claimed = 0
    for group in chosen:
        for number in range(about.num_columns):
            chunk = about.row_group(group).column(number)
            if chunk.path_in_schema in columns or chunk.path_in_schema.split(".")[0] in columns:
                claimed += chunk.total_uncompressed_size
    return claimed, rows, chosen


def to_rows(path: Path, table: pa.Table) -> list[dict[str, Any]]:
    """The table's rows as Python values. Raises UserError for text that is none."""
    try:
        return table.to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise damaged(path, error) from error


def check_type(path: Path, name: str, kind: pa.DataType, dtype: str, shape: Sequence[int]) -> None:
    """Refuse a column whose Arrow type is not what its feature says. Raises UserError naming both."""
    leaf, left = _storage(kind), list(shape)
    if left == [1] and not _is_list(leaf):
        left = []
    while _is_list(leaf) and left:
        size = left.pop(0)
        if pa.types.is_fixed_size_list(leaf) and leaf.list_size != size:
            left.append(-1)
            break
        leaf = _storage(leaf.value_type)
    if dtype == "string":
        fits = pa.types.is_string(leaf) or pa.types.is_large_string(leaf)
    else:
        fits = leaf == pa.from_numpy_dtype(np.dtype(dtype))
    if left or not fits:
        raise UserError(
            f"{path} has a column '{name}' of {kind}, but meta/info.json says {dtype} of shape {list(shape)}: "
            f"copy or record the dataset again."
        )


def to_numpy(path: Path, name: str, column: Any, shape: Sequence[int]) -> Shaped[np.ndarray, "rows ..."]:
    """A column of numbers as (rows, *shape), or (rows,) for shape [1]. Raises UserError for nulls or ragged rows."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = len(values)
    for size in shape:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if not _is_list(values.type):
            break
        if values.null_count:
            raise damaged(path, f"'{name}' has empty cells")
        if not pa.types.is_fixed_size_list(values.type):
            lengths = np.diff(values.offsets.to_numpy())
            if (lengths != size).any():
                raise damaged(path, f"'{name}' has rows of {lengths.min()} to {lengths.max()} numbers, not {size}")
        values = values.flatten()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if values.null_count:
        raise damaged(path, f"'{name}' has empty cells")
    try:
        array = values.to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError) as error:
        raise damaged(path, error) from error
    return array.reshape(rows) if list(shape) == [1] else array.reshape(rows, *shape)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
