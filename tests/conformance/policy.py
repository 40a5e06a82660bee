"""What every Policy does. `check_policy` runs all of it; a new model needs nothing else to be run on a robot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hypervla.contracts import ActionChunk, Observation, Policy, UserError


def check_policy(make: Callable[[], Policy], observe: Callable[[int], Observation], *, trained: bool = True) -> None:
    """Raise AssertionError where a policy breaks the contract.

    `make` gives a policy at the start of an episode, always for the same task; `observe(seed)` an observation of its
    robot. A policy that is not `trained` may do the same whatever it is shown.
    """
    predicts_chunks_the_robot_can_carry_out(make(), observe)
    the_same_episode_gives_the_same_actions(make, observe)
    if trained:
        looks_at_what_it_is_shown(make, observe)
    leaves_the_observation_alone(make(), observe(0))
    refuses_what_the_robot_cannot_have_seen(make(), observe(0))


def predicts_chunks_the_robot_can_carry_out(policy: Policy, observe: Callable[[int], Observation]) -> None:
    assert isinstance(policy, Policy)
    low, high = np.float32(policy.embodiment.action_low), np.float32(policy.embodiment.action_high)
    lengths = set()
    for seed in range(4):
        chunk = policy.act(observe(seed))
        assert isinstance(chunk, ActionChunk)
        assert chunk.actions.dtype == np.float32
        assert chunk.actions.shape == (len(chunk), policy.embodiment.action_size)
        assert (chunk.actions >= low).all()
        assert (chunk.actions <= high).all()
        lengths.add(len(chunk))
    assert len(lengths) == 1, "the chunk's length does not change"


def the_same_episode_gives_the_same_actions(make: Callable[[], Policy], observe: Callable[[int], Observation]) -> None:
    one, other = make(), make()
    for seed in range(3):
        np.testing.assert_array_equal(one.act(observe(seed)).actions, other.act(observe(seed)).actions)


def looks_at_what_it_is_shown(make: Callable[[], Policy], observe: Callable[[int], Observation]) -> None:
    first = make().act(observe(0)).actions
    assert any((make().act(observe(seed)).actions != first).any() for seed in range(1, 6))


def leaves_the_observation_alone(policy: Policy, observation: Observation) -> None:
    before = {name: image.copy() for name, image in observation.images.items()}
    policy.act(observation)
    assert all((observation.images[name] == image).all() for name, image in before.items())


def refuses_what_the_robot_cannot_have_seen(policy: Policy, observation: Observation) -> None:
    name = policy.embodiment.cameras[0].name
    with pytest.raises(UserError, match=f"lacks camera '{name}'"):
        policy.act(replace(observation, images={}))
    small = {**observation.images, name: observation.images[name][:-1]}
    with pytest.raises(UserError, match="resize the image"):
        policy.act(replace(observation, images=small))
