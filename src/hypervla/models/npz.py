"""Named arrays in one npz file: how weights of other people's code arrive and leave. Never with pickle."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hypervla.contracts import UserError
from hypervla.durable import write_atomically

MOST_UNQUESTIONED, MOST_GROWTH = 2**28, 50
"""Bytes that a file may unpack to, and beyond those how many times its own size: weights hardly get smaller."""
DAMAGE = (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What NumPy and zipfile raise for a file that is no npz of plain arrays."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array. Raises UserError for another kind of file, and for arrays that are no floating-point numbers, among
    them those that only pickle could read, or not finite."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: export the checkpoint to an npz of its arrays first.")
    size = _unpacked(path)
    if size > MOST_UNQUESTIONED and size > MOST_GROWTH * path.stat().st_size:
        raise UserError(f"{path} would unpack to {size / 2**30:.1f} GiB, which no file of weights does: get it anew.")
    try:
        file, arrays = np.load(path, allow_pickle=False), None
        if isinstance(file, np.lib.npyio.NpzFile):
            with file:
                arrays = {name: file[name] for name in file.files}
    except DAMAGE as error:
        said = "it holds Python objects" if "allow_pickle" in str(error) else error
        raise UserError(f"{path} is not an npz of plain arrays ({said}): export it again, without pickle.") from error
    if arrays is None:
        raise UserError(f"{path} holds a single array, not an npz of named ones: export it with numpy.savez.")
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{path} holds '{name}' as {array.dtype}, but weights are floating-point numbers.")
        if array.size and not np.abs(array).max() <= np.finfo(np.float32).max:
            raise UserError(
                f"{path} holds NaN or infinite numbers in '{name}', or such as float32 does not hold: export it again."
            )
    return arrays


def _unpacked(path: Path) -> int:
    """Bytes of all arrays, as the file says; 0 where it does not."""
    try:
        with zipfile.ZipFile(path) as members:
            return sum(member.file_size for member in members.infolist())
    except DAMAGE:
        return 0


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The arrays, uncompressed, in a file that is written whole or not at all."""
    data, named = io.BytesIO(), dict[str, Any](arrays)
    np.savez(data, **named)
    write_atomically(path, data.getvalue())
