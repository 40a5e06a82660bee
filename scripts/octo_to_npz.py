"""The weights of a published Octo 1.5 as the npz that hypervla reads.

    python scripts/octo_to_npz.py octo-small-1.5 weights.npz

The folder is a download of rail-berkeley/octo-small-1.5 or octo-base-1.5 from the Hugging Face hub, or of a run
fine-tuned from one: config.json beside folders named by their step, of which the last is taken. The script stands alone
and needs NumPy, JAX and Orbax, nothing of Octo's and no accelerator. T5 is left out: it was frozen, and is t5-base.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

T5 = "octo_transformer/task_tokenizers_language/hf_model/"


def check(folder: Path) -> None:
    """Raises ValueError for a folder that holds no Octo, and for Octo 1.0, whose tensors are called the same but are
    read with another mask."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError("holds no config.json: give the whole folder of the checkpoint, not that of a step")
    try:
        model = json.loads(path.read_text())["model"]
        newer = model.get("repeat_task_tokens") and model.get("use_correct_attention")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"holds a config.json that is not of an Octo ({type(error).__name__}: {error})") from error
    if not newer:
        raise ValueError("holds an Octo 1.0, whose attention is another: take a 1.5")


def last_step(folder: Path) -> Path:
    """The folder that Orbax wrote. Raises ValueError when there is none."""
    steps = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    if not steps:
        raise ValueError("holds no folder of a step, such as 300000")
    step = max(steps, key=lambda path: int(path.name))
    return step / "default" if (step / "default").is_dir() else step


def restore(folder: Path) -> Mapping[str, Any]:
    """The parameter tree, its arrays as NumPy's, whatever devices wrote them. Raises ValueError when it cannot be
    read."""
    try:
        import jax  # pyright: ignore[reportMissingImports]
        import orbax.checkpoint as orbax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"is an Orbax checkpoint: pip install jax orbax-checkpoint ({error})") from error
    checkpointer = orbax.PyTreeCheckpointer()
    try:
        found = checkpointer.metadata(folder.absolute())
        tree = getattr(getattr(found, "item_metadata", found), "tree", found)
        as_array = orbax.RestoreArgs(restore_type=np.ndarray)
        wanted = jax.tree_util.tree_map(lambda _: as_array, tree)
        return checkpointer.restore(folder.absolute(), restore_args=wanted)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"holds a step that Orbax cannot read ({error})") from error


def flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Names joined by '/', and float arrays, without T5. Raises ValueError for anything else in the tree."""
    for name, branch in tree.items():
        here = f"{path}/{name}" if path else str(name)
        if f"{here}/".startswith(T5):
            continue
        if isinstance(branch, Mapping):
            yield from flat(branch, here)
            continue
        array = np.asarray(branch)
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"holds '{here}', which is no array of floating-point numbers")
        yield here, array


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path, help="the folder of the checkpoint")
    options.add_argument("target", type=Path, help="the npz file to write")
    chosen = options.parse_args()
    part = chosen.target.with_name(f".{chosen.target.name}.part")
    try:
        check(chosen.source)
        arrays = dict(flat(restore(last_step(chosen.source))))
        with part.open("wb") as file:
            np.savez(file, **dict[str, Any](arrays))
        os.replace(part, chosen.target)
    except (OSError, ValueError, RecursionError) as error:
        part.unlink(missing_ok=True)
        sys.exit(f"{chosen.source}: {str(error).rstrip('.')}.")
    print(f"{chosen.target}: {len(arrays):,} tensors, {sum(a.size for a in arrays.values()):,} parameters.")


if __name__ == "__main__":
    main()
