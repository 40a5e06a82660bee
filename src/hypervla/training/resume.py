"""Everything a run needs to go on bit for bit: weights, moving average, optimizer, random state and position."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypervla.checkpoint import assign, read_weights
from hypervla.contracts import UserError
from hypervla.durable import write_atomically
from hypervla.models.interface import Model

FOLDER = "resume"
STATE, CARD = "state.safetensors", "state.json"


def save(
    out: Path,
    step: int,
    model: Model,
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> None:
    """Write the state after `step`. The file of the step comes first, then the card that names it, then older files
    go: a kill at any moment leaves one whole state. `identity` says which run this is."""
    import hashlib

    from safetensors.torch import save as to_bytes

    parameters = model.trained_parameters()
    tensors = {f"weights/{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"average/{name}": value for name, value in average.items()}
    for name, parameter in parameters.items():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{key}/{name}": value for key, value in moments.items()}
    tensors["random"] = torch.get_rng_state()
    if (device := _device(model)).type == "cuda":
        tensors["device_random"] = torch.cuda.get_rng_state(device)
    data = to_bytes({name: value.cpu().contiguous() for name, value in tensors.items()})
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{step:08d}-{STATE}"
    write_atomically(folder / name, data)
    card = {"step": step, "state": name, "sha256": hashlib.sha256(data).hexdigest(), "identity": dict(identity)}
    write_atomically(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())
    for old in folder.glob(f"*-{STATE}"):
        if old.name != name:
            old.unlink()


def load(
    out: Path,
    model: Model,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> int:
    """Put the saved state back and return its step. Raises UserError when it is missing, damaged or another run's."""
    card_path = out / FOLDER / CARD
    if not card_path.is_file():
        raise UserError(f"{out} holds no run to resume ({FOLDER}/{CARD} is missing): leave out --resume to start one.")
    try:
        card = json.loads(card_path.read_text())
        step, state, digest, saved = (card[key] for key in ("step", "state", "sha256", "identity"))
        if not (isinstance(step, int) and isinstance(saved, dict)):
            raise TypeError("its step is no number, or its identity no table")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{card_path} is damaged ({error}): start again without --resume in another --out.") from error
    for key in {**identity, **saved}:
        if saved.get(key) != identity.get(key):
            what, theirs, ours = _difference(key, saved.get(key), identity.get(key))
            raise UserError(
                f"{out} holds another run: its {what} is {_short(theirs)}, this command's is {_short(ours)}. Resume "
                f"with the same command, or choose another --out."
            )
    tensors = read_weights(out / FOLDER / state, digest)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    parameters = model.trained_parameters()
    assign(parameters, parts.pop("weights"), card_path)
    average.update({name: value.to(parameters[name].device) for name, value in parts.pop("average", {}).items()})
    torch.set_rng_state(parts.pop("random")[""])
    if state := parts.pop("device_random", None):
        torch.cuda.set_rng_state(state[""], _device(model))
    for name, parameter in parameters.items():
        moments = {key: values[name].to(parameter.device) for key, values in parts.items() if name in values}
        if moments:
            optimizer.state[parameter] = moments
    return step


def _device(model: Model) -> torch.device:
    return next(iter(model.trained_parameters().values())).device


def forget(out: Path) -> None:
    """Remove the resume state of a finished run."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def _difference(name: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """The first part that differs, by its path."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*here, *there]:
            if there.get(key) != here.get(key):
                return _difference(f"{name}.{key}", there.get(key), here.get(key))
    return name, there, here


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "…"
