"""How long one control step takes, and how much memory: synchronised, warm, each model in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hypervla.contracts import UserError, out_of_memory
from hypervla.models.hypervla import HyperVLA
from hypervla.models.interface import ModelConfig, family

Precision = Literal["float32", "bfloat16"]
ELSEWHERE = "choose a device with more, or smaller models with --scale small."
WARM_UP, LEAST = 3, 20
"""Steps that are not timed, and the fewest that are."""


@dataclass(frozen=True)
class Way:
    """How a control step is computed."""

    fused: bool = True
    """Attention in one kernel where the device has one, or written out."""
    traced: bool = False
    """Vision and language model through torch.compile, in its default mode (without CUDA graphs)."""
    cached: bool = True
    """Whether a model that writes tokens one after another keeps keys and values."""

    def __str__(self) -> str:
        words = ["fused attention" if self.fused else "attention written out", *(["traced"] if self.traced else [])]
        return ", ".join(words)


@dataclass(frozen=True)
class Latency:
    """What one model needed on one device; seconds and bytes."""

    p50: float
    p95: float
    p99: float
    steps: int
    peak_bytes: int
    """Of device memory on a GPU, weights included; on a CPU what the process grew by."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DEFAULT = Way()


def measure(step: Callable[[], object], device: torch.device, seconds: float) -> tuple[float, float, float, int]:
    """p50, p95 and p99 of one call in seconds, and how many calls were timed: at least LEAST, for about `seconds`."""
    for _ in range(WARM_UP):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < end:
        synchronise(device)
        began = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - began)
    p50, p95, p99 = (float(q) for q in np.quantile(times, (0.5, 0.95, 0.99)))
    return p50, p95, p99, len(times)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def most_memory() -> int:
    """The most bytes this process has held so far. Linux keeps it by program; elsewhere the whole process counts, which
    includes what its parent held when it was forked."""
    status = Path("/proc/self/status")
    if status.is_file():
        (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())
        return 1024 * int(kilobytes)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def control_step(model: Any, way: Way) -> Callable[[], object]:
    """One control step on one observation, as a call: with a HyperVLA's weights already generated."""
    if not way.cached:
        tensors = model.example(1)
        return lambda: model.generate(*tensors, cached=False)
    if not isinstance(model, HyperVLA):
        tensors = model.example(1)
        return lambda: model.infer(*tensors)
    config, weight = model.config, next(model.hypernetwork.parameters())
    size = config.image_size
    images = torch.zeros(1, 1, config.cameras, size, size, 3, dtype=torch.uint8, device=weight.device)
    proprio = torch.zeros(1, 1, config.proprio_size).to(weight) if config.proprio_size else None
    flat = torch.cat([model.hypernetwork.kernel_heads.bias, model.hypernetwork.other_heads.bias])[None].detach()
    weights = model.policy.layout.split(flat)
    return lambda: model.policy.act(weights, model.tokens(images), proprio)


def latency(
    config: ModelConfig, device: str, precision: Precision = "float32", seconds: float = 10.0, way: Way = DEFAULT
) -> Latency:
    """One control step of the model with random weights, in a fresh process. Raises UserError if it does not fit."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, config, device, precision, seconds, way), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        if process.exitcode is not None and process.exitcode >= 0:
            raise RuntimeError(f"Timing {family(config)} failed; the traceback of its process stands above.") from None
        raise UserError(
            f"The process that timed {family(config)} was killed by signal {-(process.exitcode or 0)}, most likely for "
            f"want of memory: {ELSEWHERE}"
        ) from None
    process.join()
    if isinstance(answer, str):
        raise UserError(answer)
    return answer


def _report(pipe: Any, config: ModelConfig, device: str, precision: Precision, seconds: float, way: Way) -> None:
    """In the fresh process: build, time, and send a Latency, or the reason why there is none."""
    try:
        check_room(config, torch.device(device), precision)
        pipe.send(_here(config, torch.device(device), precision, seconds, way))
    except UserError as reason:
        pipe.send(str(reason))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        pipe.send(f"{family(config)} does not fit the memory of {device}: {ELSEWHERE}")


def check_room(config: ModelConfig, device: torch.device, precision: Precision) -> None:
    """Refuse a model whose weights alone need more memory than is free, before the system ends some process for it.
    Raises UserError."""
    with torch.device("meta"):
        count = sum(config.build(pretrained=False).parts().values())
    needed, free = count * getattr(torch, precision).itemsize, free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"{family(config)} has {needed / 1e9:.1f} GB of weights in {precision}, but {device} has "
            f"{free / 1e9:.1f} GB free: {ELSEWHERE}"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new process can have, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    about = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", about.read_text()) if about.is_file() else None
    return 1024 * int(found[1]) if found else None


@torch.inference_mode()
def _here(config: ModelConfig, device: torch.device, precision: Precision, seconds: float, way: Way) -> Latency:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = most_memory()
    torch.set_default_dtype(getattr(torch, precision))
    with device:
        model = config.build(pretrained=False).eval()
    if way.traced:
        model.model.vision_backbone.forward = torch.compile(model.model.vision_backbone.forward)
        model.model.language_model.model.forward = torch.compile(model.model.language_model.model.forward, dynamic=True)
    with nullcontext() if way.fused else sdpa_kernel(SDPBackend.MATH):
        found = measure(control_step(model, way), device, seconds)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else most_memory() - before
    return Latency(*found, peak_bytes=peak)
