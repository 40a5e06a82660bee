"""Why a trial failed, in one word, from what the simulator knew after each execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from hypervla.contracts import Situation

Failure = Literal["missed", "wrong object", "dropped", "stuck", "out of time", "crashed"]

MEANINGS: Mapping[Failure, str] = {
    "missed": "never had hold of what is to be picked up, nor moved what is to be moved",
    "wrong object": "had hold of something else and not of that; or moved something else, where nothing is picked up",
    "dropped": "had hold of it, and let go of it where it does not belong",
    "stuck": "the hand stood still for the last quarter of the trial",
    "out of time": "still at it when the steps ran out",
    "crashed": "ended in an error",
}

MOVED = 0.01
"""Metres: nearer to where it began, a thing was touched rather than moved or carried."""
LEFT = 0.03
"""Metres that a thing has gone from its place in the hand when it is not in it any more."""
STILL = 0.01
"""Metres: a hand that stays within this stands still."""
NEAR = 0.1
"""Metres from hand to thing: nearer, it was tried."""


def failure(seen: Sequence[Situation]) -> Failure:
    """The word for a trial that ended without success and without an error; `seen` from first to last.

    *It* is what the last situation still asks for: what is to be picked up (`to_hold`) and what is to be pushed,
    opened, pressed or turned (`to_move`). A thing was *had hold of* when it was between the fingers and went 1 cm with
    them, and was *moved* when it was ever 1 cm from where it began (also by itself: the door of Metaworld's door-close
    swings). The first of these that holds is the word:

    1. `wrong object`: it was neither had hold of nor moved, but something the task does not ask for was had hold of;
       where nothing is to be picked up, having moved something else is enough.
    2. `stuck` or `missed`: it was not had hold of, and nothing that is to be moved was. A hand that stood still at the
       end and never was within 10 cm of it is stuck, any other missed it: a grasp that closed on nothing or slipped,
       a puck knocked aside instead of picked up, a button or a handle that was passed by.
    3. `dropped`: something to be picked up was had hold of, and is not in the hand at the end: lost on the way, or put
       down elsewhere.
    4. `stuck`: the hand stayed within 1 cm during the last quarter of what was seen.
    5. `out of time`: anything else. So it is for a task that asks for nothing but a place of the hand (reach).
    """
    first, last = seen[0], seen[-1]
    to_hold, to_move = last.to_hold, last.to_move
    asked = first.to_hold | first.to_move | to_hold | to_move
    had, moved = _carried(seen), _moved(seen)
    done = (had & to_hold) | ((moved | had) & to_move)
    others = (had if to_hold else had | moved) - asked
    if not done and others:
        return "wrong object"
    still = _stands_still(seen)
    if (to_hold or to_move) and not done:
        return "stuck" if still and not _came_near(seen, to_hold | to_move) else "missed"
    if any(_left_the_hand(seen, thing) for thing in had & to_hold):
        return "dropped"
    return "stuck" if still else "out of time"


def counted(words: Iterable[str | None]) -> dict[str, int]:
    """How often each word came, in the order of `Failure`; those that never came are left out."""
    counts = Counter(words)
    return {word: counts[word] for word in get_args(Failure) if counts[word]}


def _carried(seen: Sequence[Situation]) -> set[str]:
    """Things that went 1 cm while the fingers had them."""
    carried: set[str] = set()
    start: Situation | None = None
    for now in seen:
        if now.held is None or start is None or start.held != now.held:
            start = now
        elif _distance(start, now, now.held) > MOVED:
            carried.add(now.held)
    return carried


def _moved(seen: Sequence[Situation]) -> set[str]:
    """Things that were ever 1 cm from where they began."""
    first = seen[0]
    return {thing for thing in first.things if any(_distance(first, now, thing) > MOVED for now in seen)}


def _left_the_hand(seen: Sequence[Situation], thing: str) -> bool:
    """Whether it has gone from where it last was between the fingers."""
    held = next(now for now in reversed(seen) if now.held == thing)
    places = [now.things[thing] - now.hand for now in (held, seen[-1])]
    return float(np.linalg.norm(places[1] - places[0])) > LEFT


def _stands_still(seen: Sequence[Situation]) -> bool:
    hands = np.array([now.hand for now in seen[len(seen) * 3 // 4 :]])
    return bool(np.linalg.norm(hands - hands[-1], axis=1).max() < STILL)


def _came_near(seen: Sequence[Situation], things: Iterable[str]) -> bool:
    return any(np.linalg.norm(now.things[thing] - now.hand) < NEAR for thing in things for now in seen)


def _distance(before: Situation, after: Situation, thing: str) -> float:
    return float(np.linalg.norm(after.things[thing] - before.things[thing]))
