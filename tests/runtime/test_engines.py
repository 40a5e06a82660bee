"""Exported engines: what eager PyTorch computes, for every task policy of the backbone, and nothing damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from packaging.requirements import Requirement
from PIL import Image
from tests import tiny
from tests.conformance.engine import check_threads
from tests.conformance.policy import check_policy

from hypervla import cli
from hypervla.contracts import TaskContext, UserError
from hypervla.models.action_head import LinearHead
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.runtime import engines, sessions
from hypervla.runtime import export as exporting
from hypervla.runtime import graph as graphs
from hypervla.runtime.compiler import Compiler, load
from hypervla.runtime.engines import ENDINGS, ExportedEngine, Precision, Runtime, open_engine
from hypervla.runtime.export import export
from hypervla.runtime.frames import random_frames
from hypervla.runtime.task_policy import Engine, TaskPolicy, stack

pytestmark = pytest.mark.traced
RUNTIMES: tuple[Runtime, ...] = ("onnx", "openvino")


@pytest.fixture(scope="module")
def exported(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Runtime, Path]:
    """One engine for each runtime."""
    folder, compiler = tmp_path_factory.mktemp("engines"), load(checkpoint_folder)
    paths = {runtime: folder / f"engine{ENDINGS[runtime]}" for runtime in RUNTIMES}
    for runtime, path in paths.items():
        export(compiler, path, runtime, "fp32", random_frames(compiler, 4))
    assert {path.name for path in folder.iterdir()} == {"engine.onnx", "engine.xml", "engine.bin"}, "no draft is left"
    return paths


@pytest.fixture(params=RUNTIMES)
def path(request: pytest.FixtureRequest, exported: dict[Runtime, Path]) -> Path:
    return exported[request.param]


@pytest.fixture
def kept(path: Path) -> Iterator[Path]:
    """The engine's file, put back afterwards as it was."""
    files = {file: file.read_bytes() for file in path.parent.iterdir()}
    yield path
    for file, data in files.items():
        file.write_bytes(data)


def policies(compiler: Compiler, count: int) -> list[TaskPolicy]:
    sentences = [tiny.INSTRUCTIONS[i % len(tiny.INSTRUCTIONS)] for i in range(count)]
    return compiler.compile_many([TaskContext(s, tiny.observation(i).images) for i, s in enumerate(sentences)])


def bound(policy: TaskPolicy, engine: ExportedEngine) -> TaskPolicy:
    """The same task policy on another engine."""
    return TaskPolicy(policy.weights, policy.card, engine)


def test_it_is_an_engine(path: Path, compiler: Compiler) -> None:
    engine = open_engine(path)
    assert isinstance(engine, Engine)
    assert engine.layout == compiler.engine.layout
    assert engine.card.checkpoint_digest == compiler.digest
    assert engine.card.checked["frames"] == 4


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_task_policies_act_as_in_eager_pytorch(path: Path, compiler: Compiler, count: int) -> None:
    eager, engine = policies(compiler, count), open_engine(path, threads=1)
    observations = [tiny.observation(100 + i) for i in range(count)]
    wanted = stack(eager).act(observations)
    found = stack([bound(policy, engine) for policy in eager]).act(observations)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)
    assert not np.allclose(found[0].actions, found[-1].actions, atol=1e-3) or count == 1


def test_policies_in_several_threads_get_their_own_actions(path: Path, compiler: Compiler) -> None:
    check_threads(policies(compiler, 2), open_engine(path, threads=1))


def test_a_compilers_policies_act_on_it_when_told_so(path: Path, compiler: Compiler, text_folder: Path, tmp_path: Path):
    before = compiler.compile("find the goal", tiny.observation().images)
    engine = open_engine(path)
    compiler.use(engine)
    policy = compiler.compile("find the goal", tiny.observation().images)
    assert policy.engine is engine
    seen = tiny.observation(9)
    np.testing.assert_allclose(policy.act(seen).actions, before.act(seen).actions, atol=1e-5)
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder), seed=1)
    with pytest.raises(UserError, match="The engine runs the backbone .*: export it again"):
        load(tmp_path).use(engine)


