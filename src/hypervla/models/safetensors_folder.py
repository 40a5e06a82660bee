"""Published weights: a folder, or a hub id, of safetensors, whole or in shards. Pickles are never opened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypervla.contracts import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_folder(source: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder or hub id by name, one after another. Raises UserError for damaged files, and for weights
    that are pickled."""
    folder = find_folder(source)
    places = _places(folder)
    for file in sorted(set(places.values())):
        yield from _tensors(folder / file, [name for name, place in places.items() if place == file])


@torch.no_grad()
def fill(wanted: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Copy the tensors into those of the same names. Raises UserError for one missing, unknown or mis-shaped."""
    missing, foreign = set(wanted), []
    for name, value in tensors:
        if name not in wanted:
            foreign.append(name)
            continue
        if not value.is_floating_point() or not (value.is_meta or value.isfinite().all()):
            raise UserError(f"{source} is damaged: '{name}' ({value.dtype}) holds what is no finite number.")
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{source} holds another model than this one: '{name}' has shape {tuple(value.shape)}, wanted "
                f"{tuple(wanted[name].shape)}."
            )
        missing.discard(name)
        wanted[name].copy_(value)
    if missing or foreign:
        raise UserError(
            f"{source} holds another model than this one: {len(missing)} tensors are missing {sorted(missing)[:2]}, "
            f"{len(foreign)} unknown {sorted(foreign)[:2]}; check that the recipe's sizes are those of the weights."
        )


def load_published(source: str, model: nn.Module) -> None:
    """Copy the folder's tensors into the parameters of the same names. Raises UserError as `read_folder` and `fill`."""
    fill(dict(model.named_parameters()), read_folder(source), source)


def check_published(source: str, model: nn.Module) -> None:
    """Whether the folder's tensors are those of a model on the meta device, by name and shape. Raises UserError."""
    folder = find_folder(source)
    places = _places(folder)
    found = (pair for file in sorted(set(places.values())) for pair in _shapes(folder / file))
    fill(dict(model.named_parameters()), found, source)


def find_folder(source: str) -> Path:
    """The folder itself, or that of a hub id. Raises UserError when it is neither."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "tokenizer*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"'{source}' is neither a folder here nor to be had from the Hugging Face hub ({type(error).__name__}): "
            f"check the name and the network."
        ) from error


def _places(folder: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    if (folder / INDEX).is_file():
        try:
            places = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{folder / INDEX} is damaged ({error!r}): copy it again.") from error
        if odd := [file for file in places.values() if Path(str(file)).name != file]:
            raise UserError(f"{folder / INDEX} names '{odd[0]}', which is no file of its folder: copy it again.")
        if gone := sorted(file for file in set(places.values()) if not (folder / file).is_file()):
            raise UserError(f"{folder} lacks {gone[0]} ({len(gone)} files in all): copy it again.")
        return places
    if (folder / WHOLE).is_file():
        with _opened(folder / WHOLE) as tensors:
            return dict.fromkeys(tensors.keys(), WHOLE)
    pickled = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickled:
        raise UserError(
            f"{folder} holds pickled weights ({pickled[0]}), which are never opened, since a pickle can run code: get "
            f"the safetensors of the model, or convert it where you trust it."
        )
    raise UserError(f"{folder} holds neither {INDEX} nor {WHOLE}: it is no published model.")


def _shapes(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors on the meta device, from the file's header."""
    with _opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118
            yield name, torch.empty(tensors.get_slice(name).get_shape(), device="meta")


def _tensors(file: Path, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    with _opened(file) as tensors:
        for name in names:
            yield name, tensors.get_tensor(name)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Raises UserError for a file that cannot be read, now or later."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}): copy it again.") from error
