"""Weights → actions: a task policy acts by itself, and only as it was compiled."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests import tiny
from tests.fakes import POINT

from hypervla import checkpoint
from hypervla.contracts import Observation, UserError
from hypervla.data.normalize import Robot
from hypervla.runtime.compiler import Compiler, load
from hypervla.runtime.task_policy import (
    Engine,
    Prediction,
    TaskPolicy,
    from_bytes,
    preprocess,
    stack,
    to_bytes,
)
from hypervla.runtime.torch_engine import TorchEngine

SENTENCE = "find the goal"


@pytest.fixture
def policy(compiler: Compiler) -> TaskPolicy:
    return compiler.compile(SENTENCE, tiny.observation().images)


@pytest.fixture
def saved(policy: TaskPolicy, tmp_path: Path) -> Path:
    policy.save(tmp_path / "task.policy.safetensors")
    return tmp_path / "task.policy.safetensors"


def actions(policy: TaskPolicy, seed: int = 1) -> np.ndarray:
    return policy.act(tiny.observation(seed)).actions


# Acting


def test_acting_is_the_models_own_forward_pass(compiler: Compiler, policy: TaskPolicy) -> None:
    model, seen = compiler.model, tiny.observation(1)
    images = torch.from_numpy(preprocess(seen.images, POINT, 24))[None]
    first = torch.from_numpy(preprocess(tiny.observation().images, POINT, 24))[None]
    proprio = torch.from_numpy(tiny.NORMALIZER.forward_proprio(seen.proprio))[None, None]
    weights = model.policy.layout.split(model.generate([SENTENCE], first))
    normalised = model.policy.act(weights, model.tokens(images[None]), proprio)[0, 0].numpy()
    wanted = np.clip(tiny.NORMALIZER.inverse_actions(normalised), POINT.action_low, POINT.action_high)
    np.testing.assert_allclose(actions(policy), wanted, rtol=1e-5, atol=1e-6)


def test_a_chunk_is_in_the_robots_units_and_limits(policy: TaskPolicy) -> None:
    for seed in range(5):
        chunk = actions(policy, seed)
        assert chunk.shape == (2, 3)
        assert chunk.dtype == np.float32
        assert ((np.float32(POINT.action_low) <= chunk) & (chunk <= np.float32(POINT.action_high))).all()
        assert set(chunk[:, 2].tolist()) <= {POINT.gripper.open, POINT.gripper.closed}


def test_image_and_proprio_both_move_the_actions(policy: TaskPolicy) -> None:
    seen = tiny.observation(1)
    blind, numb = replace(seen, images=tiny.observation(2).images), replace(seen, proprio=seen.proprio + 1)
    assert not np.allclose(policy.act(blind).actions, actions(policy))
    assert not np.allclose(policy.act(numb).actions, actions(policy))
    assert np.array_equal(actions(policy), actions(policy))


def test_the_large_networks_are_not_touched_while_acting(compiler: Compiler, policy: TaskPolicy) -> None:
    before, model = actions(policy), compiler.model

    def refuse(*_: object) -> None:
        raise AssertionError("a large network was used while acting")

    for network in (model.hypernetwork, model.instruction_encoder):
        for module in network.modules():
            module.forward = refuse
    with pytest.raises(AssertionError, match="a large network"):
        compiler.compile(SENTENCE, tiny.observation(99).images)
    assert np.array_equal(actions(policy), before)
    del model.hypernetwork, model.instruction_encoder, model.context_backbone
    assert np.array_equal(actions(policy), before)


def test_a_frozen_copy_is_not_touched_either(text_folder: Path, vision_folder: Path, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, tiny.paper_shaped(text_folder, vision_folder))
    compiler = load(tmp_path)
    policy = compiler.compile(SENTENCE, tiny.observation().images)
    before = actions(policy)
    large = weakref.ref(compiler.model.context_backbone)
    del compiler
    gc.collect()
    assert large() is None
    assert np.array_equal(actions(policy), before)


def test_dropping_the_compiler_frees_the_large_networks(checkpoint_folder: Path) -> None:
    compiler = load(checkpoint_folder)
    policy, model = compiler.compile(SENTENCE, tiny.observation().images), compiler.model
    before = actions(policy)
    large = [weakref.ref(network) for network in (model, model.hypernetwork, model.instruction_encoder)]
    del model, compiler
    gc.collect()
    assert [network() for network in large] == [None, None, None]
    assert np.array_equal(actions(policy), before)


def test_the_three_stages_of_an_act_are_timed(policy: TaskPolicy) -> None:
    assert policy.last_timing.total == 0
    actions(policy)
    timing = policy.last_timing
    assert min(timing.preprocessing, timing.backbone, timing.policy) > 0
    assert timing.total == timing.preprocessing + timing.backbone + timing.policy


# Many at once


def test_many_tasks_at_once_equal_one_by_one(compiler: Compiler) -> None:
    policies = [compiler.compile(s, tiny.observation(i).images) for i, s in enumerate(tiny.INSTRUCTIONS)]
    seen = [tiny.observation(10 + i) for i in range(len(policies))]
    together = stack(policies).act(seen)
    for policy, observation, chunk in zip(policies, seen, together, strict=True):
        np.testing.assert_allclose(chunk.actions, policy.act(observation).actions, rtol=1e-5, atol=1e-6)
    assert len({chunk.actions.tobytes() for chunk in together}) == len(policies)


def test_stacking_asks_for_one_observation_each(policy: TaskPolicy) -> None:
    with pytest.raises(UserError, match="2 stacked policies need as many observations, not 1"):
        stack([policy, policy]).act([tiny.observation()])
    with pytest.raises(UserError, match="at least one task policy"):
        stack([])


def test_policies_of_different_backbones_are_not_stacked(policy: TaskPolicy, text_folder: Path, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder), seed=1)
    other = load(tmp_path).compile(SENTENCE, tiny.observation().images)
    with pytest.raises(UserError, match="Only task policies of one backbone can be stacked"):
        stack([policy, other])


def test_a_fleet_may_change_while_it_runs(compiler: Compiler) -> None:
    policies = [compiler.compile(s, tiny.observation(i).images) for i, s in enumerate(tiny.INSTRUCTIONS * 2)]
    fleet, inside = stack(policies[:1]), policies[:1]
    assert [fleet.add(policy) for policy in policies[1:5]] == [1, 2, 3, 4]
    inside += policies[1:5]
    fleet.replace(2, policies[5])
    inside[2] = policies[5]
    fleet.remove(1)
    inside[1] = inside.pop()
    fleet.remove(3)
    inside.pop()
    assert len(fleet) == len(inside) == 3
    seen = [tiny.observation(10 + i) for i in range(3)]
    for policy, observation, chunk in zip(inside, seen, fleet.act(seen), strict=True):
        np.testing.assert_allclose(chunk.actions, policy.act(observation).actions, rtol=1e-5, atol=1e-6)


def test_a_change_that_a_fleet_cannot_make_is_refused(policy: TaskPolicy, text_folder: Path, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder), seed=1)
    foreign, fleet = load(tmp_path).compile(SENTENCE, tiny.observation().images), stack([policy])
    for change in (lambda: fleet.add(foreign), lambda: fleet.replace(0, foreign)):
        with pytest.raises(UserError, match="Only task policies of one backbone"):
            change()
    for place in (-1, 1):
        with pytest.raises(UserError, match=f"There is no place {place} among 1 stacked policies"):
            fleet.replace(place, policy)
    with pytest.raises(UserError, match="at least one task policy"):
        fleet.remove(0)
    assert len(fleet) == 1


# The file


def test_a_policy_read_from_its_file_acts_as_before(policy: TaskPolicy, saved: Path, checkpoint_folder: Path) -> None:
    """On the engine of the checkpoint alone, which never loads the hypernetwork."""
    loaded = TaskPolicy.load(saved, TorchEngine.load(checkpoint_folder))
    assert loaded.card.to_json() == policy.card.to_json()
    assert (loaded.instruction, loaded.embodiment) == (SENTENCE, POINT)
    assert np.array_equal(loaded.weights, policy.weights)
    assert np.array_equal(actions(loaded), actions(policy))


def test_the_file_is_plain_safetensors_with_the_weights_by_name(policy: TaskPolicy, saved: Path) -> None:
    tensors = load_file(saved)
    wanted = policy.layout.split(policy.weights)
    assert tensors.keys() == wanted.keys()
    assert all(np.array_equal(tensors[name], value) for name, value in wanted.items())


def test_the_same_policy_is_the_same_file(policy: TaskPolicy, saved: Path) -> None:
    for _ in range(5):
        assert to_bytes(policy.weights, policy.layout, policy.card) == saved.read_bytes()


@pytest.mark.parametrize("instruction", ["поставь ложку", 'say "hi" \\ there', f'"sha256": "{"0" * 64}"'])
def test_any_instruction_survives_the_file(policy: TaskPolicy, instruction: str) -> None:
    card = replace(policy.card, instruction=instruction)
    weights, layout, read = from_bytes(to_bytes(policy.weights, policy.layout, card), Path("task"))
    assert read.to_json() == card.to_json()
    assert layout == policy.layout
    assert np.array_equal(weights, policy.weights)


def test_a_flipped_byte_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    signature = whole.index(b"sha256") - 4
    everywhere = [
        *range(16),
        *range(signature, signature + 90, 3),
        *range(16, header, header // 120),
        *range(header, len(whole), (len(whole) - header) // 120),
        header - 1,
        header,
        len(whole) - 1,
    ]
    assert len(everywhere) >= 280
    for at in everywhere:
        for mask in (0x01, 0x20, 0xFF):
            damaged = bytearray(whole)
            damaged[at] ^= mask
            with pytest.raises(UserError, match="is damaged or no task policy: compile it again, or copy it once more"):
                from_bytes(bytes(damaged), saved)


@pytest.mark.parametrize("left", [0, 4, 8, 100, -1], ids="{} bytes".format)
def test_a_truncated_or_lengthened_file_is_refused(saved: Path, left: int) -> None:
    whole = saved.read_bytes()
    for data in (whole[:left], whole + b"\0"):
        with pytest.raises(UserError, match="is damaged or no task policy"):
            from_bytes(data, saved)


def test_a_foreign_file_is_refused(compiler: Compiler, checkpoint_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n" * 100)
    for path in (picture, checkpoint_folder / checkpoint.WEIGHTS):
        with pytest.raises(UserError, match="is damaged or no task policy"):
            TaskPolicy.load(path, compiler.engine)
    with pytest.raises(UserError, match="There is no task policy .*: write one with `hypervla compile`"):
        TaskPolicy.load(tmp_path / "missing", compiler.engine)


def test_another_format_version_is_refused(policy: TaskPolicy, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervla.runtime.task_policy.FORMAT", 2)
    with pytest.raises(UserError, match="is of task policy format 1, but this version reads 2"):
        TaskPolicy.load(saved, policy.engine)


def test_a_policy_refuses_to_run_on_another_backbone(saved: Path, text_folder: Path, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path / "other", tiny.convolutional(text_folder), seed=1)
    wanted = "belongs to the backbone .*, but the engine runs .*: load the checkpoint it was compiled with"
    with pytest.raises(UserError, match=wanted):
        TaskPolicy.load(saved, TorchEngine.load(tmp_path / "other"))


def test_a_policy_refuses_to_run_as_another_base_policy(saved: Path, text_folder: Path, tmp_path: Path) -> None:
    config = tiny.convolutional(text_folder)
    tiny.save_checkpoint(tmp_path / "other", replace(config, policy=replace(config.policy, width=16)))
    with pytest.raises(UserError, match="weights of another base policy than this engine runs: compile it again"):
        TaskPolicy.load(saved, TorchEngine.load(tmp_path / "other"))


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(policy: TaskPolicy, saved: Path, monkeypatch) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        policy.save(saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before


# Unfit inputs


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(policy: TaskPolicy, number: float) -> None:
    weights = policy.weights.copy()
    weights[7] = number
    with pytest.raises(UserError, match="generated weights hold NaN or infinite numbers"):
        TaskPolicy(weights, policy.card, policy.engine)


def observed(**changes) -> Observation:
    return replace(tiny.observation(), **changes)


@pytest.mark.parametrize(
    ("observation", "match"),
    [
        (lambda: observed(images={}), "lacks camera 'top'; it has no images"),
        (lambda: observed(images={"front": tiny.observation().images["top"]}), r"it has \['front'\]"),
        (lambda: observed(images={"top": np.zeros((24, 24, 3), np.uint8)}), r"of shape \(32, 32, 3\), but uint8"),
        (lambda: observed(proprio=None), r"reads proprio of 2 numbers \['x', 'y'\], but none came"),
        (lambda: observed(proprio=np.zeros(3, np.float32)), r"2 numbers \['x', 'y'\], but shape \(3,\) came"),
        (lambda: observed(proprio=np.float32([0, np.nan])), "proprio holds NaN or infinite numbers"),
        (lambda: observed(proprio=np.float32([np.inf, 0])), "proprio holds NaN or infinite numbers"),
    ],
)
def test_an_observation_this_robot_cannot_have_made_is_refused(policy: TaskPolicy, observation, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        policy.act(observation())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_an_image_of_another_type_is_refused(dtype: type) -> None:
    with pytest.raises(UserError, match=f"delivers uint8 images of shape .*, but {np.dtype(dtype)}"):
        POINT.check_image("top", np.zeros((32, 32, 3), dtype))


def test_actions_that_are_no_numbers_never_reach_the_robot(policy: TaskPolicy) -> None:
    class Broken:
        backbone_digest, layout = policy.engine.backbone_digest, policy.layout
        image_size, reads_proprio, most_policies, takes_views = 24, True, 1, False

        def form(self, weights: NamedWeights) -> NamedWeights:
            return weights

        def run(self, slots: Slots, images: np.ndarray, proprio: np.ndarray | None) -> Prediction:
            return Prediction(np.full((1, 2, 3), np.nan, np.float32), 0.0, 0.0)

    engine = Broken()
    assert isinstance(engine, Engine)
    with pytest.raises(UserError, match="actions hold NaN or infinite numbers: stop the robot"):
        TaskPolicy(policy.weights, policy.card, engine).act(tiny.observation())


def test_altered_statistics_are_refused_by_their_own_digest(policy: TaskPolicy) -> None:
    data = policy.card.to_json()
    data["normalisation"]["action_mean"][0] += 1
    with pytest.raises(UserError, match="action statistics are not those it was compiled with"):
        type(policy.card).from_json(data)


# What the policy looks at


def test_the_image_is_cropped_to_the_view_and_brought_to_the_networks_size() -> None:
    images = tiny.observation().images
    np.testing.assert_array_equal(preprocess(images, POINT, 24)[0], images["top"][4:28, 4:28])
    resized = preprocess(images, POINT, 12)
    assert resized.shape == (1, 12, 12, 3)
    assert abs(float(resized.mean()) - float(images["top"][4:28, 4:28].mean())) < 2


def test_several_cameras_are_seen_in_the_robots_order(text_folder: Path, tmp_path: Path) -> None:
    robot, config = tiny.cameras(2), tiny.convolutional(text_folder, cameras=2)
    tiny.save_checkpoint(tmp_path, config, robots={robot.name: Robot(robot, tiny.NORMALIZER).to_json()})
    compiler, seen = load(tmp_path), tiny.observation(0, robot)
    policy = compiler.compile(SENTENCE, seen.images)
    listed_backwards = Observation(dict(reversed(seen.images.items())), seen.proprio)
    swapped = Observation({"camera0": seen.images["camera1"], "camera1": seen.images["camera0"]}, seen.proprio)
    chunk = policy.act(seen).actions
    assert np.array_equal(policy.act(listed_backwards).actions, chunk)
    assert not np.array_equal(policy.act(swapped).actions, chunk)
    with pytest.raises(UserError, match="has several cameras: pass the images by name"):
        compiler.compile(SENTENCE, seen.images["camera0"])


def test_reading_a_task_policy_needs_no_torch(saved: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from hypervla.runtime.task_policy import TaskPolicy, from_bytes\n"
        f"weights, layout, card = from_bytes(Path({str(saved)!r}).read_bytes(), Path('task'))\n"
        "assert weights.shape == (layout.size,) and card.instruction == 'find the goal'\n"
        "heavy = {'torch', 'transformers', 'PIL', 'pyarrow', 'mujoco'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
