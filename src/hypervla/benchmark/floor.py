"""The least time that a model can take on a machine: its own matrix products, one after another, and nothing else.

Each library that is installed computes them as it does best; the fastest is the floor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hypervla.runtime.cuda_engine import captured

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.convolution)
MEGABYTES = 256
"""Moved to find out the memory's bandwidth."""
Counts = Mapping[tuple[Any, ...], int]
"""How often each product is computed: its operation and the shapes of its arguments."""


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


def products_of(step: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    """What one step of a model on `meta` multiplies."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with Products() as found, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(*inputs)
    return found.counts


def held(counts: Counts) -> int:
    """Bytes of all products in float32, which is more than what an engine keeps at once."""
    total = 0
    for (name, *args), count in counts.items():
        if name == ATEN.convolution:
            (batch, _, *sides), kernel, _, stride, padding, *_ = args
            out = [(x + 2 * p - k) // s + 1 for x, k, s, p in zip(sides, kernel[2:], stride, padding, strict=True)]
            total += count * batch * kernel[0] * math.prod(out)
        else:
            total += count * math.prod(args[-2][:-1]) * args[-1][-1]
    return 4 * total


def floors(counts: Counts, device: torch.device, dtype: torch.dtype, threads: int) -> dict[str, Callable[[], object]]:
    """A call for each library that computes the products and nothing else; on a GPU PyTorch's as one CUDA graph."""
    with torch.inference_mode():
        found: dict[str, Callable[[], object]] = {"PyTorch": captured(in_torch(counts, device, dtype), device)}
    if device.type != "cpu" or find_spec("onnx") is None:
        return found
    graph, inputs = as_onnx(counts)
    if find_spec("onnxruntime") is not None:
        found["ONNX Runtime"] = _in_onnx_runtime(graph, inputs, threads)
    if find_spec("openvino") is not None:
        found["OpenVINO"] = _in_openvino(graph, inputs, threads)
    return found


def in_torch(counts: Counts, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """The products in PyTorch."""
    tensors: dict[tuple[int, ...], Tensor] = {}

    def made(shape: tuple[int, ...]) -> Tensor:
        if shape not in tensors:
            tensors[shape] = torch.randn(shape, device=device, dtype=dtype)
        return tensors[shape]

    calls = []
    for (name, *args), count in counts.items():
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


def as_onnx(counts: Counts) -> tuple[bytes, dict[str, np.ndarray]]:
    """The products as an ONNX graph, each with weights of its own, and arrays for its inputs."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    nodes, constants, outputs = [], [], []

    def made(shape: tuple[int, ...], name: str) -> str:
        if name not in inputs:
            inputs[name] = random.standard_normal(shape, np.float32)
        return name

    def constant(shape: tuple[int, ...]) -> str:
        name = f"constant{len(constants)}"
        constants.append(numpy_helper.from_array(random.standard_normal(shape, np.float32), name))
        return name

    for (operation, *args), count in counts.items():
        for _ in range(count):
            out = f"product{len(nodes)}"
            if operation == ATEN.convolution:
                x, kernel, bias, stride, padding, dilation, _transposed, _more, groups = args
                given = [made(x, f"x{x}"), constant(kernel), *([] if bias is None else [constant(bias)])]
                about = {"strides": stride, "pads": (*padding, *padding), "dilations": dilation, "group": groups}
                nodes.append(helper.make_node("Conv", given, [out], **about))
            else:
                left, right = args[-2:]
                # The right side of a batched product comes from outside too; another for each, or one would do for all.
                second = made(right, f"{out}.right") if len(right) == 3 else constant(right)
                nodes.append(helper.make_node("MatMul", [made(left, f"x{left}"), second], [out]))
            outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in inputs.items()]
    graph = helper.make_graph(nodes, "products", given, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return model.SerializeToString(), inputs


def _in_onnx_runtime(graph: bytes, inputs: Mapping[str, np.ndarray], threads: int) -> Callable[[], object]:
    from hypervla.runtime.sessions import onnx_session

    session = onnx_session(graph, threads)
    bound = session.io_binding()
    for name, array in inputs.items():
        bound.bind_cpu_input(name, array)
    for output in session.get_outputs():
        bound.bind_output(output.name)
    return lambda: session.run_with_iobinding(bound)


def _in_openvino(graph: bytes, inputs: Mapping[str, np.ndarray], threads: int) -> Callable[[], object]:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return lambda: request.infer()


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
