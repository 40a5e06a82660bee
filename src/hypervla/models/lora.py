"""Low-rank adapters beside frozen linear maps, through peft: what fine-tuning a large model trains and saves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hypervla.contracts import UserError


@dataclass(frozen=True)
class LoRA:
    """The defaults are OpenVLA's for LIBERO: every linear map but the output layer, half of the adapter's answer."""

    rank: int = 32
    alpha: int = 16
    """The adapter's answer counts alpha / rank."""
    dropout: float = 0.0
    but: tuple[str, ...] = ("lm_head",)
    """Last parts of the names of linear maps without an adapter."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"LoRA wants a rank of 1 or more and a dropout in [0, 1), but rank {self.rank} and dropout "
                f"{self.dropout} came."
            )


def inject(module: nn.Module, lora: LoRA) -> None:
    """Freeze the module and put an adapter beside each of its linear maps. At first the adapters change nothing.

    Their names end in `lora_A.default.weight` and `lora_B.default.weight`; the map itself becomes `….base_layer`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.rpartition(".")[2] not in lora.but
    ]
    if not targets:
        raise UserError("LoRA found no linear map to stand beside: train all weights of this model instead.")
    inject_adapter_in_model(
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets), module
    )
