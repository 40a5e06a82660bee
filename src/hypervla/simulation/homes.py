"""Simulators that need an environment of their own, since their versions clash with everything else's.

Such an environment has hypervla without PyTorch; `hypervla eval` and `hypervla record` go on in there by themselves.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from hypervla.contracts import UserError

HOMES = {"libero": "libero", "mani_skill": "simpler"}
"""The environment's name by the simulator's package: `make env-NAME` builds it."""


def is_home(package: str | None) -> bool:
    """Whether the simulator is installed in this environment, or comes with none of its own."""
    return package is None or find_spec(package) is not None


def interpreter(package: str) -> Path:
    """The Python of a simulator's environment: HYPERVLA_NAME_PYTHON, or .envs/NAME beside the checkout or here.

    Raises UserError where there is none.
    """
    name = HOMES[package]
    variable = f"HYPERVLA_{name.upper()}_PYTHON"
    named = os.environ.get(variable)
    places = [Path(named)] if named else [root / ".envs" / name / "bin" / "python" for root in (_checkout(), Path())]
    for place in places:
        if place.is_file():
            return place.absolute()
    if named:
        raise UserError(f"{variable} names '{named}', but there is no such file.")
    raise UserError(
        f"This suite's simulator needs an environment of its own: make env-{name} builds it, or {variable} names the "
        "Python of one."
    )


def _checkout() -> Path:
    """Where the sources lie, of which this is src/hypervla/simulation/homes.py."""
    return Path(__file__).resolve().parents[3]
