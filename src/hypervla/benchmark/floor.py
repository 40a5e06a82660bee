"""The least time that a model can take on a machine: its own matrix products, one after another, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.convolution)
MEGABYTES = 256
"""Moved to find out the memory's bandwidth."""


class Products(TorchDispatchMode):
    """Notes every matrix product and convolution, by shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket
        if name in PRODUCTS:
            # The shapes; of a convolution also stride, padding and so on.
            self.counts[(name, *(tuple(x.shape) if isinstance(x, Tensor) else _frozen(x) for x in args))] += 1
        return function(*args, **(kwargs or {}))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def floor(step: nn.Module, inputs: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A call that computes the products of one step of a model on `meta`, and nothing else."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with Products() as found, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(*inputs)
    tensors: dict[tuple[int, ...], Tensor] = {}

    def made(shape: tuple[int, ...]) -> Tensor:
        if shape not in tensors:
            tensors[shape] = torch.randn(shape, device=device, dtype=dtype)
        return tensors[shape]

    calls = []
    for (name, *args), count in found.counts.items():
        if name == ATEN.convolution:
            x, kernel, bias, *rest = args
            given = [made(x), made(kernel), None if bias is None else made(bias), *map(_listed, rest)]
        else:
            given = [made(shape) for shape in args[-2:]]  # what is added to a product is not one
            name = ATEN.bmm if name in (ATEN.bmm, ATEN.baddbmm) else ATEN.mm
        calls += [(name, given)] * count

    def run() -> None:
        for name, given in calls:
            name(*given)

    return run


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def rates(device: torch.device) -> dict[str, float]:
    """What the machine can do: operations a second in products of 2048², by precision, and bytes a second of a copy."""
    from hypervla.benchmark.timing import measure

    size, found = 2048, {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[name] = 2 * size**3 / measure(lambda a=left, b=right: a @ b, device, 0.0)[0]
    source = torch.zeros(MEGABYTES * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    found["bytes"] = 2 * source.numel() * 4 / measure(lambda: target.copy_(source), device, 0.0)[0]
    return found
