"""A trained model on disk: model.safetensors and checkpoint.json in one folder. No pickle."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from hypervla.baselines.octo import OctoCamera, OctoConfig, SmallStem
from hypervla.baselines.openvla import OpenVLAConfig
from hypervla.baselines.rt1 import RT1Config, RT1Transformer
from hypervla.baselines.rt1_actions import ActionTokens
from hypervla.baselines.rt1_sentence import EmbeddingTable, SentenceEncoder
from hypervla.baselines.rt1_vision import FilmEfficientNet
from hypervla.contracts import UserError, out_of_memory
from hypervla.durable import write_atomically
from hypervla.embodiment import Embodiment
from hypervla.models.action_head import LinearHead, ReleasedHead
from hypervla.models.backbones import Clip, ConvNet, DinoV2, Siglip
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.evla import EvlaConfig
from hypervla.models.familiarity import KnownContexts
from hypervla.models.fused_vision import FusedVision, VitShape
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLAConfig, PolicyConfig
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import ModelConfig, family
from hypervla.models.lora import LoRA
from hypervla.models.monolithic import MonolithicConfig
from hypervla.models.vision_language import LanguageModel, VisionLanguage

FORMAT = 2
"""Format 1 held one robot; it is still read."""
EMBEDDED = "metaworld_small"
"""The shipped checkpoint that `hypervla demo` runs and that the word `embedded` stands for."""
BACKBONE = "backbone."
WEIGHTS, CONTEXTS, CARD = "model.safetensors", "contexts.safetensors", "checkpoint.json"
CONFIGS = {
    config.__name__: config
    for config in (
        ActionTokens,
        Clip,
        ConvNet,
        DiffusionHead,
        DinoV2,
        EmbeddingTable,
        EvlaConfig,
        FilmEfficientNet,
        FusedVision,
        HyperVLAConfig,
        HypernetworkConfig,
        InstructionEncoder,
        LanguageModel,
        LinearHead,
        LoRA,
        MonolithicConfig,
        OctoCamera,
        OctoConfig,
        OpenVLAConfig,
        PolicyConfig,
        RT1Config,
        RT1Transformer,
        ReleasedHead,
        SentenceEncoder,
        Siglip,
        SmallStem,
        VisionLanguage,
        VitShape,
    )
}
"""Every frozen dataclass that a model's configuration is made of; the card of a checkpoint names them."""


