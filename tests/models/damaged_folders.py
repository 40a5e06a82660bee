"""Ways in which a folder that `save_pretrained` wrote can be spoiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch


def empty(folder: Path) -> None:
    shutil.rmtree(folder)


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncate_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:50])


def replace_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"something": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: list[Callable[[Path], None]] = [empty, truncate_weights, remove_weights, truncate_config, replace_weights]
