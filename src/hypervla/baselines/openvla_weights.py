"""The published OpenVLA folder: sharded safetensors under their own names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from hypervla.contracts import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@torch.no_grad()
def load_published(source: str, model: nn.Module) -> None:
    """Copy the folder's tensors into the parameters of the same names, one after another.

    Raises UserError for a missing, unknown or mis-shaped tensor, damaged files, and weights that are pickled.
    """
    from safetensors import SafetensorError, safe_open

    folder = find_folder(source)
    places = _places(folder)
    wanted = dict(model.named_parameters())
    missing, foreign = sorted(wanted.keys() - places.keys()), sorted(places.keys() - wanted.keys())
    if missing or foreign:
        raise UserError(
            f"{folder} holds another model than this one: {len(missing)} tensors are missing {missing[:2]}, "
            f"{len(foreign)} unknown {foreign[:2]}; check that the recipe's sizes are those of the weights."
        )
    for file in sorted(set(places.values())):
        try:
            with safe_open(folder / file, "pt") as tensors:
                for name in (name for name, place in places.items() if place == file):
                    value = tensors.get_tensor(name)
                    if value.shape != wanted[name].shape:
                        raise UserError(
                            f"{folder} holds another model than this one: '{name}' has shape {tuple(value.shape)}, "
                            f"wanted {tuple(wanted[name].shape)}."
                        )
                    wanted[name].copy_(value)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / file} cannot be read ({error}): copy it again.") from error


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
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).is_file():
        try:
            places = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / INDEX} is damaged ({error!r}): copy it again.") from error
        if odd := [file for file in places.values() if Path(str(file)).name != file]:
            raise UserError(f"{folder / INDEX} names '{odd[0]}', which is no file of its folder: copy it again.")
        if gone := sorted(file for file in set(places.values()) if not (folder / file).is_file()):
            raise UserError(f"{folder} lacks {gone[0]} ({len(gone)} files in all): copy it again.")
        return places
    if (folder / WHOLE).is_file():
        try:
            with safe_open(folder / WHOLE, "pt") as tensors:
                return dict.fromkeys(tensors.keys(), WHOLE)
        except SafetensorError as error:
            raise UserError(f"{folder / WHOLE} cannot be read ({error}): copy it again.") from error
    pickled = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickled:
        raise UserError(
            f"{folder} holds pickled weights ({pickled[0]}), which are never opened, since a pickle can run code: get "
            f"the safetensors of the model, or convert it where you trust it."
        )
    raise UserError(f"{folder} holds neither {INDEX} nor {WHOLE}: it is no published model.")
