"""Why a trial failed: a word for each story, told by where things were."""

from __future__ import annotations

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
    for before, after in [*zip(scenes, scenes[1:], strict=False), scenes[-1:] * 2]:
        for share in np.arange(10) / 10 if before is not after else [0]:
            hand, cup, bowl = (np.array(before[i]) + share * (np.array(after[i], float) - before[i]) for i in (0, 2, 3))
            wanted = {"to_hold": frozenset(), "to_move": frozenset()} | asked
            seen.append(Situation(hand, before[1], {"cup": cup, "bowl": bowl}, **wanted))
    return seen


AWAY, HIGH, AT_CUP, AT_BOWL, FAR = [0.0, 0, 0.5], [0.5, 0, 0.3], CUP, BOWL, [0.9, 0.9, 0.3]
UP, ASIDE = CUP + [0, 0, 0.3], CUP + [0.05, 0, 0]

STORIES = {
    "closed on nothing": ("missed", PICK, [(AWAY, None, CUP, BOWL), (AT_CUP, None, CUP, BOWL), (HIGH, None, CUP, BOWL)]),
    "knocked it aside": ("missed", PICK, [(AWAY, None, CUP, BOWL), (AT_CUP, None, CUP, BOWL), (HIGH, None, ASIDE, BOWL)]),
    "it slipped at once": ("missed", PICK, [(AT_CUP, "cup", CUP, BOWL), (AT_CUP, None, CUP, BOWL), (HIGH, None, CUP, BOWL)]),
    "went elsewhere": ("missed", PICK, [(AWAY, None, CUP, BOWL), (FAR, None, CUP, BOWL), (AWAY, None, CUP, BOWL)]),
    "pressed beside it": ("missed", PUSH, [(AWAY, None, CUP, BOWL), (AT_CUP, None, CUP, BOWL), (HIGH, None, CUP, BOWL)]),
    "took the other": ("wrong object", PICK, [(AT_BOWL, "bowl", CUP, BOWL), (AWAY, "bowl", CUP, AWAY), (FAR, "bowl", CUP, FAR)]),
    "pushed the other": ("wrong object", PUSH, [(AT_BOWL, None, CUP, BOWL), (FAR, None, CUP, FAR), (AWAY, None, CUP, FAR)]),
    "took what reach leaves alone": ("wrong object", REACH, [(AT_BOWL, "bowl", CUP, BOWL), (FAR, "bowl", CUP, FAR), (AWAY, "bowl", CUP, AWAY)]),
    "brushed the other": ("missed", PICK, [(AT_BOWL, None, CUP, BOWL), (AT_CUP, None, CUP, FAR), (FAR, None, CUP, FAR)]),
    "fell on the way": ("dropped", PICK, [(AT_CUP, "cup", CUP, BOWL), (HIGH, "cup", UP, BOWL), (FAR, None, UP, BOWL), (FAR, None, CUP, BOWL)]),
    "put down elsewhere": ("dropped", PICK, [(AT_CUP, "cup", CUP, BOWL), (FAR, "cup", FAR, BOWL), (FAR, None, FAR, BOWL), (AWAY, None, FAR, BOWL)]),
    "let it go, took it again": ("out of time", PICK, [(AT_CUP, "cup", CUP, BOWL), (HIGH, "cup", UP, BOWL), (AT_CUP, None, CUP, BOWL), (AT_CUP, "cup", CUP, BOWL), (HIGH, "cup", UP, BOWL)]),
    "still carrying": ("out of time", PICK, [(AT_CUP, "cup", CUP, BOWL), (HIGH, "cup", UP, BOWL), (FAR, "cup", FAR, BOWL)]),
    "holds it and waits": ("stuck", PICK, [(AT_CUP, "cup", CUP, BOWL), (HIGH, "cup", UP, BOWL), (HIGH, "cup", UP, BOWL)]),
    "pushed it too little": ("out of time", PUSH, [(AWAY, None, CUP, BOWL), (AT_CUP, None, CUP, BOWL), (FAR, None, ASIDE, BOWL), (AWAY, None, ASIDE, BOWL)]),
    "never set out": ("stuck", PICK, [(AWAY, None, CUP, BOWL), (AWAY, None, CUP, BOWL)]),
    "never got there": ("stuck", REACH, [(AWAY, None, CUP, BOWL), (HIGH, None, CUP, BOWL), (HIGH, None, CUP, BOWL), (HIGH, None, CUP, BOWL)]),
    "circled": ("out of time", REACH, [(AWAY, None, CUP, BOWL), (HIGH, None, CUP, BOWL), (AWAY, None, CUP, BOWL), (FAR, None, CUP, BOWL), (AWAY, None, CUP, BOWL)]),
}  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_every_story_has_its_word(name: str) -> None:
    word, asked, scenes = STORIES[name]
    assert failure(story(*scenes, asked=asked)) == word


def test_a_contact_lost_at_the_last_moment_is_no_drop() -> None:
    seen = story(
        (AT_CUP, "cup", CUP, BOWL),
        (HIGH, "cup", UP, BOWL),
        (FAR, "cup", FAR, BOWL),
        ([0, 0, 0.6], "cup", [0, 0, 0.6], BOWL),
    )
    last = seen[-1]
    assert failure([*seen, Situation(last.hand, None, last.things, last.to_hold, last.to_move)]) == "out of time"


def test_what_is_done_counts_no_more_and_what_is_left_decides() -> None:
    """First the cup was put where it belongs, then the bowl, which is still asked for, was never taken."""
    both, left = {"to_hold": frozenset(["cup", "bowl"])}, {"to_hold": frozenset(["bowl"])}
    cup = story((AT_CUP, "cup", CUP, BOWL), (FAR, "cup", FAR, BOWL), (FAR, None, FAR, BOWL), asked=both)
    rest = story(
        (FAR, None, FAR, BOWL), (AT_BOWL, None, FAR, BOWL), (AWAY, None, FAR, BOWL), (HIGH, None, FAR, BOWL), asked=left
    )
    assert failure(cup + rest) == "missed"
    taken = story(
        (FAR, None, FAR, BOWL),
        (AT_BOWL, "bowl", FAR, BOWL),
        (AWAY, "bowl", FAR, AWAY),
        (HIGH, None, FAR, BOWL),
        asked=left,
    )
    assert failure(cup + taken) == "dropped"


def test_every_word_has_a_meaning_and_is_counted_in_order() -> None:
    assert tuple(MEANINGS) == get_args(Failure)
    assert counted(["stuck", None, "missed", "success", "stuck"]) == {"missed": 1, "stuck": 2}
    assert list(counted(["stuck", "missed"])) == ["missed", "stuck"]
