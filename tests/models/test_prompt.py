"""Prompts as padded ids."""

from __future__ import annotations

import pytest

from hypervla.contracts import UserError
from hypervla.models.prompt import PROMPT, Prompts


class Letters:
    """A tokenizer with a token for each letter of the instruction, behind a first one."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> dict[str, list[int]]:
        self.asked.append(text)
        before, after = PROMPT.split("{}")
        return {"input_ids": [1, *(ord(letter) for letter in text.removeprefix(before).removesuffix(after))]}


def test_padding_stands_behind_the_first_token() -> None:
    ids, real = Prompts(Letters(), room=9)(["ab", "abcd"])
    assert ids.tolist() == [[1, 0, 0, 97, 98], [1, 97, 98, 99, 100]]
    assert real.tolist() == [[True, False, False, True, True], [True] * 5]


def test_the_last_token_is_added_where_it_is_missing() -> None:
    ids, real = Prompts(Letters(), room=9, last=98)(["ab", "a"])
    assert ids.tolist() == [[1, 97, 98], [1, 97, 98]]
    assert real.all()


def test_a_sentence_is_tokenized_once_in_lower_case() -> None:
    letters = Letters()
    prompts = Prompts(letters, room=9)
    prompts(["Ab", "Ab"])
    prompts(["Ab"])
    assert letters.asked == ["In: What action should the robot take to ab?\nOut:"]


def test_what_has_no_room_is_refused() -> None:
    prompts = Prompts(Letters(), room=3)
    prompts(["ab"])
    with pytest.raises(UserError, match="prompt of 4 tokens, but the language model has room for 3: shorten 'abc"):
        prompts(["abc"])


def test_without_a_tokenizer_nothing_is_read() -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        Prompts(None, room=9)(["ab"])
