"""Every engine side by side on one machine, in turn, beside the time that the model's own matrix products take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hypervla.benchmark.floor import floors, held, products_of, rates
from hypervla.benchmark.in_turn import Times, in_turn
from hypervla.benchmark.subject import NO_DIGEST, Subject, step_on_meta
from hypervla.benchmark.timing import free_memory, latency, most_memory
from hypervla.contracts import UserError
from hypervla.embodiment import Embodiment
from hypervla.models.hypervla import HyperVLA, HyperVLAConfig
from hypervla.models.interface import ModelConfig
from hypervla.runtime.acceptance import compare
from hypervla.runtime.cuda_engine import CudaEngine, FastPrecision, captured
from hypervla.runtime.engines import ENDINGS, IMAGES, ExportedEngine, open_engine
from hypervla.runtime.export import PRECISIONS, export
from hypervla.runtime.frames import Frames
from hypervla.runtime.graph import ControlStep, backbone_to_onnx, quantised, to_openvino
from hypervla.runtime.provenance import code_commit, machine, processor
from hypervla.runtime.sessions import TENSORRT, Infer, OpenVinoGraph, Precision, Runtime, onnx_infer, onnx_session
from hypervla.runtime.task_policy import Engine, TaskPolicy, TaskPolicyCard, preprocess, stack

CALIBRATION = 16
PIECE = 8
"""On a CPU the floor of a larger batch is that of so many task policies, times how often they go into it."""
EAGER = "PyTorch, eager"
RUNTIMES: Mapping[Runtime, str] = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
FAST: Mapping[FastPrecision, str] = {p: f"CUDA graph, {p}" for p in ("bf16", "fp16", "fp8")}


def run(
    models: Mapping[str, tuple[HyperVLAConfig, Embodiment]],
    *,
    device: str = "cpu",
    batches: Sequence[int],
    seconds: float,
    threads: int,
    beside: Mapping[str, ModelConfig] | None = None,
    say: Callable[[str], None] = lambda words: None,
    keep: Callable[[Mapping[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Every engine of every model at every batch size on one device, with `threads` of the processor's; and one step of
    the models `beside`, in bfloat16. `keep` is given what was found as it grows. Raises UserError where there is no
    engine."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    found: dict[str, Any] = {
        "command": ["hypervla", *sys.argv[1:]],
        "commit": code_commit(),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else processor(),
        "kind": place.type,
        "threads": threads,
        "machine": machine(),
        "limits": rates(place),
        "rows": [],
        "once": {},
        "beside": {},
    }
    for name, (config, robot) in models.items():
        say(f"{name}: making engines")
        subject = Subject.make(config, robot, device)
        with TemporaryDirectory() as folder:
            built = engines_of(subject, Path(folder), threads, max(batches))
            for batch in batches:
                say(f"{name}: batch {batch}")
                found["rows"] += rows_of(name, config, subject, built, batch, seconds, threads)
                keep(found)
            say(f"{name}: what is done once")
            found["once"][name] = once(config, subject, list(built.values())[-1].open().engine, seconds)
    for name, other in (beside or {}).items():
        say(f"{name}, for comparison")
        try:
            found["beside"][name] = latency(other, device, "bfloat16", seconds).to_json()
        except UserError as reason:
            found["beside"][name] = {"skipped": str(reason)}
    keep(found)
    return found


@dataclass(frozen=True)
class Opened:
    """An engine that is ready."""

    engine: Engine
    alone: Callable[[np.ndarray], object] | None
    """What the task policies share, on images."""


@dataclass(frozen=True)
class Built:
    """An engine that can be opened, and what that takes."""

    open: Callable[[], Opened]
    cold: float = 0.0
    """Seconds until its first chunk."""
    memory: int = 0
    """Bytes that a fresh process grew by until then, or that were taken from the GPU."""
    error: float = 0.0
    """Of its actions, from eager PyTorch's, as a share of their range at the 99th percentile."""


def engines_of(subject: Subject, folder: Path, threads: int, most: int) -> dict[str, Built]:
    """Eager PyTorch, and every engine that can be made and run here. Raises UserError where there is none."""
    eager = subject.engine

    @torch.inference_mode()
    def alone(images: np.ndarray) -> torch.Tensor:
        return eager.backbone(torch.from_numpy(images).to(eager.device).flatten(0, 1))[0].mean(1).cpu()

    built = {EAGER: Built(lambda: Opened(eager, alone))}
    if eager.device.type == "cuda":
        built |= fast_engines(subject, most)
    step = ControlStep(eager)
    for runtime, precision in installed(eager.device):
        built[f"{RUNTIMES[runtime]}, {precision}"] = exported(subject, step, folder, runtime, precision, threads, most)
    if len(built) == 1:
        raise UserError("Timing engines means writing some first: pip install 'hypervla[export]'.")
    return built


