"""A base policy's weights as exported engines take them: fewer tensors, which say the same in fewer operations.

A scale and bias in front of a linear map, biases that are added one after another, and three maps of one input can be
worked into one tensor each before a robot acts, once for each task policy. `models/folded_policy.py` computes with the
result. Runs without PyTorch, on the robot.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hypervla.contracts import WeightLayout

Arrays = Mapping[str, np.ndarray]


def folded(weights: Arrays, heads: int) -> dict[str, np.ndarray]:
    """(N, …) tensors of the base policy's layout → (N, …) tensors of its folded form; float32 both.

    `heads` is the number of heads of its attention. What follows the last layer stays as it is.
    """
    biases = np.zeros_like(weights["position"])
    biases[:, : -2 if "proprio.bias" in weights else -1] = weights["image.bias"][:, None]
    if "proprio.bias" in weights:
        biases[:, -2] = weights["proprio.bias"]
    kept = {
        name: rows for name, rows in weights.items() if name.endswith("kernel") or name.startswith(("head", "norm"))
    }
    found = {name: rows for name, rows in kept.items() if not name.startswith("layers.")}
    found["position"] = weights["position"] + biases
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    for i in range(layers):
        layer = {name: weights[f"layers.{i}.{name}"] for name in _LAYER}
        now = _attention(layer, heads, last=i == layers - 1) | _mlp(layer)
        found |= {f"layers.{i}.{name}": np.ascontiguousarray(rows) for name, rows in now.items()}
    return found


def folded_shapes(layout: WeightLayout, heads: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the folded tensors of one task policy."""
    rows = folded(layout.split(np.zeros((1, layout.size), np.float32)), heads)
    return {name: tensor.shape[1:] for name, tensor in rows.items()}


_LAYER = tuple(f"{part}.{name}" for part in ("norm1", "norm2") for name in ("scale", "bias")) + tuple(
    f"{part}.{name}" for part in ("query", "key", "value", "out", "up", "down") for name in ("kernel", "bias")
)


def _attention(layer: Arrays, heads: int, last: bool) -> dict[str, np.ndarray]:
    """The attention of one layer. What the bias of the keys adds is the same for all that is looked at, and drops out;
    that of the values is added to whatever was seen, and can wait.

    In the last layer only one token looks, so that its query can be taken through the map of the keys, and the map of
    the values can wait until it has looked; theirs are cut by heads for that.
    """
    (query, query_bias), (key, _), (value, value_bias) = (
        _behind(layer, "norm1", name) for name in ("query", "key", "value")
    )
    by_head = (len(query), -1, heads, query.shape[-1] // heads)  # N, D, heads, d
    if last:
        key, value = key.reshape(by_head).transpose(0, 2, 3, 1), value.reshape(by_head).transpose(0, 2, 1, 3)
    scale = np.float32(by_head[-1] ** -0.5)
    out = layer["out.kernel"]
    return {
        "query.kernel": scale * query,
        "query.bias": scale * query_bias,
        "key.kernel": key,
        "value.kernel": value,
        "out.kernel": out,
        "out.bias": (value_bias[:, None] @ out)[:, 0] + layer["out.bias"],
    }


def _mlp(layer: Arrays) -> dict[str, np.ndarray]:
    kernel, bias = _behind(layer, "norm2", "up")
    return {"up.kernel": kernel, "up.bias": bias} | {name: layer[name] for name in ("down.kernel", "down.bias")}


def _behind(layer: Arrays, norm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a map with the scale and bias in front of it worked in."""
    kernel = layer[f"{name}.kernel"]
    bias = (layer[f"{norm}.bias"][:, None] @ kernel)[:, 0] + layer[f"{name}.bias"]
    return layer[f"{norm}.scale"][..., None] * kernel, bias
