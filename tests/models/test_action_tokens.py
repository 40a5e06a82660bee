"""The 256 bins against NumPy's own digitize, as the published tokenizer uses it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hypervla.models.action_tokens import BINS, bins_of, values_of

EDGES = np.linspace(-1, 1, 256)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2


@given(arrays(np.float32, (20,), elements=st.floats(-2, 2, width=32)))
def test_bins_are_numpys(actions: np.ndarray) -> None:
    wanted = np.digitize(np.clip(actions, -1, 1), EDGES)
    np.testing.assert_array_equal(bins_of(torch.from_numpy(actions)).numpy(), wanted)


def test_edges_belong_to_the_bin_above_them() -> None:
    assert bins_of(torch.from_numpy(EDGES)).tolist() == list(range(1, 257))


def test_values_are_the_255_centres_and_the_last_bin_shares_one() -> None:
    found = values_of(torch.arange(-3, 300)).numpy()
    wanted = CENTRES[np.clip(np.arange(-3, 300) - 1, 0, 254)]
    np.testing.assert_allclose(found, wanted, atol=1e-7)


@given(st.floats(-1, 1))
def test_there_and_back_is_half_a_bin_off_at_most(action: float) -> None:
    there = bins_of(torch.tensor([action], dtype=torch.float64))
    assert abs(float(values_of(there)) - action) <= 1 / (BINS - 1) + 1e-6
