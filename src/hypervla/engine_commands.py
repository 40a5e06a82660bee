"""`hypervla export`, `hypervla act` on a robot, `hypervla serve`: engines written, run on one image, and asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

from hypervla.contracts import UserError
from hypervla.options import Device, Out
from hypervla.runtime.engines import Precision, Runtime

FRAMES, CALIBRATION = 64, 300
"""Observations that an engine is checked on, and others that eight bits are calibrated with."""


def export(
    checkpoint: Positional[str],
    /,
    *,
    engine: Runtime,
    out: Out,
    precision: Precision = "fp32",
    data: str | None = None,
    tolerance: float | None = None,
    batch: int | None = None,
    robot: str | None = None,
    device: Device = "cpu",
) -> None:
    """Write a checkpoint's control step as a graph that runs without PyTorch, for every task policy of its backbone.

    Example: hypervla export embedded --engine onnx --data data/mt10 -o metaworld.onnx

    Args:
        checkpoint: Folder of a checkpoint, or the name of a shipped one.
        engine: What will run it.
        out: File to write; with OpenVINO its constants are written beside it.
        precision: What the engine computes in.
        data: A dataset whose frames the engine is checked on beside PyTorch, and int8 calibrated with; noise is used to
            check without one.
        tolerance: Largest difference of an action, as a share of its range at the 99th percentile; 1e-4 for fp32 and
            1e-2 for the others when not given.
        batch: Most task policies in one call; 4,096 when not given, with TensorRT 64.
        robot: Which of the robots the checkpoint was trained on, when there are several.
    """
    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.data.opening import open_dataset
    from hypervla.runtime.compiler import load_compiler
    from hypervla.runtime.export import MOST_ON_TENSORRT, MOST_POLICIES
    from hypervla.runtime.export import export as write
    from hypervla.runtime.frames import random_frames, recorded_frames

    most = batch if batch is not None else MOST_ON_TENSORRT if engine == "tensorrt" else MOST_POLICIES
    compiler = load_compiler(find_checkpoint(checkpoint), check_device(device), robot)
    calibration = None
    if data is None:
        frames = random_frames(compiler, FRAMES)
    else:
        reader = open_dataset(data)
        frames = recorded_frames(compiler, reader, FRAMES, seed=1)
        if precision == "int8":
            calibration = recorded_frames(compiler, reader, CALIBRATION)
    card = write(
        compiler, out, engine, precision, frames, calibration=calibration, tolerance=tolerance, most_policies=most
    )
    found = card.checked
    print(
        f"Wrote {out}: on {found['of']} its actions differ from PyTorch's by {found['p99']:.1e} of their range at the "
        f"99th percentile, {found['max']:.1e} at most."
    )


def act_once(engine: Path, policy: Path | None, images: Sequence[str], proprio: str | None) -> None:
    """Print the chunk for one observation as JSON. Nothing of it needs PyTorch."""
    import numpy as np

    from hypervla.arguments import read_images
    from hypervla.contracts import Observation
    from hypervla.runtime.engines import open_engine
    from hypervla.runtime.task_policy import TaskPolicy

    if policy is None:
        raise UserError("An engine needs the weights of a task: give --policy FILE, which hypervla compile writes.")
    loaded = TaskPolicy.load(policy, open_engine(engine))
    seen = read_images(images, loaded.embodiment)
    try:
        state = None if proprio is None else np.array([float(word) for word in proprio.split(",")], np.float32)
    except ValueError:
        raise UserError(f"--proprio wants numbers with commas between, but '{proprio}' came.") from None
    chunk = loaded.act(Observation(seen, state))
    answer = {
        "instruction": loaded.instruction,
        "action_names": list(loaded.embodiment.action_names),
        "actions": chunk.actions.tolist(),
    }
    print(json.dumps(answer))


def serve(
    checkpoint: Positional[str],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    engine: str | None = None,
    robot: str | None = None,
    device: Device = "cpu",
) -> None:
    """Answer robots and simulators over openpi's websocket protocol: each connection, and each new instruction, has a
    task policy of its own.

    Example: hypervla serve embedded --port 8000

    Args:
        checkpoint: Folder of a checkpoint, or the name of a shipped one.
        host: Address to listen on; 0.0.0.0 is every network this machine is in, without any check of who asks.
        port: 0 takes any that is free.
        engine: What the policies act on in place of eager PyTorch: an exported engine's file, or cuda:fp16.
        robot: Which of the robots the checkpoint was trained on, when there are several.
    """
    import asyncio

    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.runtime.client import Served
    from hypervla.runtime.opening import describe, load_on
    from hypervla.serving.server import PolicyServer

    compiler = load_on(find_checkpoint(checkpoint), check_device(device), robot, engine)
    server = PolicyServer(compiler, host, port, Served(checkpoint, device, engine and describe(engine)))
    about = f"{checkpoint} for {compiler.embodiment.name}"
    try:
        asyncio.run(server.run(lambda: print(f"Serving {about} at ws://{host}:{server.port}", flush=True)))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped serving.") from None