def test_a_fleet_in_pieces_is_what_it_is_one_by_one(exported: dict[Runtime, Path], compiler: Compiler) -> None:
    """OpenVINO runs 32, 8 and 1 at a time, and reads the weights where they are: also those that change."""
    eager, engine = policies(compiler, 43), open_engine(exported["openvino"], threads=1)
    fleet, seen = stack([bound(policy, engine) for policy in eager]), [tiny.observation(i) for i in range(43)]
    for one, other in zip(fleet.act(seen), stack(eager).act(seen), strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)
    for place in (3, 33, 42):
        fleet.replace(place, bound(eager[place - 1], engine))
    fleet.remove(0)  # the last one comes here
    fleet.add(bound(eager[7], engine))
    now = [eager[41], *eager[1:3], eager[2], *eager[4:33], eager[32], *eager[34:42], eager[7]]
    seen = [tiny.observation(100 + i) for i in range(43)]
    for one, other in zip(fleet.act(seen), stack(now).act(seen), strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)


def test_more_policies_than_the_engines_batch_are_refused(compiler: Compiler, tmp_path: Path) -> None:
    export(compiler, tmp_path / "two.onnx", "onnx", "fp32", random_frames(compiler, 2), most_policies=2)
    own = [bound(policy, open_engine(tmp_path / "two.onnx")) for policy in policies(compiler, 3)]
    assert len(stack(own[:2]).act([tiny.observation()] * 2)) == 2
    with pytest.raises(UserError, match="takes at most 2 task policies in a call, but 3 came"):
        stack(own)
    with pytest.raises(UserError, match="at least 1 task policy in a call, but 0 came"):
        export(compiler, tmp_path / "none.onnx", "onnx", "fp32", random_frames(compiler, 2), most_policies=0)


def test_a_graph_beyond_the_runtimes_operator_set_is_refused(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_whole", lambda data: True)
    if kept.suffix == ".xml":
        text = kept.read_text().replace('version="opset1"', 'version="opset99"')
        kept.write_text(text)
    else:
        model = onnx.load(kept)
        model.opset_import[0].version = 99
        onnx.save(model, kept)
    with pytest.raises(UserError, match=r"(ONNX Runtime|OpenVINO) \S+ cannot run .*: export it again") as error:
        open_engine(kept)
    assert "\n" not in str(error.value)


def test_tensorrt_has_to_be_there(
    exported: dict[Runtime, Path], compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="has no TensorRT here: on a machine with an NVIDIA GPU"):
        export(compiler, tmp_path / "a.onnx", "tensorrt", "fp16", random_frames(compiler, 2))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(exporting, "check_tensorrt", lambda: None)
    with pytest.raises(UserError, match="has no TensorRT here"):  # when it is opened, to be checked
        export(compiler, tmp_path / "a.onnx", "tensorrt", "fp16", random_frames(compiler, 2))
    assert not list(tmp_path.iterdir())


def test_tensorrt_is_told_every_inputs_sizes(
    exported: dict[Runtime, Path], compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for ONNX Runtime's interface: TensorRT itself needs a GPU."""
    import onnxruntime

    told = {}

    def session(data, options, providers):
        told.update(providers[0][1])
        return real(data, options, providers=["CPUExecutionProvider"])

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [sessions.TENSORRT])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    shapes = open_engine(exported["openvino"]).card.input_shapes()
    opened = sessions.tensorrt_session(exported["onnx"].read_bytes(), "fp16", shapes, 64)
    asked = {x.name: tuple(x.shape[1:]) for x in opened.get_inputs()}
    assert shapes == asked, "the card knows the graph's inputs"
    assert told["trt_fp16_enable"]
    assert not told["trt_int8_enable"]
    written = dict(word.split(":") for word in told["trt_profile_max_shapes"].split(","))
    assert written == {name: "x".join(map(str, (64, *size))) for name, size in asked.items()}


def test_its_policies_keep_the_contract(path: Path, compiler: Compiler) -> None:
    engine, (policy,) = open_engine(path), policies(compiler, 1)
    check_policy(lambda: bound(policy, engine), tiny.observation)


def test_another_checkpoints_policy_is_refused(path: Path, text_folder: Path, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder), seed=1)
    foreign = load(tmp_path).compile("find the goal", tiny.observation().images)
    with pytest.raises(UserError, match="belongs to the backbone"):
        bound(foreign, open_engine(path))


def test_what_was_opened_stays_what_it_is(kept: Path, compiler: Compiler) -> None:
    """Whatever becomes of its files: sizes of OpenVINO's graphs are compiled later."""
    eager, seen = policies(compiler, 9), [tiny.observation(i) for i in range(9)]
    fleet = stack([bound(policy, open_engine(kept, threads=1)) for policy in eager[:1]] * 9)
    before = fleet.act(seen)
    engine = open_engine(kept, threads=1)
    for file in kept.parent.glob(f"{kept.stem}.*"):
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size // 2))
            opened.truncate()
    for one, other in zip(stack([bound(eager[0], engine)] * 9).act(seen), before, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_a_flipped_byte_anywhere_is_refused(kept: Path) -> None:
    data = kept.read_bytes()
    for place in np.linspace(0, len(data) - 1, 40).astype(int):
        kept.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match="is damaged or no engine"):
            open_engine(kept)


