"""Why a trial failed: a word for each story, told by where things were."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from hypervla.contracts import Situation
from hypervla.evaluation.taxonomy import MEANINGS, Failure, counted, failure

CUP, BOWL = np.array([0.5, 0.0, 0.0]), np.array([0.0, 0.5, 0.0])
PICK, PUSH, REACH = ({"to_hold": frozenset(["cup"])}, {"to_move": frozenset(["cup"])}, {})


def story(*scenes: tuple, asked: dict = PICK) -> list[Situation]:
    """Situations of scenes (hand, held, cup, bowl), in ten steps from each to the next."""
    seen = []
    for before, after in pairwise(scenes):
        seen += [situation(before, after, share, asked) for share in np.arange(10) / 10]
    return [*seen, situation(scenes[-1], scenes[-1], 0.0, asked)]


def situation(before: tuple, after: tuple, share: float, asked: dict) -> Situation:
    hand, cup, bowl = (np.array(before[i]) + share * np.subtract(after[i], before[i]) for i in (0, 2, 3))
    wanted = {"to_hold": frozenset(), "to_move": frozenset()} | asked
    return Situation(hand, before[1], {"cup": cup, "bowl": bowl}, **wanted)


AWAY, HIGH, FAR = [0.0, 0, 0.5], [0.5, 0, 0.3], [0.9, 0.9, 0.3]
UP, ASIDE = [0.5, 0, 0.3], [0.55, 0, 0]

START, AT_CUP, RISEN, GONE = (
    (AWAY, None, CUP, BOWL),
    (CUP, None, CUP, BOWL),
    (HIGH, None, CUP, BOWL),
    (FAR, None, CUP, BOWL),
)
GRASP, LIFTED, CARRIED = (CUP, "cup", CUP, BOWL), (HIGH, "cup", UP, BOWL), (FAR, "cup", FAR, BOWL)
BOWL_TAKEN = [(BOWL, "bowl", CUP, BOWL), (FAR, "bowl", CUP, FAR), (AWAY, "bowl", CUP, AWAY)]
"""Scenes: where the hand is, what it holds, where the cup is and where the bowl."""

STORIES = {
    "closed on nothing": ("missed", PICK, [START, AT_CUP, RISEN]),
    "closed on nothing and waits": ("missed", PICK, [START, AT_CUP, AT_CUP]),
    "knocked it aside": ("missed", PICK, [START, AT_CUP, (HIGH, None, ASIDE, BOWL)]),
    "it slipped at once": ("missed", PICK, [GRASP, AT_CUP, RISEN]),
    "went elsewhere": ("missed", PICK, [START, GONE, START]),
    "pressed beside it": ("missed", PUSH, [START, AT_CUP, RISEN]),
    "brushed the other": ("missed", PICK, [START, (CUP, None, CUP, FAR), (FAR, None, CUP, FAR)]),
    "took the other": ("wrong object", PICK, BOWL_TAKEN),
    "pushed the other": (
        "wrong object",
        PUSH,
        [(BOWL, None, CUP, BOWL), (FAR, None, CUP, FAR), (AWAY, None, CUP, FAR)],
    ),
    "took what reach leaves alone": ("wrong object", REACH, BOWL_TAKEN),
    "fell on the way": ("dropped", PICK, [GRASP, LIFTED, (FAR, None, UP, BOWL), GONE]),
    "put down elsewhere": ("dropped", PICK, [GRASP, CARRIED, (FAR, None, FAR, BOWL), (AWAY, None, FAR, BOWL)]),
    "took it again": ("out of time", PICK, [GRASP, LIFTED, AT_CUP, GRASP, LIFTED]),
    "still carrying": ("out of time", PICK, [GRASP, LIFTED, CARRIED]),
    "pushed it too little": ("out of time", PUSH, [START, AT_CUP, (FAR, None, ASIDE, BOWL), (AWAY, None, ASIDE, BOWL)]),
    "let go of what may as well be pushed": ("out of time", PUSH, [GRASP, CARRIED, (FAR, None, FAR, BOWL), RISEN]),
    "circled": ("out of time", REACH, [START, RISEN, START, GONE, START]),
    "holds it and waits": ("stuck", PICK, [GRASP, LIFTED, LIFTED]),
    "never set out": ("stuck", PICK, [START, START]),
    "never got there": ("stuck", REACH, [START, RISEN, RISEN]),
}


@pytest.mark.parametrize("name", STORIES)
def test_every_story_has_its_word(name: str) -> None:
    word, asked, scenes = STORIES[name]
    assert failure(story(*scenes, asked=asked)) == word


def test_a_contact_lost_at_the_last_moment_is_no_drop() -> None:
    seen = story(GRASP, LIFTED, CARRIED)
    last = seen[-1]
    assert failure([*seen, Situation(last.hand, None, last.things, last.to_hold, last.to_move)]) == "out of time"


def test_what_is_done_counts_no_more_and_what_is_left_decides() -> None:
    """First the cup was put where it belongs, and then the bowl was missed, or dropped."""
    both, left = {"to_hold": frozenset(["cup", "bowl"])}, {"to_hold": frozenset(["bowl"])}
    there = (FAR, None, FAR, BOWL)
    cup = story(GRASP, CARRIED, there, asked=both)
    missed = story(there, (BOWL, None, FAR, BOWL), (AWAY, None, FAR, BOWL), asked=left)
    assert failure(cup + missed) == "missed"
    dropped = story(there, (BOWL, "bowl", FAR, BOWL), (AWAY, "bowl", FAR, AWAY), (HIGH, None, FAR, BOWL), asked=left)
    assert failure(cup + dropped) == "dropped"


def test_every_word_has_a_meaning_and_is_counted_in_order() -> None:
    assert tuple(MEANINGS) == get_args(Failure)
    assert counted(["stuck", None, "missed", "success", "stuck"]) == {"missed": 1, "stuck": 2}
    assert list(counted(["stuck", "missed"])) == ["missed", "stuck"]
