"""A checkpoint as the driver of a recording: it gets into its own mistakes, and the demonstrator labels them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import Observation
from hypervla.embodiment import Embodiment
from hypervla.evaluation.trial import check_robot, load_compiler
from hypervla.runtime.execution import TemporalEnsemble
from hypervla.runtime.protocols import TimedPolicy


class PolicyDriver:
    """Compiles a task policy at the start of each episode and acts with the temporal ensemble; a Driver."""

    def __init__(self, checkpoint: Path | str, robot: Embodiment) -> None:
        """A checkpoint's folder, or the address of a policy server (ws://HOST:PORT). Raises UserError for another
        robot's."""
        if isinstance(checkpoint, Path):
            import torch

            torch.set_num_threads(1)  # recordings run one process per core
        self._compiler = load_compiler(checkpoint, "cpu", robot=robot)
        check_robot(self._compiler, robot)
        self._execution = TemporalEnsemble(self._compiler.embodiment)
        self._policy: TimedPolicy | None = None

    def start(self, instruction: str, observation: Observation) -> None:
        """Compile for this instruction and first image."""
        self._policy = self._compiler.compile(instruction, observation.images)
        self._execution.reset()

    def action(self, observation: Observation) -> Float32[np.ndarray, " A"]:
        """The ensemble's action now."""
        assert self._policy is not None, "start comes first"
        return self._execution.next(self._policy.act(observation)).actions[0]
