"""The fast path on an NVIDIA GPU: one CUDA graph from the host's image to the host's action, for a batch of robots.

Everything a step touches has a fixed place: pinned memory on the host, buffers on the device, one set for each bucket
of batch sizes. A step writes the observation into the pinned memory, replays the graph, in which the copies to the
device and back are, and waits once. On a CPU the same code runs without pinned memory and without a graph, for tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from hypervla.contracts import UserError
from hypervla.runtime.acceptance import Source, accept
from hypervla.runtime.float8 import put_into_float8
from hypervla.runtime.folding import folded, folded_shapes
from hypervla.runtime.frames import Frames
from hypervla.runtime.graph import ControlStep
from hypervla.runtime.resizing import Resize
from hypervla.runtime.slots import NamedWeights, Slots
from hypervla.runtime.task_policy import Prediction
from hypervla.runtime.torch_engine import TorchEngine

FastPrecision = Literal["fp32", "bf16", "fp16", "fp8"]
DTYPES: dict[FastPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}
"""What activations are kept in; in fp8 only the backbone's products are computed in eight bits."""
FLOAT8_CAPABILITY = (8, 9)
WARM_UP = 3
"""Steps before one is captured, as PyTorch asks for: libraries set themselves up in them."""


class CudaEngine:
    """An Engine: the control step of a TorchEngine, folded and captured. It takes images of the network's size, or a
    camera's views, which it resizes itself."""

    takes_views = True

    def __init__(
        self, reference: TorchEngine, precision: FastPrecision = "fp16", most_policies: int = 64, traced: bool = False
    ) -> None:
        """`traced` also fuses the step's small operations with torch.compile. The reference stays as it is.

        Raises UserError for a precision that is none, or that the device cannot compute in.
        """
        self.precision = check_precision(precision, reference.device)
        self.backbone_digest, self.layout = reference.backbone_digest, reference.layout
        self.image_size, self.reads_proprio = reference.image_size, reference.reads_proprio
        self.most_policies, self.device = most_policies, reference.device
        self.heads, self.dtype = reference.policy.heads, DTYPES[precision]
        step = ControlStep(reference).eval().to(self.device)
        if precision == "fp8":
            _put_into_float8(step)
        self.whole: ControlStep = step.to(self.dtype)
        self.step: Callable[..., Tensor] = self.whole
        if traced:
            self.step = torch.compile(self.whole, dynamic=False)
        self._buckets: dict[tuple[int, ...], _Bucket] = {}
        self._turn = threading.Lock()
        """Of threads, whose policies go through the same buffers."""

    def form(self, weights: NamedWeights) -> NamedWeights:
        """In fewer tensors."""
        return folded(weights, self.heads)

    @torch.inference_mode()
    def run(
        self,
        slots: Slots,
        images: UInt8[np.ndarray, "N C h w 3"],
        proprio: Float32[np.ndarray, "N P"] | None,
    ) -> Prediction:
        """Normalised chunks of N task policies, each on its own observation. A bucket's first call captures its graph,
        which takes seconds. The graph is one piece, so all of its time counts as the backbone's."""
        began = time.perf_counter()
        key = (bucket(len(images)), *images.shape[1:])
        with self._turn:
            if key not in self._buckets:
                self._buckets[key] = _Bucket(self, key, 0 if proprio is None else proprio.shape[1])
            chunks = self._buckets[key].run(slots, images, proprio)
        return Prediction(chunks, time.perf_counter() - began, 0.0)


def _put_into_float8(step: ControlStep) -> None:
    if put_into_float8(step.backbone) == 0:
        raise UserError("This backbone has no linear maps that could be computed in fp8: choose fp16 or bf16.")


