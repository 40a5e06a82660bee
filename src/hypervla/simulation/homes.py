"""Simulators that need an environment of their own, since their versions clash with everything else's.

Such an environment has hypervla without PyTorch; `hypervla eval` and `hypervla record` go on in there by themselves.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from hypervla.contracts import UserError

HOMES = {"libero": "libero", "mani_skill": "simpler", "simpler_env": "simpler-google"}
"""The environment's name by the simulator's package: `make env-NAME` builds it, but for those UNMADE."""
UNMADE = {
    "simpler-google": "install SimplerEnv with ManiSkill2_real2sim (github.com/simpler-env/SimplerEnv) and "
    "'hypervla[data,report,serve]' with 'numpy<2' for Python 3.11 in .envs/simpler-google"
}
"""How to come by an environment that nothing here builds."""


def is_home(package: str | None) -> bool:
    """Whether the simulator is installed in this environment, or comes with none of its own."""
    return package is None or find_spec(package) is not None


def interpreter(package: str) -> Path:
    """The Python of a simulator's environment: HYPERVLA_NAME_PYTHON, or .envs/name beside the checkout or here.

    Raises UserError where there is none.
    """
    name = HOMES[package]
    variable = f"HYPERVLA_{name.upper().replace('-', '_')}_PYTHON"
    named = os.environ.get(variable)
    places = [Path(named)] if named else [root / ".envs" / name / "bin" / "python" for root in (_checkout(), Path())]
    for place in places:
        if place.is_file():
            return place.absolute()
    if named:
        raise UserError(f"{variable} names '{named}', but there is no such file.")
    made = UNMADE.get(name, f"make env-{name} builds it")
    raise UserError(
        f"This suite's simulator needs an environment of its own: {made}, or {variable} names the Python of one."
    )


def _checkout() -> Path:
    """Where the sources lie, of which this is src/hypervla/simulation/homes.py."""
    return Path(__file__).resolve().parents[3]
