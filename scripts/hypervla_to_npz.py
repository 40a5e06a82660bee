"""Weights of a run of the released JAX code as the npz that hypervla reads.

    python scripts/hypervla_to_npz.py RUN/100000/EMA_params.pkl weights.npz     averaged, as the papers evaluate
    python scripts/hypervla_to_npz.py RUN/100000 weights.npz                    the last step's, from Orbax

The script stands alone. The first form needs NumPy, the second also the JAX environment that made the run.

The average is nowhere but in a pickle, and a pickle is a program. This one is only run when all its instructions are
those that make dictionaries of arrays, and by an unpickler to which the few names that it may ask for mean functions
of this script: nothing of NumPy's or JAX's is called, and nothing but plain arrays comes out.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import pickle
import pickletools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

AVERAGE = "EMA_0.999"
ALLOWED = {
    "PROTO", "FRAME", "MARK", "STOP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
"""Instructions that make dictionaries of arrays."""
NUMBERS = {"f2", "f4", "f8"}
DAMAGE = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError)
"""What unpickling raises for bytes that are no pickle."""


class Kind:
    """Stands for numpy.dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in NUMBERS:
            raise ValueError(f"it holds numbers of kind {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">", "=": "<", "|": "<"}[state[1]]


class Array:
    """Stands for an array that is being put together."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        if not (isinstance(kind, Kind) and isinstance(data, bytes) and all(isinstance(n, int) for n in shape)):
            raise ValueError("it holds an array of something else than numbers")
        flat = np.frombuffer(data, np.dtype(kind.order + kind.code))
        if min(shape, default=0) < 0 or math.prod(shape) != flat.size:
            raise ValueError(f"it holds {flat.size} numbers for an array of shape {shape}")
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def new_array(*_: Any) -> Array:
    """Stands for numpy's `_reconstruct`: the array's contents follow."""
    return Array()


def device_array(_function: Any, _arguments: Any, state: tuple, _kind: Any) -> Array:
    """Stands for JAX's `_reconstruct_array`."""
    array = Array()
    array.__setstate__(state)
    return array


def thawed(tree: dict) -> dict:
    """Stands for Flax's FrozenDict."""
    return tree


NAMES: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): new_array,
    ("numpy", "dtype"): Kind,
    ("numpy.core.multiarray", "_reconstruct"): new_array,
    ("numpy._core.multiarray", "_reconstruct"): new_array,
    ("jax._src.array", "_reconstruct_array"): device_array,
    ("flax.core.frozen_dict", "FrozenDict"): thawed,
}


class ArrayUnpickler(pickle.Unpickler):
    """Knows the names above and no other."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return NAMES[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an outside object")


def check(data: bytes) -> None:
    """Raises ValueError for a pickle with any other instruction, or with one that would fill the memory."""
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in ALLOWED:
            raise ValueError(f"its instruction {instruction.name} makes something else")
        if "PUT" in instruction.name and int(argument or 0) > len(data):
            raise ValueError(f"it keeps a thing number {argument}")


def from_pickle(path: Path) -> Mapping[str, Any]:
    """The averaged parameter tree. Raises ValueError for anything but a pickle of one."""
    data = path.read_bytes()
    try:
        check(data)
        trees = ArrayUnpickler(io.BytesIO(data)).load()
    except DAMAGE as error:
        raise ValueError(f"is not a pickle of named arrays ({error})") from error
    if not isinstance(trees, dict) or not isinstance(trees.get(AVERAGE), dict):
        raise ValueError(f"holds no '{AVERAGE}': it is not the EMA_params.pkl of a released run")
    return trees[AVERAGE]


def from_orbax(folder: Path) -> Mapping[str, Any]:
    """The parameter tree of one step. Raises ValueError when Orbax is missing or cannot read it."""
    try:
        import orbax.checkpoint  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("is an Orbax checkpoint: run this in the environment that made the run") from error
    inner = folder / "default"
    try:
        return orbax.checkpoint.PyTreeCheckpointer().restore((inner if inner.is_dir() else folder).absolute())
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is not an Orbax checkpoint of one step ({error})") from error


def flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Names joined by '/', and float arrays. Raises ValueError for anything else in the tree."""
    for name, branch in tree.items():
        here = f"{path}/{name}" if path else str(name)
        if isinstance(branch, Mapping):
            yield from flat(branch, here)
            continue
        array = branch.value if isinstance(branch, Array) else np.asarray(branch)
        if array is None or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"holds '{here}', which is no array of floating-point numbers")
        yield here, array


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path, help="EMA_params.pkl, or the folder of one step")
    options.add_argument("target", type=Path, help="the npz file to write")
    chosen = options.parse_args()
    part = chosen.target.with_name(f".{chosen.target.name}.part")
    try:
        arrays = dict(flat((from_orbax if chosen.source.is_dir() else from_pickle)(chosen.source)))
        with part.open("wb") as file:
            np.savez(file, **dict[str, Any](arrays))
        os.replace(part, chosen.target)
    except (OSError, ValueError, RecursionError) as error:
        part.unlink(missing_ok=True)
        sys.exit(f"{chosen.source}: {str(error).rstrip('.')}.")
    print(f"{chosen.target}: {len(arrays):,} tensors, {sum(a.size for a in arrays.values()):,} parameters.")


if __name__ == "__main__":
    main()
