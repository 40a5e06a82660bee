"""Statistics are exact, whatever form the numbers come in."""

from __future__ import annotations

import numpy as np

from hypervla.data.statistics import column_statistics, histogram_statistics, image_histogram, sampled_frames


def test_statistics_from_a_histogram_equal_those_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 10, 3), np.uint8)
    counted, direct = (
        histogram_statistics(image_histogram(images)),
        column_statistics(images.reshape(-1, 3) / 255),
    )
    assert counted.pop("count") == [9]
    for name, value in counted.items():
        np.testing.assert_allclose(np.ravel(value), direct[name], atol=1e-12, err_msg=name)


def test_long_episodes_are_sampled_evenly_from_end_to_end() -> None:
    assert sampled_frames(80).tolist() == list(range(80))
    sample = sampled_frames(10_000)
    assert (len(sample), sample[0], sample[-1]) == (1000, 0, 9999)
    assert set(np.diff(sample).tolist()) <= {10, 11}
