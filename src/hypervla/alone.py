"""Folders that one process at a time writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypervla.contracts import UserError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder if it is missing, and keep others that ask out of it: until the end, or that of this process,
    however it ends. Nothing is written for it. Raises UserError while another process has it.

    On a disk that knows no locks nobody is kept out.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder} cannot be written into ({error.strerror}): choose another --out.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"Another process writes into {folder} at the moment: wait for it, or choose another --out."
        ) from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)
