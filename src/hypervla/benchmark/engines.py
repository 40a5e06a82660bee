"""Every engine side by side on one machine, in turn, beside the time that the model's own matrix products take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hypervla.benchmark.floor import floor, rates
from hypervla.benchmark.timing import most_memory
from hypervla.contracts import UserError
from hypervla.data.normalize import Normalizer
from hypervla.embodiment import Embodiment
from hypervla.models.generated import initial_weight
from hypervla.models.hypervla import HyperVLA, HyperVLAConfig
from hypervla.runtime.engines import ENDINGS, Precision, Runtime, open_engine
from hypervla.runtime.export import PRECISIONS, export
from hypervla.runtime.frames import Frames
from hypervla.runtime.graph import ControlStep
from hypervla.runtime.provenance import code_commit, machine, processor
from hypervla.runtime.task_policy import Engine, TaskPolicy, TaskPolicyCard, preprocess
from hypervla.runtime.torch_engine import TorchEngine

CALIBRATION = 16
LEAST, WARM_UP = 5, 2
"""Rounds that are timed at least, and before those."""
EAGER = "PyTorch, eager"
RUNTIMES: Mapping[Runtime, str] = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Subject:
    """A HyperVLA's control step with random weights: what `export` needs of a compiler."""

    engine: TorchEngine
    embodiment: Embodiment
    normalizer: Normalizer
    digest: str = "random weights"

    @staticmethod
    def make(config: HyperVLAConfig, robot: Embodiment, device: str) -> Subject:
        torch.manual_seed(0)
        backbone = config.backbone.build(pretrained=False).to(device).eval().requires_grad_(False)
        ones, zeros = np.ones, np.zeros
        sizes = robot.action_size, robot.proprio_size
        normalizer = Normalizer(*(f(n, np.float32) for n in sizes for f in (zeros, ones)), gripper=robot.gripper)
        return Subject(TorchEngine(backbone, config, "0" * 64, device), robot, normalizer)

    def frames(self, count: int, seed: int = 0) -> Frames:
        """Noise under as many task policies with ordinary random weights."""
        random, size = np.random.default_rng(seed), self.engine.image_size
        torch.manual_seed(seed)
        specs = self.engine.layout.specs
        flat = [torch.cat([initial_weight(spec).flatten() for spec in specs]) for _ in range(count)]
        cameras, states = len(self.embodiment.cameras), self.embodiment.proprio_size
        return Frames(
            layout=self.engine.layout,
            weights=torch.stack(flat).numpy(),
            images=random.integers(0, 256, (count, cameras, size, size, 3), np.uint8),
            proprio=random.normal(size=(count, states)).astype(np.float32) if self.engine.reads_proprio else None,
            of=f"{count} images of noise",
        )


