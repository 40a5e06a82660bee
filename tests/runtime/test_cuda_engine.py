"""The fast path, here without a GPU: the same buffers and buckets, but no graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.conformance.engine import check_threads
from torch import nn

from hypervla import cli
from hypervla.contracts import TaskContext, UserError
from hypervla.data.augment import resize
from hypervla.runtime import cuda_engine
from hypervla.runtime.acceptance import accept, compare
from hypervla.runtime.compiler import Compiler, load
from hypervla.runtime.cuda_engine import CudaEngine, FastPrecision, bucket, check_precision, fast_engine
from hypervla.runtime.float8 import Float8Linear, put_into_float8
from hypervla.runtime.frames import random_frames
from hypervla.runtime.resizing import Resize
from hypervla.runtime.task_policy import Engine, TaskPolicy, stack

CPU = torch.device("cpu")


@pytest.fixture
def fast(compiler: Compiler) -> CudaEngine:
    return CudaEngine(compiler.engine, "fp32", most_policies=8)


def policies(compiler: Compiler, count: int) -> list[TaskPolicy]:
    sentences = [tiny.INSTRUCTIONS[i % len(tiny.INSTRUCTIONS)] for i in range(count)]
    return compiler.compile_many([TaskContext(s, tiny.observation(i).images) for i, s in enumerate(sentences)])


def on(engine: Engine, policy: TaskPolicy) -> TaskPolicy:
    return TaskPolicy(policy.weights, policy.card, engine)


def test_it_is_an_engine(fast: CudaEngine) -> None:
    assert isinstance(fast, Engine)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_it_acts_as_eager_pytorch_does(fast: CudaEngine, compiler: Compiler, count: int) -> None:
    eager, seen = policies(compiler, count), [tiny.observation(50 + i) for i in range(count)]
    found = stack([on(fast, policy) for policy in eager]).act(seen)
    for one, other in zip(found, stack(eager).act(seen), strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)


def test_policies_in_several_threads_get_their_own_actions(fast: CudaEngine, compiler: Compiler) -> None:
    check_threads(policies(compiler, 2), fast)


def test_views_are_resized_as_on_the_host(text_folder: Path, tmp_path: Path) -> None:
    config = tiny.convolutional(text_folder)
    tiny.save_checkpoint(tmp_path, replace(config, backbone=replace(config.backbone, image_size=16)))
    compiler = load(tmp_path)
    assert isinstance(compiler, Compiler)
    (policy,) = policies(compiler, 1)
    fast = CudaEngine(compiler.engine, "fp32")
    found = on(fast, policy).act(tiny.observation(5))
    np.testing.assert_allclose(found.actions, policy.act(tiny.observation(5)).actions, atol=2e-3)
    assert list(fast._buckets) == [(1, 1, 24, 24, 3)], "the view of 24 pixels, not the network's 16"


@pytest.mark.parametrize(("height", "width", "size"), [(480, 640, 224), (24, 32, 16), (20, 20, 33), (7, 9, 9)])
def test_pixels_are_those_of_the_host(height: int, width: int, size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1, height, width, 3), np.uint8)
    images[1] = 255 * (np.indices((height, width)).sum(0) // 3 % 2)[None, :, :, None]  # hard edges
    found = Resize(height, width, size)(torch.from_numpy(images)).numpy()
    wanted = np.stack([resize(image[0], size) for image in images])
    difference = np.abs(found[:, 0].astype(int) - wanted)
    assert difference.max() <= 1, "rounded to the other side of a half"
    assert (difference > 0).mean() < 3e-3


def test_the_next_power_of_two_is_the_bucket() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 64, 65)] == [1, 2, 4, 4, 8, 8, 16, 64, 128]


def test_a_bucket_is_made_once(fast: CudaEngine, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(cuda_engine, "captured", lambda call, device: made.append(1) or call)
    fleet = stack([on(fast, policy) for policy in policies(compiler, 3)])
    for i in range(3):
        fleet.act([tiny.observation(i)] * len(fleet))
    fleet.add(on(fast, policies(compiler, 1)[0]))
    fleet.replace(0, on(fast, policies(compiler, 2)[1]))
    fleet.act([tiny.observation(0)] * 4)
    assert made == [1]


def test_only_policies_that_changed_are_copied_to_the_device(fast: CudaEngine, compiler: Compiler) -> None:
    own = [on(fast, policy) for policy in policies(compiler, 5)]
    fleet, seen = stack(own[:4]), [tiny.observation(i) for i in range(4)]
    fleet.act(seen)
    (buffers,) = fast._buckets.values()
    before = {name: rows.clone() for name, rows in buffers._weights.items()}
    with torch.inference_mode():
        for rows in buffers._weights.values():
            rows[0] = 7.0  # a row that does not change is not looked at
    fleet.replace(2, own[4])
    chunk = fleet.act(seen)[2]
    assert all((rows[0] == 7.0).all() for rows in buffers._weights.values())
    assert any(not torch.equal(rows[2], before[name][2]) for name, rows in buffers._weights.items())
    assert all(torch.equal(rows[[1, 3]], before[name][[1, 3]]) for name, rows in buffers._weights.items())
    np.testing.assert_allclose(chunk.actions, own[4].act(seen[2]).actions, atol=1e-5)


def test_two_fleets_share_a_bucket(fast: CudaEngine, compiler: Compiler) -> None:
    own, seen = [on(fast, policy) for policy in policies(compiler, 4)], [tiny.observation(i) for i in range(2)]
    one, other = stack(own[:2]), stack(own[2:])
    wanted = [fleet.act(seen) for fleet in (one, other)]
    for _ in range(2):
        for fleet, chunks in zip((one, other), wanted, strict=True):
            for found, before in zip(fleet.act(seen), chunks, strict=True):
                np.testing.assert_array_equal(found.actions, before.actions)
    assert not np.allclose(wanted[0][0].actions, wanted[1][0].actions, atol=1e-3)


def test_more_policies_than_the_batch_are_refused(fast: CudaEngine, compiler: Compiler) -> None:
    own = [on(fast, policy) for policy in policies(compiler, 9)]
    with pytest.raises(UserError, match="takes at most 8 task policies in a call, but 9 came"):
        stack(own)
    fleet = stack(own[:8])
    with pytest.raises(UserError, match="takes at most 8 task policies in a call, but 9 came"):
        fleet.add(own[8])
    assert len(fleet) == 8
    assert len(fleet.act([tiny.observation()] * 8)) == 8


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_fewer_bits_change_actions_a_little(compiler: Compiler, precision: FastPrecision, most: float) -> None:
    engine = CudaEngine(compiler.engine, precision)
    assert compare(engine, compiler, random_frames(compiler, 8))["p99"] < most
    assert next(compiler.engine.backbone.parameters()).dtype == torch.float32, "the reference stays as it is"


def test_what_acts_otherwise_is_refused(compiler: Compiler) -> None:
    engine = CudaEngine(compiler.engine, "fp32")
    with torch.no_grad():
        next(engine.whole.backbone.parameters()).mul_(1.5)
    with pytest.raises(UserError, match="The engine is refused: on 4 images of noise its actions differ"):
        accept(engine, compiler, random_frames(compiler, 4), "fp32")


def test_the_fast_path_wants_a_gpu(compiler: Compiler) -> None:
    with pytest.raises(UserError, match="runs on an NVIDIA GPU: say --device cuda"):
        fast_engine(compiler, "fp16", random_frames(compiler, 2))


@pytest.mark.parametrize(
    ("engine", "match"),
    [("cuda:fp16", "runs on an NVIDIA GPU"), ("cuda:int8", "computes in fp32, bf16, fp16, fp8, but 'int8' came")],
)
def test_the_command_says_so(engine: str, match: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "embedded", "--suite", "metaworld-mt10", "--trials", "1", "--engine", engine]
    command += ["-o", str(tmp_path)]
    with pytest.raises(SystemExit):
        cli.main(command)
    said = capsys.readouterr().err
    assert match in " ".join(said.split())
    assert "Traceback" not in said


def test_a_gpu_without_fp8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(UserError, match="NVIDIA A100 has no products in fp8"):
        check_precision("fp8", torch.device("cuda"))
    assert check_precision("fp8", CPU) == "fp8"


# Eight-bit floating point


def test_nothing_to_put_into_eight_bits_is_refused(compiler: Compiler) -> None:
    with pytest.raises(UserError, match="no linear maps that could be computed in fp8"):
        CudaEngine(compiler.engine, "fp8")


@torch.inference_mode()
def test_a_linear_map_in_eight_bits_is_close() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32), torch.randn(3, 5, 64) * torch.logspace(-3, 3, 5)[:, None]
    wanted = linear(x) - linear.bias
    for module, given in ((Float8Linear(linear), x), (Float8Linear(linear).to(torch.bfloat16), x.bfloat16())):
        found = module(given)
        assert found.dtype == given.dtype
        error = (found.float() - linear.bias - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        # Three bits of mantissa are 1/16 at most for each factor; over 64 summands that averages out. A small row is
        # lost in the rounding of a bias that is added in bfloat16.
        assert error[:, 2:].max() < 0.06


def test_maps_of_other_sizes_keep_their_bits() -> None:
    module = nn.Sequential(nn.Linear(32, 48), nn.Sequential(nn.Linear(48, 16), nn.Linear(16, 7)), nn.Linear(20, 16))
    assert put_into_float8(module) == 2
    kinds = [type(part).__name__ for part in module.modules() if not isinstance(part, nn.Sequential)]
    assert kinds == ["Float8Linear", "Float8Linear", "Linear", "Linear"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("count", [1, 3, 8])
def test_on_a_gpu(checkpoint_folder, count: int) -> None:
    compiler = load(checkpoint_folder, "cuda")
    assert isinstance(compiler, Compiler)
    eager, engine = policies(compiler, count), CudaEngine(compiler.engine, "fp32", traced=True)
    fleet = stack([on(engine, policy) for policy in eager])
    for i in range(3):
        seen = [tiny.observation(10 * i + j) for j in range(count)]
        for one, other in zip(fleet.act(seen), stack(eager).act(seen), strict=True):
            np.testing.assert_allclose(one.actions, other.actions, atol=1e-4)
