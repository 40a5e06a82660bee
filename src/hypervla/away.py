"""Commands that go on in the environment of their simulator, where its versions do not clash with ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from hypervla.child import run_child
from hypervla.runtime.provenance import COMMAND
from hypervla.simulation.homes import interpreter


def run_away(package: str, words: Sequence[str]) -> None:
    """Run `hypervla WORDS` where the simulator's package is installed. Raises UserError where there is no such place,
    and SystemExit with the command's own status when it fails: it has said why."""
    python = interpreter(package)
    asked = json.dumps(["hypervla", *sys.argv[1:]])
    run_child(python, words, {COMMAND: asked})
