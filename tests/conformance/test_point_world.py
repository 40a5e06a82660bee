"""The fake environment keeps the contract it stands in for."""

from __future__ import annotations

import pytest
from tests.conformance.environment import check_environment
from tests.fakes import PointExpert, PointWorld

from hypervla.contracts import ActionChunk


@pytest.mark.parametrize("task", ["find", "flee"])
def test_point_world_keeps_the_contract(task: str) -> None:
    check_environment(lambda: PointWorld(task), lambda world: ActionChunk(PointExpert(world).action()[None]), limit=30)