def fast_engines(subject: Subject, most: int) -> dict[str, Built]:
    """The CUDA engine in each precision that the backbone and the GPU can have."""
    frames, built = subject.frames(4), {}
    for precision, name in FAST.items():
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        try:
            engine = CudaEngine(subject.engine, precision, most, traced=True)
        except UserError:
            continue
        engine.run(*frames.row(0, engine.form))
        cold, memory = time.perf_counter() - began, torch.cuda.memory_allocated() - before
        error = compare(engine, subject, frames)["p99"]
        opened = Opened(engine, _shared_on_gpu(engine))
        built[name] = Built(lambda opened=opened: opened, cold, memory, error)
    return built


def _shared_on_gpu(engine: CudaEngine) -> Callable[[np.ndarray], object]:
    """The backbone as a CUDA graph of its own, on images that lie on the GPU."""
    graphs: dict[tuple[int, ...], Callable[[], object]] = {}

    @torch.inference_mode()
    def alone(images: np.ndarray) -> None:
        if images.shape not in graphs:
            placed = torch.from_numpy(images).to(engine.device)
            graphs[images.shape] = captured(lambda: engine.whole.tokens(placed), engine.device)
        graphs[images.shape]()

    return alone


def exported(
    subject: Subject, step: ControlStep, folder: Path, runtime: Runtime, precision: Precision, threads: int, most: int
) -> Built:
    """An engine that was written and opened again."""
    frames, calibration = subject.frames(4), subject.frames(CALIBRATION, seed=1)
    path = folder / f"{precision}{ENDINGS[runtime]}"
    # Random weights say nothing of the error in eight bits, so that it is no reason to leave the engine out.
    given: dict[str, Any] = {"calibration": calibration, "tolerance": 1.0, "most_policies": max(most, 2)}
    card = export(subject, path, runtime, precision, frames, **given)
    began = time.perf_counter()
    engine = open_engine(path, threads)
    engine.run(*frames.row(0, engine.form))
    cold = time.perf_counter() - began
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        memory = fresh.submit(_memory, path, threads, frames).result()
    shared = None if runtime == "tensorrt" else write_shared(step, engine, calibration, folder)

    def opened() -> Opened:
        return Opened(open_engine(path, threads), None if shared is None else open_shared(shared, precision, threads))

    return Built(opened, cold, memory, card.checked["p99"])


def write_shared(step: ControlStep, engine: ExportedEngine, calibration: Frames, folder: Path) -> Path:
    """The backbone alone as a graph of the same kind as the engine's."""
    card, graph = engine.card, backbone_to_onnx(step, engine.card)
    path = folder / f"{card.precision}-shared{ENDINGS[card.runtime]}"
    if card.runtime == "openvino":
        graph = to_openvino(graph)
    if card.precision == "int8":
        graph = quantised(graph, calibration, engine.form)
    if card.runtime == "openvino":
        import_module("openvino").save_model(graph, path, compress_to_fp16=card.precision == "fp16")
    else:
        path.write_bytes(graph.SerializeToString())
    return path


def open_shared(path: Path, precision: Precision, threads: int) -> Callable[[np.ndarray], object]:
    """On images."""
    if path.suffix == ENDINGS["openvino"]:
        graph = import_module("openvino").Core().read_model(path)
        infer: Infer = OpenVinoGraph(graph, precision, threads).infer
    else:
        infer = onnx_infer(onnx_session(path.read_bytes(), threads))
    return lambda images: infer({IMAGES: images})


def _memory(path: Path, threads: int, frames: Frames) -> int:
    """In a fresh process: what it takes to open an engine and run it."""
    import_module("openvino" if path.suffix == ENDINGS["openvino"] else "onnxruntime")
    before = most_memory()
    engine = open_engine(path, threads)
    engine.run(*frames.row(0, engine.form))
    return most_memory() - before


