"""What an expert that works in phases wants next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Vector = Float64[np.ndarray, "3"]


@dataclass(frozen=True)
class Aim:
    """Where the hand should go now, whether the fingers close, and whether this phase is over."""

    place: Vector
    closed: bool
    over: bool
