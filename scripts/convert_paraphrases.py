"""Octo's published paraphrases (a pickle of one dictionary) as the JSON that hypervla reads.

    python scripts/convert_paraphrases.py paraphrases_oxe.pkl paraphrases.json

A pickle is a program. This one is only run when all its instructions are those that make dictionaries and text, and by
an unpickler that knows no names at all. Each value is one string of sentences separated by full stops.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hypervla.durable import write_atomically

PLAIN = {
    "PROTO", "FRAME", "MARK", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS", "STOP", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
}  # fmt: skip
"""Instructions that make dictionaries of text."""
DAMAGE = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError)
"""What unpickling raises for bytes that are no pickle."""


class PlainUnpickler(pickle.Unpickler):
    """Loads only what needs no class or function; a second lock behind `check`."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an outside object")


def check(data: bytes) -> None:
    """Raises ValueError for a pickle with any other instruction, or with one that would fill the memory."""
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in PLAIN:
            raise ValueError(f"its instruction {instruction.name} makes something else")
        if "PUT" in instruction.name and int(argument) > len(data):
            raise ValueError(f"it keeps a thing number {argument}")


def sentences(text: str) -> list[str]:
    """The sentences between full stops, without empty ones."""
    return [part for part in (" ".join(part.split()) for part in text.split(".")) if part]


def convert(data: bytes) -> dict[str, list[str]]:
    """The paraphrases of each instruction. Raises ValueError for anything but a pickled dictionary of text."""
    try:
        check(data)
        table = PlainUnpickler(io.BytesIO(data)).load()
    except DAMAGE as error:
        raise ValueError(f"is not a pickle of plain text ({error})") from error
    if not isinstance(table, Mapping) or not all(isinstance(item, str) for pair in table.items() for item in pair):
        raise ValueError(f"holds a {type(table).__name__}, not a dictionary of instruction to text")
    return {instruction: sentences(text) for instruction, text in table.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path, help="the published .pkl file")
    options.add_argument("target", type=Path, help="the JSON file to write, such as DATASET/meta/paraphrases.json")
    chosen = options.parse_args()
    try:
        table = convert(chosen.source.read_bytes())
    except (OSError, ValueError) as error:
        sys.exit(f"{chosen.source}: {error}.")
    write_atomically(chosen.target, json.dumps(table, indent=1, ensure_ascii=False).encode())
    print(f"{chosen.target}: {len(table):,} instructions, {sum(map(len, table.values())):,} paraphrases.")


if __name__ == "__main__":
    main()