def installed(device: torch.device) -> list[tuple[Runtime, Precision]]:
    """Runtimes and precisions that can be written here and run on the device."""
    if find_spec("onnxscript") is None:
        return []
    here: dict[Runtime, bool] = {
        "onnx": device.type == "cpu" and find_spec("onnxruntime") is not None,
        "openvino": device.type == "cpu" and find_spec("openvino") is not None,
        "tensorrt": device.type == "cuda" and _has_tensorrt(),
    }
    return [
        (runtime, precision)
        for runtime in here
        for precision in (PRECISIONS[runtime] if here[runtime] else ())
        if precision != "int8" or find_spec("nncf") is not None
    ]


def _has_tensorrt() -> bool:
    return find_spec("onnxruntime") is not None and TENSORRT in import_module("onnxruntime").get_available_providers()


def rows_of(
    name: str,
    config: HyperVLAConfig,
    subject: Subject,
    built: Mapping[str, Built],
    batch: int,
    seconds: float,
    threads: int,
) -> list[dict[str, Any]]:
    """One row for each engine, timed in turn with the floor and with what its task policies share.

    Where memory does not hold all engines at once, each takes turns with the floor of the fastest library alone.
    """
    device, rows = subject.engine.device, []
    pieces = batch // PIECE if device.type == "cpu" and batch % PIECE == 0 else 1
    counts = products_of(*step_on_meta(config, batch // pieces))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    least = floors(counts, device, dtype, threads)
    free = free_memory(device)
    groups = [list(built)]
    if free is not None and pieces * held(counts) * 2 * len(built) > free / 2:
        tried = in_turn(least, 0.0)
        fastest = min(least, key=lambda library: tried[library].p50)
        least, groups = {fastest: least[fastest]}, [[engine] for engine in built]
    for group in groups:
        opened = {engine: built[engine].open() for engine in group}
        times = timed(opened, least, subject.frames(batch), seconds)
        floor = {library: pieces * times[f"floor {library}"].p50 for library in least}
        for engine in group:
            one, alone = built[engine], times.get(f"alone {engine}")
            taken = times[engine]
            rows.append(
                {"model": name, "batch": batch, "engine": engine, **vars(taken)}
                | {"frames_per_second": batch / taken.p50}
                | {"floors": floor, "times_floor": taken.p50 / min(floor.values())}
                | {"backbone": alone and alone.p50, "times_backbone": alone and taken.p50 / alone.p50}
                | {"cold_start": one.cold, "memory": one.memory, "error_p99": one.error}
            )
    return rows


def timed(
    opened: Mapping[str, Opened], floor: Mapping[str, Callable[[], object]], frames: Frames, seconds: float
) -> dict[str, Times]:
    """Engines by name, what they share as "alone …" and the floors as "floor …", all in turn."""
    calls: dict[str, Callable[[], object]] = {f"floor {library}": call for library, call in floor.items()}
    for engine, one in opened.items():
        given = frames.rows(one.engine.form)
        calls[engine] = lambda run=one.engine.run, given=given: run(*given)
        if one.alone is not None:
            calls[f"alone {engine}"] = lambda alone=one.alone: alone(frames.images)
    return in_turn(calls, seconds)


def once(config: HyperVLAConfig, subject: Subject, engine: Engine, seconds: float) -> dict[str, float]:
    """Medians, in seconds, of what is done once a frame or once an episode rather than by the engine."""
    device = subject.engine.device
    model = HyperVLA(config, pretrained=False).eval().to(device)
    text = torch.randn(1, config.instruction_encoder.length, config.instruction_encoder.width, device=device)
    seen = torch.ones(text.shape[:2], dtype=torch.bool, device=device)
    frames, robot = subject.frames(1), subject.embodiment
    camera = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in robot.cameras}
    card = TaskPolicyCard("", robot, subject.normalizer, NO_DIGEST, subject.digest)

    @torch.inference_mode()
    def generate() -> None:
        feature = model.image_feature(torch.from_numpy(frames.images).to(device))
        shown = torch.ones(feature.shape[:2], dtype=torch.bool, device=device)
        model.hypernetwork.generate(model.hypernetwork.embed(text, seen, feature, shown)).cpu()

    @torch.inference_mode()
    def read() -> None:
        ids = torch.ones(1, config.instruction_encoder.length, dtype=torch.long, device=device)
        model.instruction_encoder.model(input_ids=ids, attention_mask=ids)[0].cpu()

    calls: dict[str, Callable[[], object]] = {
        "preprocessing": lambda: preprocess(camera, robot, subject.engine.image_size),
        "binding": lambda: stack([TaskPolicy(frames.weights[0], card, engine)]),
        "sentence": read,
        "weights": generate,
    }
    return {name: taken.p50 for name, taken in in_turn(calls, seconds).items()}
