"""A suite's demonstrator in place of a checkpoint: whether its tasks can be done, and its success rule sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypervla.contracts import ActionChunk, Demonstrator, Environment, Image, Observation, UserError
from hypervla.embodiment import Embodiment
from hypervla.evaluation.suites import Suite
from hypervla.runtime.task_policy import Timing

EXPERT = "expert"
"""In place of a checkpoint."""


class Demonstrating:
    """Compiles nothing: the demonstrator of the environment that was opened last acts, from the simulator's state."""

    digest = EXPERT
    provenance: Mapping[str, Any] = {}

    def __init__(self, suite: Suite) -> None:
        """Raises UserError for a suite that nobody demonstrates."""
        if suite.make is None:
            raise UserError(f"Nobody demonstrates suite '{suite.name}': evaluate a checkpoint on it.")
        self._make, self.embodiment = suite.make, suite.embodiment
        self._demonstrator: Demonstrator | None = None

    def environment(self, task: str) -> Environment:
        """The environment of a task, whose demonstrator acts from now on."""
        environment, self._demonstrator = self._make(task)
        return environment

    def compile(self, instruction: str, images: Mapping[str, Image]) -> Demonstrated:
        assert self._demonstrator is not None, "an environment is opened first"
        return Demonstrated(self._demonstrator, self.embodiment)


class Demonstrated:
    """The demonstrator as a policy."""

    last_timing = Timing(0.0, 0.0, 0.0)

    def __init__(self, demonstrator: Demonstrator, embodiment: Embodiment) -> None:
        self._demonstrator, self.embodiment = demonstrator, embodiment

    def act(self, observation: Observation) -> ActionChunk:
        """Its action for the state that the simulator is in, which the observation shows but does not tell."""
        return self.embodiment.clip(self._demonstrator.action()[None])
