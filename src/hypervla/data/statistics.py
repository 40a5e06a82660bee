"""Statistics of columns and images, as LeRobot's formats store them, with true quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Statistics = dict[str, Any]

READ = ("mean", "std", "min", "max", "q01", "q99", "count")
"""Those that an EpisodeReader gives."""


def column_statistics(values: Shaped[np.ndarray, "F D"]) -> Statistics:
    """min, max, mean, population std, count and true quantiles of each column, as lists."""
    wide = values.astype(np.float64)
    limits = values.astype(np.float64) if values.dtype == bool else values
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return {
        "min": limits.min(axis=0).tolist(),
        "max": limits.max(axis=0).tolist(),
        "mean": wide.mean(axis=0).tolist(),
        "std": wide.std(axis=0).tolist(),
        "count": [len(values)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


def reader_statistics(
    actions: Float32[np.ndarray, "F A"], proprio: Float32[np.ndarray, "F P"] | None
) -> dict[str, dict[str, np.ndarray]]:
    """What an EpisodeReader says of its numbers, by LeRobot's names."""
    numbers = {"action": actions, "observation.state": proprio}
    found = {name: column_statistics(values) for name, values in numbers.items() if values is not None}
    return {name: {key: np.asarray(all_[key], np.float32) for key in READ} for name, all_ in found.items()}


def sampled_frames(length: int) -> Int64[np.ndarray, " n"]:
    """The frames of an episode whose pixels are counted: LeRobot's about T^0.75, at least 100, evenly spaced."""
    count = min(length, max(100, min(10_000, int(length**0.75))))
    return np.round(np.linspace(0, length - 1, count)).astype(np.int64)


def pixel_histogram(images: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Int64[np.ndarray, "4 256"]:
    """How often each value occurs in each channel of these images, thinned to some 150 pixels a side.

    The last row counts the images.
    """
    total = np.zeros((4, 256), np.int64)
    for image in images:
        side = max(image.shape[:2])
        stride = max(1, side // 150) if side >= 300 else 1
        sample = image[::stride, ::stride]
        total[:3] += [np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)]
        total[3, 0] += 1
    return total


def image_histogram(images: UInt8[np.ndarray, "T height width 3"]) -> Int64[np.ndarray, "4 256"]:
    """`pixel_histogram` of LeRobot's sample of an episode's frames."""
    return pixel_histogram(list(images[sampled_frames(len(images))]))


def histogram_statistics(histogram: Int64[np.ndarray, "4 256"]) -> Statistics:
    """Exact statistics of the sampled pixels in [0, 1], each shaped (3, 1, 1)."""
    values = np.arange(256) / 255

    def order_statistics(counts: Int64[np.ndarray, " 256"], share: float) -> float:
        position = share * (counts.sum() - 1)
        below, above = np.searchsorted(counts.cumsum(), [np.floor(position), np.ceil(position)], side="right")
        return float(values[below] + (values[above] - values[below]) * (position % 1))

    def shaped(numbers: Float64[np.ndarray, " 3"] | Sequence[float]) -> list[list[list[float]]]:
        return [[[float(number)]] for number in numbers]

    channels = histogram[:3]
    mean = channels @ values / channels.sum(axis=1)
    variance = channels @ values**2 / channels.sum(axis=1) - mean**2
    return {
        "min": shaped([order_statistics(row, 0.0) for row in channels]),
        "max": shaped([order_statistics(row, 1.0) for row in channels]),
        "mean": shaped(mean),
        "std": shaped(np.sqrt(np.maximum(variance, 0))),
        "count": [int(histogram[3, 0])],
        **{name: shaped([order_statistics(row, share) for row in channels]) for name, share in QUANTILES.items()},
    }