def fast_engine(source: Source, precision: FastPrecision, frames: Frames, most_policies: int = 64) -> CudaEngine:
    """The source's control step on its GPU, checked beside eager PyTorch on `frames`.

    Raises UserError without a GPU, for a precision it does not have, and for actions that differ too much.
    """
    if source.engine.device.type != "cuda":
        raise UserError("The fast path runs on an NVIDIA GPU: say --device cuda, or act on an exported engine.")
    engine = CudaEngine(source.engine, precision, most_policies, traced=True)
    accept(engine, source, frames, precision)
    return engine


def bucket(count: int) -> int:
    """The batch size that `count` task policies run at: the next power of two."""
    return 1 << (count - 1).bit_length()


def check_precision(name: str, device: torch.device) -> FastPrecision:
    """The precision of that name. Raises UserError where there is none, or the device cannot compute in it."""
    precision: FastPrecision | None = next((known for known in DTYPES if known == name), None)
    if precision is None:
        raise UserError(f"The fast path computes in {', '.join(DTYPES)}, but '{name}' came.")
    if precision == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        gpu = torch.cuda.get_device_name(device)
        raise UserError(f"{gpu} has no products in fp8 (Ada and Hopper have): choose fp16 or bf16.")
    return precision


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call as one CUDA graph, which the host waits for; elsewhere than on CUDA the call itself.

    It has to leave what it computes where it always does, and must not wait for the device.
    """
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay() -> None:
        graph.replay()
        torch.cuda.current_stream(device).synchronize()

    return replay


class _Bucket:
    """The buffers and the graph of one batch size."""

    def __init__(self, engine: CudaEngine, images: tuple[int, ...], proprio: int) -> None:
        """`images` are sizes N, C, h, w and 3."""
        self._step, self._device = engine.step, engine.device
        pinned, (size, _, height, width, _) = self._device.type == "cuda", images
        self._resize: Callable[[Tensor], Tensor] | None = None
        if (height, width) != (engine.image_size, engine.image_size):
            self._resize = Resize(height, width, engine.image_size).to(self._device)
        self._host_images = torch.zeros(images, dtype=torch.uint8, pin_memory=pinned)
        self._host_proprio = torch.zeros(size, proprio, pin_memory=pinned)
        self._images = self._host_images.to(self._device)
        self._proprio = torch.zeros(size, proprio, device=self._device, dtype=engine.dtype)
        self._weights = {
            name: torch.zeros(size, *shape, device=self._device, dtype=engine.dtype)
            for name, shape in folded_shapes(engine.layout, engine.heads).items()
        }
        self._stamps = np.zeros(size, np.int64)
        """Of the rows of weights that lie on the device."""
        self._host_chunks = torch.zeros(self._once().shape, pin_memory=pinned)
        self._replay = captured(self._all, self._device)

    def run(self, slots: Slots, images: np.ndarray, proprio: np.ndarray | None) -> Float32[np.ndarray, "N H A"]:
        count = len(images)
        self._bring_up_to_date(slots)
        self._host_images.numpy()[:count] = images
        if proprio is not None:
            self._host_proprio.numpy()[:count] = proprio
        self._replay()
        return self._host_chunks.numpy()[:count].copy()

    def _bring_up_to_date(self, slots: Slots) -> None:
        """Copy the task policies to the device that do not lie there yet."""
        (changed,) = np.nonzero(self._stamps[: len(slots)] != slots.stamps)
        if changed.size == 0:
            return
        places = torch.from_numpy(changed).to(self._device)
        for name, rows in slots.named.items():
            fresh = torch.from_numpy(rows[changed]).to(self._device, self._weights[name].dtype)
            self._weights[name].index_copy_(0, places, fresh)
        self._stamps[changed] = slots.stamps[changed]

    def _once(self) -> Tensor:
        images = self._images if self._resize is None else self._resize(self._images)
        return self._step(images, self._weights, self._proprio if self._proprio.shape[1] else None)

    def _all(self) -> None:
        """Host to device, the step, and back."""
        self._images.copy_(self._host_images, non_blocking=True)
        self._proprio.copy_(self._host_proprio, non_blocking=True)
        self._host_chunks.copy_(self._once(), non_blocking=True)
