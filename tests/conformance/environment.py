"""What every Environment does. `check_environment` runs all of it; a new adapter needs nothing else to be believed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hypervla.contracts import ActionChunk, Environment, Observation, Situated


def check_environment(make: Callable[[], Environment], solve: Callable[[Environment], ActionChunk], limit: int) -> None:
    """Raise AssertionError where an environment breaks the contract.

    `solve` gives the next action (1, A) of something that succeeds within `limit` steps of the scene of seed 3.
    """
    environment, other = make(), make()
    try:
        assert isinstance(environment, Environment)
        observes_what_its_embodiment_declares(environment)
        the_seed_alone_decides_the_scene(environment, other)
        looking_changes_nothing(environment, other)
        a_chunk_is_its_actions_one_by_one(environment, other)
        success_stops_early(environment, solve, limit)
        if isinstance(environment, Situated):
            the_situation_follows_the_scene(environment, solve, limit)
    finally:
        environment.close()
        other.close()


def observes_what_its_embodiment_declares(environment: Environment) -> None:
    environment.reset(0)
    environment.embodiment.check_observation(
        environment.observe(), needs_proprio=environment.embodiment.proprio_size > 0
    )
    assert environment.instructions, "there is a way to ask for the task"
    assert all(sentence.strip() for sentence in environment.instructions)


def the_seed_alone_decides_the_scene(environment: Environment, other: Environment) -> None:
    environment.reset(1)
    first = environment.observe()
    environment.execute(wander(environment, 5))
    environment.reset(2)
    assert not same(environment.observe(), first), "another seed is another scene"
    environment.reset(1)
    assert same(environment.observe(), first), "the same seed is the same scene, whatever came before"
    other.reset(1)
    assert same(other.observe(), first), "and in another environment too"


def looking_changes_nothing(environment: Environment, other: Environment) -> None:
    environment.reset(1)
    other.reset(1)
    actions = wander(environment, 6)
    for step in range(6):
        assert same(environment.observe(), environment.observe())
        environment.execute(ActionChunk(actions.actions[step : step + 1]))
    other.execute(actions)
    assert same(environment.observe(), other.observe())


def a_chunk_is_its_actions_one_by_one(environment: Environment, other: Environment) -> None:
    actions = wander(environment, 6)
    environment.reset(4)
    other.reset(4)
    whole = environment.execute(actions)
    steps = [other.execute(ActionChunk(actions.actions[step : step + 1])) for step in range(whole.steps)]
    assert [outcome.steps for outcome in steps] == [1] * whole.steps
    assert [outcome.success for outcome in steps] == [False] * (whole.steps - 1) + [whole.success]
    assert whole.steps == 6 or whole.success
    assert same(environment.observe(), other.observe())


def success_stops_early(environment: Environment, solve: Callable[[Environment], ActionChunk], limit: int) -> None:
    environment.reset(3)
    actions = []
    for _ in range(limit):
        action = solve(environment)
        actions.append(action.actions)
        if environment.execute(action).success:
            break
    else:
        raise AssertionError(f"no success within {limit} steps")
    idle = np.zeros((5, environment.embodiment.action_size), np.float32)
    environment.reset(3)
    outcome = environment.execute(ActionChunk(np.concatenate([*actions, idle])))
    assert outcome.success
    assert outcome.steps == len(actions), "the actions after success were not carried out"


def the_situation_follows_the_scene(
    environment: Environment, solve: Callable[[Environment], ActionChunk], limit: int
) -> None:
    """What is asked for is there, asking changes nothing, and who succeeds had hold of it or moved it."""
    assert isinstance(environment, Situated)
    environment.reset(3)
    seen = environment.observe()
    first = now = environment.situation()
    assert same(environment.observe(), seen)
    assert first.held is None, "nothing is held at the beginning"
    asked, handled = first.to_hold | first.to_move, set()
    assert asked <= first.things.keys()
    assert not first.to_hold & first.to_move
    for _ in range(limit):
        success = environment.execute(solve(environment)).success
        now, again = environment.situation(), environment.situation()
        assert now.held == again.held
        assert all(np.array_equal(now.things[thing], again.things[thing]) for thing in first.things)
        assert now.things.keys() == first.things.keys()
        assert np.isfinite([now.hand, *now.things.values()]).all()
        assert now.held is None or now.held in now.things
        moved = {thing for thing in first.to_move if np.linalg.norm(now.things[thing] - first.things[thing]) > 0.01}
        handled |= moved | ({now.held} & first.to_hold)
        if success:
            break
    assert np.linalg.norm(now.hand - first.hand) > 0.01, "the hand went somewhere"
    assert bool(handled) == bool(asked)


def wander(environment: Environment, steps: int) -> ActionChunk:
    """Arbitrary actions inside the limits, the same ones each time."""
    low, high = np.float32(environment.embodiment.action_low), np.float32(environment.embodiment.action_high)
    shares = np.random.default_rng(7).uniform(0.3, 0.7, (steps, len(low))).astype(np.float32)
    return ActionChunk(low + shares * (high - low))


def same(first: Observation, second: Observation) -> bool:
    images = all(np.array_equal(first.images[name], second.images[name]) for name in first.images)
    proprio = first.proprio is None or second.proprio is None or np.array_equal(first.proprio, second.proprio)
    return images and proprio and first.images.keys() == second.images.keys()
