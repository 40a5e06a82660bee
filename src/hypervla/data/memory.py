"""Pictures held in memory: every image of a mixture decoded once, at the size a policy reads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
from jaxtyping import UInt8

from hypervla.data.mixture import Mixture
from hypervla.data.progress import decoding_progress
from hypervla.data.stream import Decoded

ROWS = 512
"""Images that one thread decodes in one go."""


def bytes_needed(mixture: Mixture, size: int, margin: int) -> int:
    """What `InMemory` would hold."""
    images = sum(len(reader.actions) * len(reader.embodiment.cameras) for reader in mixture.readers)
    return images * (size + 2 * margin) ** 2 * 3


class InMemory:
    """Pictures decoded at the start; Pictures."""

    def __init__(self, mixture: Mixture, size: int, margin: int, *, threads: int = 2) -> None:
        """Raises UserError for damaged data."""
        decoded, side = Decoded(mixture, size, margin), size + 2 * margin
        self.images = [
            np.empty((len(reader.embodiment.cameras), len(reader.actions), side, side, 3), np.uint8)
            for reader in mixture.readers
        ]

        def fill(dataset: int, camera: int, rows: range) -> int:
            for row, picture in zip(rows, decoded(dataset, camera, rows), strict=True):
                self.images[dataset][camera, row] = picture
            return len(rows)

        total = sum(images.shape[0] * images.shape[1] for images in self.images)
        with ThreadPoolExecutor(threads) as pool, decoding_progress(total) as advance:
            futures = [
                pool.submit(fill, dataset, camera, range(first, min(first + ROWS, images.shape[1])))
                for dataset, images in enumerate(self.images)
                for camera in range(images.shape[0])
                for first in range(0, images.shape[1], ROWS)
            ]
            try:
                for future in as_completed(futures):
                    advance(future.result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def __call__(self, dataset: int, camera: int, rows: Sequence[int]) -> Sequence[UInt8[np.ndarray, "s s 3"]]:
        images = self.images[dataset][camera]
        return [images[row] for row in rows]
