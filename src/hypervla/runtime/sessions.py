"""Graphs opened by a runtime: named arrays in, one array out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from hypervla.contracts import UserError

Runtime = Literal["onnx", "openvino", "tensorrt"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
HINTS: Mapping[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO computes in where it has a choice."""
Infer = Callable[[Mapping[str, np.ndarray]], np.ndarray]
TENSORRT = "TensorrtExecutionProvider"


def onnx_session(data: bytes, threads: int | None) -> Any:
    """An ONNX graph in ONNX Runtime, on the processor."""
    import onnxruntime

    options = _onnx_options()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a robot's processor has other work too
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def tensorrt_session(data: bytes, precision: Precision, sizes: Mapping[str, tuple[int, ...]], most: int) -> Any:
    """An ONNX graph in TensorRT, through ONNX Runtime; `sizes` are those of each input for one task policy.

    TensorRT builds its kernels when a graph is opened; ONNX Runtime's own CUDA kernels run what it cannot. Raises
    UserError where TensorRT is not to be had.
    """
    import onnxruntime

    check_tensorrt()

    def shapes(count: int) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, (count, *size)))}" for name, size in sizes.items())

    about = {
        "trt_fp16_enable": precision == "fp16",
        "trt_bf16_enable": precision == "bf16",
        "trt_int8_enable": precision == "int8",
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(1),
        "trt_profile_max_shapes": shapes(most),
    }
    return onnxruntime.InferenceSession(
        data, _onnx_options(), providers=[(TENSORRT, about), "CUDAExecutionProvider", "CPUExecutionProvider"]
    )


def check_tensorrt() -> None:
    """Raises UserError where ONNX Runtime has no TensorRT."""
    import onnxruntime

    if TENSORRT not in onnxruntime.get_available_providers():
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} has no TensorRT here: on a machine with an NVIDIA GPU, "
            "pip install onnxruntime-gpu tensorrt in place of onnxruntime."
        )


def onnx_infer(session: Any) -> Infer:
    """A session's only output."""
    (output,) = session.get_outputs()
    return lambda given: np.asarray(session.run([output.name], dict(given))[0])


def _onnx_options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said in one sentence by whoever opens a graph
    return options


class OpenVinoGraph:
    """An OpenVINO graph on the processor, for any number of task policies, in pieces of these sizes.

    A graph of a fixed size is faster than one of any size, most of all a small one, and the activations of some dozens
    of policies stay closer to the processor than those of more (docs/log.md has the times). Each piece of a call is a
    request of its own, which reads the caller's arrays where they are: one call at a time, others wait. Every size
    keeps constants of its own, so that a large graph, whose products are large enough anyway, has fewer.
    """

    SIZES, SIZES_WHEN_LARGE = (32, 8, 1), (8, 1)
    LARGE = 64 * 2**20
    """Bytes of constants."""

    def __init__(self, graph: Any, precision: Precision, threads: int | None) -> None:
        import openvino

        self._graph, self._core = graph, openvino.Core()
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        constants = sum(op.data.nbytes for op in graph.get_ops() if op.get_type_name() == "Constant")
        self._sizes = self.SIZES_WHEN_LARGE if constants > self.LARGE else self.SIZES
        self._compiled: dict[int, Any] = {}
        self._requests: dict[tuple[int, int], _Request] = {}
        self._turn = threading.Lock()
        self._compile(1)  # whatever is wrong with the graph shows when it is opened

    def infer(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        count, begin, found = len(next(iter(given.values()))), 0, []
        with self._turn:
            for size in self._sizes:
                for _ in range((count - begin) // size):
                    request = self._requests.get((begin, size)) or self._request(begin, size)
                    found.append(request.infer({name: rows[begin : begin + size] for name, rows in given.items()}))
                    begin += size
        return np.concatenate(found)

    def _request(self, begin: int, size: int) -> _Request:
        if size not in self._compiled:
            self._compile(size)
        self._requests[begin, size] = _Request(self._compiled[size].create_infer_request())
        return self._requests[begin, size]

    def _compile(self, size: int) -> None:
        graph = self._graph.clone()
        graph.reshape({x.get_any_name(): [size, *list(x.get_partial_shape())[1:]] for x in graph.inputs})
        self._compiled[size] = self._core.compile_model(graph, "CPU", self._settings)


class _Request:
    """One piece of a call."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._bound: dict[str, np.ndarray] = {}

    def infer(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        import openvino

        for name, rows in given.items():
            bound = self._bound.get(name)
            # Only an array that is gone can have given its memory to another one, and those that are bound are held.
            if bound is None or bound.ctypes.data != rows.ctypes.data:
                self._request.set_tensor(name, openvino.Tensor(rows, shared_memory=True))
                self._bound[name] = rows
        self._request.infer()
        return self._request.get_output_tensor(0).data.copy()
