"""What an episode is for: goals chosen in hindsight, instructions said in other words, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from hypervla.contracts import UserError

STILL = 1e-4
"""Length of an arm's action below which it does nothing."""


def uniform_goals(steps: Int64[np.ndarray, " F"], length: int, random: np.random.Generator) -> Int64[np.ndarray, " F"]:
    """For each step a goal drawn uniformly from it to the last one (Octo's relabelling). It has no inverse."""
    return random.integers(steps, length)


def choose_goals(
    goals: Int64[np.ndarray, " F"],
    labelled: Bool[np.ndarray, " F"],
    length: int,
    probability: float,
    random: np.random.Generator,
) -> tuple[Bool[np.ndarray, " F"], Int64[np.ndarray, " F"]]:
    """Whether each frame is told its goal by an image (else by its instruction), and the goal it then has.

    Images are kept with this probability (Octo 0.5, HyperVLA 0), and always where there is no instruction. Without an
    image the goal is the last step. It has no inverse.
    """
    shown = (random.random(len(goals)) < probability) | ~labelled
    return shown, np.where(shown, goals, length - 1)


def read_paraphrases(path: Path) -> dict[str, list[str]]:
    """Other ways to say each instruction, from JSON as scripts/convert_paraphrases.py writes it.

    Raises UserError for a file that is not there or holds anything else.
    """
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"The paraphrases of {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): convert the paraphrases again.") from error
    for instruction, others in table.items() if isinstance(table, dict) else [(None, None)]:
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise UserError(
                f"{path} holds no list of sentences{f' for {instruction!r}' if isinstance(table, dict) else ''}: "
                f"it reads {{instruction: [paraphrase, …]}}."
            )
    return table


class Paraphrases:
    """Sentences that ask for the same. One coin for an episode, one uniform choice for a frame."""

    def __init__(self, others: Mapping[str, Sequence[str]], probability: float) -> None:
        """`probability` 1 always draws (HyperVLA), 0.5 is Octo's. Empty sentences are never said."""
        self.probability = probability
        self._sentences = {
            text: tuple(dict.fromkeys(sentence for sentence in (text, *more) if sentence.strip()))
            for text, more in others.items()
        }

    def coin(self, random: np.random.Generator) -> bool:
        """Whether an episode's sentences are drawn."""
        return bool(random.random() < self.probability)

    def choose(self, instruction: str, random: np.random.Generator) -> str:
        """The instruction or one of its paraphrases. It has no inverse."""
        choices = self._sentences.get(instruction) or (instruction,)
        return choices[random.integers(len(choices))]


def largest_by_episode(
    values: Float32[np.ndarray, "F A"], starts: Int64[np.ndarray, " starts"]
) -> Float32[np.ndarray, " E"]:
    """The largest size of any number in each episode, none of which is empty: what max_action and max_proprio limit."""
    return np.maximum.reduceat(np.abs(values).max(axis=1), starts[:-1])


def acting_steps(actions: Float32[np.ndarray, "T A"]) -> Bool[np.ndarray, " T"]:
    """Which steps of an episode do something: the arm moves, or the gripper (the last entry) is told something new.

    New is what differs from the last step that is kept; before one, only the arm counts (OpenVLA's filter for LIBERO).
    """
    moving = np.linalg.norm(actions[:, :-1], axis=1) >= STILL
    kept, gripper = moving.copy(), None
    for step in range(len(actions)):
        kept[step] |= gripper is not None and actions[step, -1] != gripper
        if kept[step]:
            gripper = actions[step, -1]
    return kept