def test_half_an_engine_is_refused(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    with pytest.raises(UserError, match="is damaged or no engine"):
        open_engine(kept)


def test_openvinos_constants_belong_to_their_graph(exported: dict[Runtime, Path], tmp_path: Path) -> None:
    graph = tmp_path / "engine.xml"
    graph.write_bytes(exported["openvino"].read_bytes())
    with pytest.raises(UserError, match="engine.bin is missing"):
        open_engine(graph)
    constants = bytearray(exported["openvino"].with_suffix(".bin").read_bytes())
    constants[len(constants) // 2] ^= 1
    graph.with_suffix(".bin").write_bytes(constants)
    with pytest.raises(UserError, match="engine.bin is damaged or of another engine"):
        open_engine(graph)


@pytest.mark.parametrize(("name", "match"), [("engine.trt", "is no engine"), ("gone.onnx", "There is no engine")])
def test_what_is_no_engine_is_refused(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "engine.trt").touch()
    with pytest.raises(UserError, match=match):
        open_engine(tmp_path / name)


def test_a_runtime_that_cannot_run_the_graph_says_so(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_whole", lambda data: True)
    kept.write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"(ONNX Runtime|OpenVINO) \S+ cannot run .*: export it again"):
        open_engine(kept)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("factor", "tolerance", "match"),
    [
        (1.1, None, "The engine is refused: on 4 images of noise its actions"),
        (float("nan"), 1.0, "The engine is refused: .* by nan% of their range"),
    ],
)
def test_an_engine_that_acts_otherwise_is_not_written(
    compiler: Compiler,
    tmp_path: Path,
    runtime: Runtime,
    factor: float,
    tolerance: float | None,
    match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong(graphs.ControlStep):
        def forward(self, images, weights, proprio=None):
            return factor * super().forward(images, weights, proprio)

    monkeypatch.setattr(exporting, "ControlStep", Wrong)
    out, frames = tmp_path / f"engine{ENDINGS[runtime]}", random_frames(compiler, 4)
    with pytest.raises(UserError, match=match):
        export(compiler, out, runtime, "fp32", frames, tolerance=tolerance)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_is_an_engine_is_refused(kept: Path, compiler: Compiler) -> None:
    with pytest.raises(UserError, match="is no task policy: write one with hypervla compile"):
        TaskPolicy.load(kept, compiler.engine)


def test_a_name_or_a_precision_that_does_not_fit_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    frames = random_frames(compiler, 1)
    with pytest.raises(UserError, match="a file that ends in .xml"):
        export(compiler, tmp_path / "engine.onnx", "openvino", "fp32", frames)
    with pytest.raises(UserError, match="onnx has no bf16 engines here, only fp32, int8"):
        export(compiler, tmp_path / "engine.onnx", "onnx", "bf16", frames)
    with pytest.raises(UserError, match="Eight bits need frames"):
        export(compiler, tmp_path / "engine.onnx", "onnx", "int8", frames)


@pytest.mark.parametrize(
    ("runtime", "precision"), [("onnx", "int8"), ("openvino", "int8"), ("openvino", "bf16"), ("openvino", "fp16")]
)
def test_fewer_bits_change_actions_a_little(
    compiler: Compiler, tmp_path: Path, runtime: Runtime, precision: Precision
) -> None:
    path = tmp_path / f"engine{ENDINGS[runtime]}"
    frames, others = random_frames(compiler, 8), random_frames(compiler, 8, seed=1)
    card = export(compiler, path, runtime, precision, frames, calibration=others, tolerance=0.05)
    assert 0 < card.checked["p99"] < 0.05
    assert open_engine(path).card == replace(card, constants_sha256=open_engine(path).card.constants_sha256)
    if precision == "int8" and runtime == "onnx":
        kinds = {node.op_type for node in onnx.load(path).graph.node}
        assert "QuantizeLinear" in kinds


@pytest.mark.parametrize(
    "head", [LinearHead(2, 3), DiffusionHead(horizon=2, action_size=3, steps=3, time=8, hidden=8, blocks=1)]
)
def test_every_head_is_exported(text_folder: Path, tmp_path: Path, head) -> None:
    heads = HypernetworkConfig(width=8, layers=1, heads=2, mlp=16, initialisation="variance")
    tiny.save_checkpoint(
        tmp_path / "checkpoint", replace(tiny.convolutional(text_folder, hypernetwork=heads), head=head)
    )
    compiler = load(tmp_path / "checkpoint")
    card = export(compiler, tmp_path / "engine.onnx", "onnx", "fp32", random_frames(compiler, 4))
    assert card.reads_proprio
    (policy,) = policies(compiler, 1)
    found = bound(policy, open_engine(tmp_path / "engine.onnx")).act(tiny.observation(7))
    np.testing.assert_allclose(found.actions, policy.act(tiny.observation(7)).actions, atol=1e-5)


def test_a_transformers_linear_maps_are_put_into_eight_bits(text_folder: Path, vision_folder: Path, tmp_path: Path):
    """Its class token asks how many images there are, which the graph may read off any input."""
    config = tiny.paper_shaped(text_folder, vision_folder)
    tiny.save_checkpoint(tmp_path / "checkpoint", config)
    compiler = load(tmp_path / "checkpoint")
    frames = random_frames(compiler, 4)
    export(compiler, tmp_path / "engine.onnx", "onnx", "int8", frames, calibration=frames, tolerance=1.0)
    nodes = onnx.load(tmp_path / "engine.onnx").graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) >= 4 * config.backbone.layers


def test_a_model_without_proprio_is_exported(text_folder: Path, tmp_path: Path) -> None:
    config = tiny.convolutional(text_folder)
    config = replace(config, policy=replace(config.policy, proprio_size=0))
    tiny.save_checkpoint(tmp_path / "checkpoint", config)
    compiler = load(tmp_path / "checkpoint")
    card = export(compiler, tmp_path / "engine.onnx", "onnx", "fp32", random_frames(compiler, 2))
    assert not card.reads_proprio
    assert open_engine(tmp_path / "engine.onnx").card.proprio_size == 0


def light_environment(folder: Path, extra: str) -> Path:
    """What `pip install hypervla[EXTRA]` brings and nothing else, as links to what is installed here."""
    todo, done = [("hypervla", {extra})], set()
    while todo:
        name, extras = todo.pop()
        if name in done:
            continue
        done.add(name)
        found = metadata.distribution(name)
        for word in found.requires or []:
            wanted = Requirement(word)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in (extras or {""})):
                todo.append((wanted.name, set(wanted.extras)))
        if name != "hypervla":
            for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(found.locate_file(top))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_robot_acts_without_pytorch(
    compiler: Compiler, repository: Path, tmp_path: Path, runtime: Runtime, precision: Precision
) -> None:
    (policy,), engine = policies(compiler, 1), tmp_path / f"engine{ENDINGS[runtime]}"
    frames = random_frames(compiler, 8)
    export(compiler, engine, runtime, precision, frames, calibration=frames, tolerance=0.05)
    policy.save(tmp_path / "task.safetensors")
    observation = tiny.observation(3)
    Image.fromarray(observation.images["top"]).save(tmp_path / "frame.png")
    (tmp_path / "site").mkdir()
    site = light_environment(tmp_path / "site", runtime)
    (site / "hypervla").symlink_to(repository / "src/hypervla")
    command = ["act", "--engine", str(engine), "--policy", str(tmp_path / "task.safetensors")]
    command += ["--image", str(tmp_path / "frame.png"), "--proprio", ",".join(map(str, observation.proprio))]
    program = f"""
import importlib.util, sys
assert importlib.util.find_spec("torch") is None
from hypervla import cli
cli.main({command!r})
assert not [name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "onnx")]
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    limits = np.float32(compiler.embodiment.action_high) - np.float32(compiler.embodiment.action_low)
    error = np.abs(answer["actions"] - policy.act(observation).actions) / limits
    assert error.max() < (1e-4 if precision == "fp32" else 0.1)
    assert answer["action_names"] == list(compiler.embodiment.action_names)


def test_the_command_writes_an_engine(checkpoint_folder: Path, tmp_path: Path, capsys) -> None:
    cli.main(["export", str(checkpoint_folder), "--engine", "onnx", "-o", str(tmp_path / "a.onnx")])
    assert "on 64 images of noise its actions differ from PyTorch's by" in capsys.readouterr().out
    assert open_engine(tmp_path / "a.onnx").card.precision == "fp32"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--engine", "e.onnx"], "give --policy FILE"),
        (["embedded", "--engine", "e.onnx"], "leave out one of them"),
        ([], "Say what acts"),
    ],
)
def test_what_to_act_with_has_to_be_said(words: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["act", *words])
    assert match in capsys.readouterr().err
