"""What evaluates or serves policies wants of a checkpoint, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from hypervla.contracts import ActionChunk, Image, Observation
from hypervla.embodiment import Embodiment
from hypervla.runtime.task_policy import Timing


@runtime_checkable
class TimedPolicy(Protocol):
    """A policy for one episode that says where its time went."""

    @property
    def last_timing(self) -> Timing: ...
    def act(self, observation: Observation) -> ActionChunk: ...


@runtime_checkable
class NamedPolicy(TimedPolicy, Protocol):
    """One that can be told from another."""

    @property
    def policy_id(self) -> str:
        """Another one for another task policy."""
        ...


Compiled = TypeVar("Compiled", bound=TimedPolicy, covariant=True)


@runtime_checkable
class Compiler(Protocol[Compiled]):
    """Turns an instruction and first images into a policy (runtime/compiler.py)."""

    @property
    def embodiment(self) -> Embodiment: ...
    @property
    def digest(self) -> str: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    def compile(self, instruction: str, images: Mapping[str, Image]) -> Compiled: ...