def in_turn(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, one round after another, so that whatever else the machine does strikes all alike."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < LEAST or time.perf_counter() < end:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
        rounds += 1
    return times


def run(
    models: Mapping[str, tuple[HyperVLAConfig, Embodiment]],
    *,
    batches: Sequence[int],
    seconds: float,
    threads: int,
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Every engine of every model at every batch size on the CPU, with `threads` of its threads."""
    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    found: dict[str, Any] = {
        "command": ["hypervla", *sys.argv[1:]],
        "commit": code_commit(),
        "device": processor(),
        "threads": threads,
        "machine": machine(),
        "limits": rates(cpu),
        "rows": [],
        "once": {},
    }
    for name, (config, robot) in models.items():
        say(f"{name}: writing engines")
        subject = Subject.make(config, robot, "cpu")
        with TemporaryDirectory() as folder:
            built = engines_of(subject, Path(folder), threads)
            for batch in batches:
                say(f"{name}: batch {batch}")
                found["rows"] += rows_of(name, config, subject, built, batch, seconds)
        say(f"{name}: what is done once")
        found["once"][name] = once(config, subject, seconds)
    return found


@dataclass(frozen=True)
class Built:
    """An engine, and what opening it took."""

    engine: Engine
    cold: float
    """Seconds until its first chunk."""
    memory: int
    """Bytes that a fresh process grew by until then."""
    error: float
    """Of its actions, from eager PyTorch's, as a share of their range at the 99th percentile."""


def engines_of(subject: Subject, folder: Path, threads: int) -> dict[str, Built]:
    """Eager PyTorch, and an exported engine of each runtime and precision that is installed here."""
    frames, calibration = subject.frames(4), subject.frames(CALIBRATION, seed=1)
    built = {EAGER: Built(subject.engine, 0.0, 0, 0.0)}
    for runtime, precision in installed():
        path = folder / f"{precision}{ENDINGS[runtime]}"
        # Random weights say nothing of the error in eight bits, so that it is no reason to leave the engine out.
        card = export(subject, path, runtime, precision, frames, calibration=calibration, tolerance=1.0)
        began = time.perf_counter()
        engine = open_engine(path, threads)
        engine.run(*frames.row(0))
        cold = time.perf_counter() - began
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            memory = fresh.submit(_memory, path, threads, frames.row(0)).result()
        built[f"{RUNTIMES[runtime]}, {precision}"] = Built(engine, cold, memory, card.checked["p99"])
    return built


def _memory(path: Path, threads: int, row: tuple[Any, ...]) -> int:
    """In a fresh process: what it takes to open an engine and run it."""
    import_module("onnxruntime" if path.suffix == ENDINGS["onnx"] else "openvino")
    before = most_memory()
    open_engine(path, threads).run(*row)
    return most_memory() - before


def installed() -> list[tuple[Runtime, Precision]]:
    """Runtimes and precisions that can be written and run here. Raises UserError without any."""
    from importlib.util import find_spec

    packages: dict[Runtime, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
    if find_spec("onnxscript") is None:
        raise UserError("Timing engines means writing some first: pip install 'hypervla[export]'.")
    found: list[tuple[Runtime, Precision]] = []
    for runtime, package in packages.items():
        for precision in PRECISIONS[runtime] if find_spec(package) is not None else ():
            if precision != "int8" or find_spec("nncf") is not None:
                found.append((runtime, precision))
    return found


def rows_of(
    name: str, config: HyperVLAConfig, subject: Subject, built: Mapping[str, Built], batch: int, seconds: float
) -> list[dict[str, Any]]:
    """One row for each engine, timed in turn with the floor."""
    frames = subject.frames(batch)
    step, inputs = _on_meta(config, batch)
    weights, images, proprio = frames.rows()
    given = {name: np.ascontiguousarray(rows) for name, rows in weights.items()}, images, proprio
    splits: list[float] = []

    def eager() -> None:
        prediction = subject.engine.run(*given)
        splits.append((prediction.backbone_seconds + prediction.policy_seconds) / prediction.backbone_seconds)

    calls: dict[str, Callable[[], object]] = {
        "floor": floor(step, inputs, torch.device("cpu"), torch.float32),
        EAGER: eager,
    }
    for engine, one in built.items():
        calls.setdefault(engine, lambda run=one.engine.run: run(*given))
    times = in_turn(calls, seconds)
    least = float(np.median(times.pop("floor")))
    rows = []
    for engine, taken in times.items():
        p50, p95, p99 = (float(q) for q in np.quantile(taken, (0.5, 0.95, 0.99)))
        about = {"model": name, "batch": batch, "engine": engine, "p50": p50, "p95": p95, "p99": p99}
        about |= {"steps": len(taken), "floor": least, "times_floor": p50 / least, "frames_per_second": batch / p50}
        one = built[engine]
        about |= {"cold_start": one.cold, "memory": one.memory, "error_p99": one.error}
        about["times_backbone"] = float(np.median(splits)) if engine == EAGER else None
        rows.append(about)
    return rows


def _on_meta(config: HyperVLAConfig, batch: int) -> tuple[ControlStep, tuple[Any, ...]]:
    with torch.device("meta"):
        backbone = config.backbone.build(pretrained=False).eval()
        step = ControlStep(TorchEngine(backbone, config, "0" * 64, "cpu"))
        images = torch.empty(batch, config.cameras, config.image_size, config.image_size, 3, dtype=torch.uint8)
        layout = step.policy.layout
        inputs: list[Any] = [images, layout.split(torch.empty(batch, layout.size))]
        if config.proprio_size:
            inputs.append(torch.empty(batch, config.proprio_size))
    return step, tuple(inputs)


def once(config: HyperVLAConfig, subject: Subject, seconds: float) -> dict[str, float]:
    """Medians, in seconds, of what is done once a frame or once an episode rather than by the engine."""
    model = HyperVLA(config, pretrained=False).eval()
    text = torch.randn(1, config.instruction_encoder.length, config.instruction_encoder.width)
    seen = torch.ones(text.shape[:2], dtype=torch.bool)
    frames, robot = subject.frames(1), subject.embodiment
    camera = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in robot.cameras}
    card = TaskPolicyCard("", robot, subject.normalizer, "0" * 64, subject.digest)

    @torch.inference_mode()
    def generate() -> None:
        feature = model.image_feature(torch.from_numpy(frames.images))
        shown = torch.ones(feature.shape[:2], dtype=torch.bool)
        model.hypernetwork.generate(model.hypernetwork.embed(text, seen, feature, shown))

    @torch.inference_mode()
    def read() -> None:
        ids = torch.ones(1, config.instruction_encoder.length, dtype=torch.long)
        model.instruction_encoder.model(input_ids=ids, attention_mask=ids)

    calls: dict[str, Callable[[], object]] = {
        "preprocessing": lambda: preprocess(camera, robot, subject.engine.image_size),
        "binding": lambda: TaskPolicy(frames.weights[0], card, subject.engine),
        "sentence": read,
        "weights": generate,
    }
    return {name: float(np.median(taken)) for name, taken in in_turn(calls, seconds).items()}
