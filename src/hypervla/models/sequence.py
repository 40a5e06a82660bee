"""A seeing language model's sequence and masks as pure functions (spec 5.1 and 5.2).

A sample is the first prompt token, its image tokens, the rest of the prompt with room up to the longest prompt of the
batch, and its action columns. Positions count only what is there, so that the room changes nothing. In every mask,
`mask[b, 0, i, j]` is True where column i may look at column j. Column 0 is always there and everybody may look at it,
so that no row is empty.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

END_AND_ACTIONS = 8
"""Columns that the released code hides: seven actions and the end of the text."""


def lay_out(prompt: Float[Tensor, "B L D"], images: Float[Tensor, "B K D"]) -> Float[Tensor, "B S D"]:
    """[first prompt token | images | the rest of the prompt and its padding]."""
    return torch.cat([prompt[:, :1], images.to(prompt.dtype), prompt[:, 1:]], 1)


def valid_columns(words: Bool[Tensor, "B L"], shown: Bool[Tensor, "B K"]) -> Bool[Tensor, "B S"]:
    """Which columns of `lay_out` hold something: real words, and image tokens that are shown."""
    return torch.cat([words[:, :1], shown, words[:, 1:]], 1)


def positions(valid: Bool[Tensor, "B S"]) -> Int64[Tensor, "B S"]:
    """Each column's place among those that hold something; 0 for what comes before them all."""
    return (valid.long().cumsum(1) - 1).clamp(min=0)


def joint_mask(valid: Bool[Tensor, "B S"]) -> Bool[Tensor, "B 1 S S"]:
    """Everybody looks at everything that is there."""
    return valid[:, None, None, :].expand(-1, 1, valid.shape[1], -1)


def causal_mask(valid: Bool[Tensor, "B S"]) -> Bool[Tensor, "B 1 S S"]:
    """Everybody looks at what is there up to its own column."""
    earlier = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=valid.device).tril()
    return valid[:, None, None, :] & earlier


def released_mask(valid: Bool[Tensor, "B S"], hidden: Bool[Tensor, "B S"]) -> Bool[Tensor, "B 1 S S"]:
    """The causal mask without the columns `hidden`, which are so for every row, their own included."""
    return causal_mask(valid) & ~hidden[:, None, None, :]


def last_columns(valid: Bool[Tensor, "B S"], count: int) -> Bool[Tensor, "B S"]:
    """The last columns of the padded batch, whatever they hold."""
    columns = torch.arange(valid.shape[1], device=valid.device)
    return (columns >= valid.shape[1] - count).expand(len(valid), -1)


def pack(
    embeddings: Float[Tensor, "B S D"], valid: Bool[Tensor, "B S"]
) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
    """What is there moved to the left in its order, the padding behind it, as the released code pads batches. A column
    then stands at its `positions`."""
    order = (~valid).long().argsort(dim=1, stable=True)
    return take(embeddings, order), valid.gather(1, order)


def take(columns: Float[Tensor, "B S D"], index: Int64[Tensor, "B J"]) -> Float[Tensor, "B J D"]:
    """Some columns of each sample."""
    return columns.gather(1, index.unsqueeze(-1).expand(-1, -1, columns.shape[-1]))
