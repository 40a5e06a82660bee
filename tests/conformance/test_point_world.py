"""The fake environment keeps the contract it stands in for."""

from __future__ import annotations

import pytest
from tests.conformance.environment import check_environment
from tests.fakes import PointExpert, PointWorld, SituatedWorld

from hypervla.contracts import ActionChunk


@pytest.mark.parametrize("world", [PointWorld, SituatedWorld])
@pytest.mark.parametrize("task", ["find", "flee"])
def test_point_world_keeps_the_contract(task: str, world: type[PointWorld]) -> None:
    check_environment(lambda: world(task), lambda opened: ActionChunk(PointExpert(opened).action()[None]), limit=30)
