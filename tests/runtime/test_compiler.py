"""Context → task policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.fakes import POINT

import hypervla
from hypervla import checkpoint
from hypervla.contracts import MAX_INSTRUCTION_CHARACTERS, Policy, TaskContext, UserError
from hypervla.data.normalize import Robot
from hypervla.runtime.compiler import Compiler, load
from hypervla.runtime.task_policy import TaskPolicy, preprocess

IMAGE = tiny.observation().images["top"]


def test_a_task_policy_holds_what_the_model_writes_for_its_context(compiler: Compiler, checkpoint_folder: Path) -> None:
    policy = compiler.compile("find the goal", IMAGE)
    first = torch.from_numpy(preprocess({"top": IMAGE}, POINT, 24))[None]
    wanted = compiler.model.generate(["find the goal"], first)[0].numpy()
    assert np.array_equal(policy.weights, wanted)
    assert policy.weights.dtype == np.float32
    assert isinstance(policy, Policy)
    card = policy.card
    assert (card.instruction, card.embodiment) == ("find the goal", POINT)
    assert card.normalizer.digest == tiny.NORMALIZER.digest
    assert card.checkpoint_digest == checkpoint.read_card(checkpoint_folder).digest
    assert card.backbone_digest == checkpoint.load_backbone(checkpoint_folder)[2]


def test_the_instruction_and_the_first_image_each_change_the_weights(compiler: Compiler) -> None:
    policy = compiler.compile("find the goal", IMAGE)
    assert not np.allclose(compiler.compile("flee to the corner", IMAGE).weights, policy.weights)
    assert not np.allclose(compiler.compile("find the goal", 255 - IMAGE).weights, policy.weights)
    assert np.array_equal(compiler.compile("find the goal", IMAGE).weights, policy.weights)


def test_policies_that_act_otherwise_are_called_otherwise(checkpoint_folder: Path) -> None:
    """The same weights in other numbers are another policy: a checkpoint of several robots has such."""
    policy = load(checkpoint_folder).compile("find the goal", IMAGE)
    scaled = replace(policy.card.normalizer, action_std=2 * policy.card.normalizer.action_std)
    other = TaskPolicy(policy.weights, replace(policy.card, normalizer=scaled), policy.engine)
    assert other.policy_id != policy.policy_id == load(checkpoint_folder).compile("find the goal", IMAGE).policy_id


def test_the_middle_of_the_view_is_compiled_from_and_acted_on(checkpoint_folder: Path) -> None:
    """As whoever cuts the pictures and enlarges nothing would do it."""
    seeing = load(checkpoint_folder)
    seeing.see_middle(0.5)
    (camera,) = seeing.embodiment.cameras
    assert camera.crop == (7, 7, 17, 17), "17 of 24 pixels: half of the area"
    policy, seen = seeing.compile("find the goal", IMAGE), tiny.observation(1)
    edged = {"top": np.full_like(IMAGE, 9)}
    edged["top"][7:24, 7:24] = IMAGE[7:24, 7:24]
    np.testing.assert_array_equal(seeing.compile("find the goal", edged).weights, policy.weights)
    whole = load(checkpoint_folder)
    before = whole.compile("find the goal", IMAGE)
    whole.see_middle(0.5)
    np.testing.assert_array_equal(whole.compile("find the goal", IMAGE).weights, policy.weights)
    whole = load(checkpoint_folder)
    np.testing.assert_array_equal(whole.compile("find the goal", IMAGE).weights, before.weights)
    assert not np.allclose(whole.compile("find the goal", IMAGE).weights, policy.weights)
    inside = {"top": np.where(np.isin(np.arange(32), range(7, 24))[:, None, None], seen.images["top"], 0)}
    inside["top"] = inside["top"].astype(np.uint8)
    np.testing.assert_array_equal(policy.act(replace(seen, images=inside)).actions, policy.act(seen).actions)


def test_many_contexts_at_once_equal_one_by_one(compiler: Compiler) -> None:
    contexts = [TaskContext(s, tiny.observation(i).images) for i, s in enumerate(tiny.INSTRUCTIONS)]
    for policy, context in zip(compiler.compile_many(contexts), contexts, strict=True):
        alone = compiler.compile(context.instruction, context.images)
        np.testing.assert_allclose(policy.weights, alone.weights, rtol=1e-5, atol=1e-6)
        assert policy.instruction == context.instruction


def test_the_same_context_is_compiled_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    embed = compiler.model.embed
    monkeypatch.setattr(compiler.model, "embed", lambda *given: asked.append(len(given[0])) or embed(*given))
    contexts = [TaskContext(s, {"top": image}) for s in ("find the goal", "flee") for image in (IMAGE, 255 - IMAGE)]
    first = compiler.compile_many(contexts)
    again = compiler.compile_many([*contexts[::-1], contexts[0]])
    assert asked == [4], "one call for all that was new"
    assert (compiler.remembered.hits, compiler.remembered.misses) == (5, 4)
    for one, other in zip([*first[::-1], first[0]], again, strict=True):
        assert np.array_equal(one.weights, other.weights)
        assert one.instruction == other.instruction


def test_a_remembered_sentence_costs_no_call_of_the_text_encoder(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.compile("find the goal", IMAGE)
    monkeypatch.setattr(compiler.model.instruction_encoder, "model", None)
    compiler.compile("find the goal", 255 - IMAGE)
    with pytest.raises(AttributeError):
        compiler.compile("flee", IMAGE)


def test_the_only_camera_needs_no_name(compiler: Compiler) -> None:
    named, unnamed = (compiler.compile("find the goal", images) for images in ({"top": IMAGE}, IMAGE))
    assert np.array_equal(named.weights, unnamed.weights)


def test_policies_of_one_model_share_its_engine(compiler: Compiler) -> None:
    one, other = (compiler.compile(s, IMAGE) for s in ("find the goal", "flee to the corner"))
    assert one.engine is other.engine is compiler.engine
    assert compiler.engine.backbone is compiler.model.backbone


def test_the_public_snippet_runs(checkpoint_folder: Path) -> None:
    model = hypervla.load(checkpoint_folder)
    policy = model.compile("find the goal", IMAGE)
    del model
    assert len(policy.act(tiny.observation())) == 2


@pytest.mark.parametrize(
    ("instruction", "match"),
    [
        ("", "The instruction is empty"),
        (" \n", "The instruction is empty"),
        ("x" * (MAX_INSTRUCTION_CHARACTERS + 1), "has 501 characters, more than the 500 allowed"),
    ],
)
def test_an_instruction_of_no_use_is_refused(compiler: Compiler, instruction: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        compiler.compile(instruction, IMAGE)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (np.zeros((24, 24, 3), np.uint8), r"shape \(32, 32, 3\), but uint8 \(24, 24, 3\) came"),
        ({"front": IMAGE}, "Camera 'top' of point delivers uint8 images .*, but NoneType no shape came"),
        ({}, "Camera 'top' of point delivers"),
    ],
)
def test_images_that_no_camera_delivers_are_refused(compiler: Compiler, images, match: str) -> None:
    with pytest.raises(UserError, match=match):
        compiler.compile("find the goal", images)


def test_a_checkpoint_with_unfit_statistics_is_refused(text_folder: Path, tmp_path: Path) -> None:
    robot = Robot(POINT, tiny.NORMALIZER).to_json()
    robot["normalisation"]["action_mean"][1] = float("nan")
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder), robots={"point": robot})
    with pytest.raises(UserError, match="finite numbers for the mean of 'action'"):
        load(tmp_path)


def test_a_checkpoint_with_foreign_statistics_is_refused(text_folder: Path, tmp_path: Path) -> None:
    robot = Robot(POINT, tiny.NORMALIZER).to_json()
    robot["normalisation"]["action_mean"][1] += 0.01
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder), robots={"point": robot})
    with pytest.raises(UserError, match="statistics of point are not those the weights were trained with"):
        load(tmp_path)


def test_a_checkpoint_of_several_robots_asks_which(text_folder: Path, tmp_path: Path) -> None:
    slow = Robot(replace(POINT, name="slow", action_low=(-0.01,) * 3), tiny.NORMALIZER)
    robots = {"point": Robot(POINT, tiny.NORMALIZER).to_json(), "slow": slow.to_json()}
    tiny.save_checkpoint(tmp_path, tiny.convolutional(text_folder), robots=robots)
    assert load(tmp_path, robot="slow").embodiment == slow.embodiment
    with pytest.raises(UserError, match="knows several robots: choose one of point, slow"):
        load(tmp_path)
    with pytest.raises(UserError, match="knows no robot 'fast': choose one of point, slow"):
        load(tmp_path, robot="fast")


def test_compiling_leaves_the_random_state_alone(compiler: Compiler) -> None:
    before = torch.get_rng_state()
    compiler.compile("find the goal", IMAGE).act(tiny.observation())
    assert torch.equal(torch.get_rng_state(), before)
