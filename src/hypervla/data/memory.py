"""Pictures held in memory: every image of a mixture decoded once, at the size a policy reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from hypervla.contracts import UserError
from hypervla.data.mixture import Mixture
from hypervla.data.progress import decoding_progress
from hypervla.data.stream import Decoded

ROWS = 512
"""Images that one thread decodes in one go."""

Images = UInt8[np.ndarray, "F s s 3"]


def bytes_needed(mixture: Mixture, size: int, margin: int) -> int:
    """What `InMemory` would hold."""
    images = sum(len(reader.actions) * len(reader.embodiment.cameras) for reader in mixture.readers)
    return images * (size + 2 * margin) ** 2 * 3


class InMemory:
    """Pictures decoded at the start; Pictures."""

    def __init__(
        self, mixture: Mixture, size: int, margin: int, *, threads: int = 2, folder: Path | None = None
    ) -> None:
        """With a folder they are kept there, one file for each dataset and camera, for the next run on the same data:
        the operating system then holds in memory what it has room for. Raises UserError for damaged data, and for a
        folder that cannot be written."""
        self._decoded, side = Decoded(mixture, size, margin), size + 2 * margin
        self.images: dict[tuple[int, int], Images] = {}
        wanted: dict[tuple[int, int], Path | None] = {}
        for dataset, reader in enumerate(mixture.readers):
            for camera in range(len(reader.embodiment.cameras)):
                path = None if folder is None else folder / f"{self._name(dataset, camera, side)}.npy"
                kept = None if path is None else _kept(path, (len(reader.actions), side, side, 3))
                if kept is None:
                    wanted[dataset, camera] = path
                else:
                    self.images[dataset, camera] = kept
        total = sum(len(mixture.readers[dataset].actions) for dataset, _ in wanted)
        if total:
            with ThreadPoolExecutor(threads) as pool, decoding_progress(total) as advance:
                for (dataset, camera), path in wanted.items():
                    shape = (len(mixture.readers[dataset].actions), side, side, 3)
                    self.images[dataset, camera] = self._decode(pool, advance, dataset, camera, shape, path)

    def _name(self, dataset: int, camera: int, side: int) -> str:
        """Says what decoded pictures depend on; three of them say the rest: where a robot file or a row of Open
        X-Embodiment has the camera's pictures from, and how they are made smaller."""
        reader = self._decoded.readers[dataset]
        rows = len(reader.actions)
        some = self._decoded(dataset, camera, sorted({0, rows // 2, rows - 1}))
        digests = [hashlib.sha256(np.ascontiguousarray(picture).data).hexdigest() for picture in some]
        seen = [reader.digest, asdict(reader.embodiment.cameras[camera]), side, rows, digests]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:24]

    def _decode(
        self,
        pool: ThreadPoolExecutor,
        advance: Callable[[int], None],
        dataset: int,
        camera: int,
        shape: tuple[int, int, int, int],
        path: Path | None,
    ) -> Images:
        """All images of one camera of one dataset, into memory or, whole or not at all, into a file."""
        part = None if path is None else path.with_suffix(f".{os.getpid()}.part")
        images, rows = np.empty(shape, np.uint8) if part is None else _mapped(part, shape), shape[0]

        def fill(chosen: range) -> int:
            for row, picture in zip(chosen, self._decoded(dataset, camera, chosen), strict=True):
                images[row] = picture
            return len(chosen)

        futures = [pool.submit(fill, range(first, min(first + ROWS, rows))) for first in range(0, rows, ROWS)]
        try:
            for future in as_completed(futures):
                advance(future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            if part is not None:
                part.unlink()
            raise
        if part is None or path is None:
            return images
        del images  # which writes what is left
        os.replace(part, path)
        return np.load(path, mmap_mode="r")

    def __call__(self, dataset: int, camera: int, rows: Sequence[int]) -> Sequence[UInt8[np.ndarray, "s s 3"]]:
        images = self.images[dataset, camera]
        return [images[row] for row in rows]


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new file's array. Raises UserError where the file cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    except OSError as error:
        raise UserError(f"{path.parent} cannot hold the pictures ({error}): choose another folder.") from error


def _kept(path: Path, shape: tuple[int, ...]) -> Images | None:
    """The pictures in a file; None where it is not there, or not whole."""
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None