@dataclass(frozen=True)
class Checkpoint:
    """What checkpoint.json says about the weights beside it."""

    config: ModelConfig
    robots: Mapping[str, Mapping[str, Any]]
    """By name, each robot it was trained on: embodiment and action and proprio statistics, as data/normalize.py writes
    them."""
    provenance: Mapping[str, Any]
    """Recipe, steps, dataset digest, commit, command."""
    digest: str
    """sha256 of the weights file."""
    contexts_digest: str | None = None
    """sha256 of the file with the contexts of the training, where they were kept."""

    def robot(self, name: str | None = None) -> Mapping[str, Any]:
        """The robot of that name, or the only one. Raises UserError naming those it was trained on."""
        if name is None and len(self.robots) == 1:
            return next(iter(self.robots.values()))
        if not self.robots:
            raise UserError(
                "This checkpoint has learned to move no robot yet: train it on demonstrations with hypervla train "
                "RECIPE --init."
            )
        if name is None or name not in self.robots:
            what = "several robots" if name is None else f"no robot '{name}'"
            near = difflib.get_close_matches(name or "", self.robots, n=3, cutoff=0.4) or self.robots
            raise UserError(f"This checkpoint knows {what}: choose one of {', '.join(near)}.")
        return self.robots[name]

    def backbone_digest(self, weights: Mapping[str, Tensor], backbone: nn.Module) -> str:
        """sha256 of all that a task policy relies on besides its own weights: shared backbone, shapes and head.

        The backbone counts as it is in the checkpoint's `weights`, or, when it is frozen and not there, as loaded.
        """
        config = self.hypervla()
        parts = [config_to_json(part) for part in (config.backbone, config.policy, config.head, config.cameras)]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        own = {name: value for name, value in weights.items() if name.startswith(BACKBONE)}
        for name, value in sorted((own or {BACKBONE + n: p for n, p in backbone.named_parameters()}).items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def hypervla(self) -> HyperVLAConfig:
        """The configuration, if the model is a HyperVLA. Raises UserError for a model that generates no weights."""
        if not isinstance(self.config, HyperVLAConfig):
            raise UserError(
                f"This checkpoint holds the model {family(self.config)}, which generates no task policies: only a "
                f"HyperVLA can be compiled to a file."
            )
        return self.config


def save(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    config: ModelConfig,
    robots: Mapping[str, Mapping[str, Any]],
    provenance: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Write a checkpoint; the card, without which it is not accepted, comes last and in one move."""
    from safetensors.torch import save as to_bytes

    data = to_bytes({name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()})
    card = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "model": config_to_json(config),
        "robots": {name: dict(robot) for name, robot in robots.items()},
        "provenance": dict(provenance),
    }
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())


def add_contexts(folder: Path, known: KnownContexts) -> None:
    """Keep the contexts of the training beside the weights."""
    from safetensors.torch import save as to_bytes

    data = to_bytes({name: value.contiguous() for name, value in known.to_tensors().items()})
    card = json.loads((folder / CARD).read_text()) | {"contexts_sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / CONTEXTS, data)
    write_atomically(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())


def read_contexts(folder: Path, about: Checkpoint) -> KnownContexts | None:
    """The contexts of the training, where they were kept. Raises UserError for a damaged file."""
    if about.contexts_digest is None:
        return None
    return KnownContexts.from_tensors(read_weights(folder / CONTEXTS, about.contexts_digest))


def read_card(folder: Path) -> Checkpoint:
    """checkpoint.json alone. Raises UserError when the folder holds no checkpoint of ours."""
    path = folder / CARD
    if not path.is_file():
        raise UserError(f"{folder} holds no checkpoint ({CARD} is missing): make one with `hypervla train`.")
    try:
        card = json.loads(path.read_text())
        if card["format"] in (1, FORMAT):
            return _from_json(card)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a hypervla checkpoint card ({type(error).__name__}: {error}): copy the checkpoint again."
        ) from error
    raise UserError(
        f"{path} is of checkpoint format {card['format']}, but this version of hypervla reads {FORMAT}: install a "
        "newer one."
    )


def _from_json(card: dict[str, Any]) -> Checkpoint:
    if card["format"] == 1:
        card["robots"] = {card["embodiment"]["name"]: {key: card[key] for key in ("embodiment", "normalisation")}}
    for robot in card["robots"].values():
        Embodiment.from_json(robot["embodiment"])
    config = config_from_json(card["model"])
    if not isinstance(config, ModelConfig):
        raise TypeError("its model is no configuration of one")
    digest, contexts = card["weights_sha256"], card.get("contexts_sha256")
    if not (isinstance(digest, str) and isinstance(contexts, str | None)):
        raise TypeError("its sha256 are no texts")
    return Checkpoint(config, card["robots"], card["provenance"], digest=digest, contexts_digest=contexts)


def load(folder: Path, device: str = "cpu") -> tuple[Any, Checkpoint, dict[str, Tensor]]:
    """The Model with its trained weights in float32, its card, and the weights as they are on disk.

    Raises UserError when the weights are damaged or another model's, or a frozen encoder is not to be had.
    """
    checkpoint = read_card(folder)
    weights = read_weights(folder / WEIGHTS, checkpoint.digest)
    model = _built(checkpoint.config.build, folder)
    assign(model.trained_parameters(), weights, folder)
    return model.to(device).eval().requires_grad_(False), checkpoint, weights


def _built(build: Callable[[], Any], folder: Path) -> Any:
    """The model of a card, whose sizes may be nonsense. Raises UserError then."""
    try:
        return build()
    except UserError:
        raise
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        if out_of_memory(error):
            raise
        said = str(error).splitlines()[0]
        raise UserError(f"{folder / CARD} describes a model that cannot be built ({said}): copy it again.") from error


def load_backbone(folder: Path, device: str = "cpu") -> tuple[nn.Module, Checkpoint, str]:
    """Only what acting needs: the shared backbone, without hypernetwork or text encoder."""
    checkpoint = read_card(folder)
    weights = read_weights(folder / WEIGHTS, checkpoint.digest)
    shape = checkpoint.hypervla().backbone
    backbone = _built(lambda: shape.build(pretrained=getattr(shape, "frozen", False)), folder)
    own = {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}
    assign({name: p for name, p in backbone.named_parameters() if p.requires_grad}, own, folder)
    return backbone.to(device).eval().requires_grad_(False), checkpoint, checkpoint.backbone_digest(weights, backbone)


def locate(name: str | Path) -> Path:
    """The folder of a checkpoint: a path, the name of a shipped one (or `embedded`), or a Hugging Face hub id.

    Raises UserError naming near matches when it is none of these.
    """
    path, ready = Path(name), shipped()
    if path.is_dir():
        return path
    if str(name) == "embedded":
        name = EMBEDDED
    if str(name) in ready:
        return ready[str(name)]
    if path.exists():
        raise UserError(f"'{name}' is a file; a checkpoint is the folder that `hypervla train --out` wrote.")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return _download(str(name))
    near = difflib.get_close_matches(str(name), ready, n=3) or [*ready, "embedded"]
    raise UserError(
        f"There is no checkpoint folder '{name}', nor one shipped under it; did you mean {' or '.join(near)}?"
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[WEIGHTS, CONTEXTS, CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"'{hub_id}' is neither a folder here nor to be had from the Hugging Face hub ({type(error).__name__}): "
            f"check the name and the network."
        ) from error


def read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose sha256 is `digest`. Raises UserError when it is another file."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is incomplete, copy it again.")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise UserError(f"{path} is damaged or foreign: sha256 {found[:12]}…, but its card says {digest[:12]}…")
    try:
        return from_bytes(data)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}): copy the checkpoint again.") from error


@torch.no_grad()
def assign(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy `weights` into `parameters` of the same names and shapes. Raises UserError naming the first difference."""
    missing, foreign = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
    if missing or foreign:
        raise UserError(
            f"{source} holds another model: {len(missing)} tensors are missing {missing[:2]} and {len(foreign)} "
            f"unknown {foreign[:2]}."
        )
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise UserError(
                f"{source} holds another model: '{name}' has shape {tuple(weights[name].shape)}, "
                f"wanted {tuple(parameter.shape)}."
            )
        if not weights[name].is_floating_point():
            raise UserError(f"{source} is damaged: '{name}' holds {weights[name].dtype}, not floating-point numbers.")
        parameter.copy_(weights[name])


def config_to_json(config: Any) -> Any:
    """A frozen configuration as JSON, each dataclass tagged with its name."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: config_to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__} | fields
    return [config_to_json(item) for item in config] if isinstance(config, tuple) else config


def config_from_json(data: Any) -> Any:
    """The inverse of `config_to_json`. Raises KeyError or TypeError for configurations of another version, and
    for values of another type."""
    if isinstance(data, dict):
        fields = {name: config_from_json(value) for name, value in data.items() if name != "type"}
        kind = CONFIGS[data["type"]]
        types = get_type_hints(kind)
        for name in fields.keys() & types.keys():
            try:
                check_type(fields[name], types[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            except TypeCheckError as error:
                raise TypeError(f"{data['type']}.{name} is {fields[name]!r}") from error
        return kind(**fields)
    return tuple(config_from_json(item) for item in data) if isinstance(data, list) else data


def shipped() -> Mapping[str, Path]:
    """The checkpoints inside the package, by recipe name."""
    folder = Path(str(files("hypervla").joinpath("checkpoints")))
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CARD}"))}
