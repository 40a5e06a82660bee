"""From a dataset's folder to a checkpoint's."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from tests.fakes import POINT, make_point_world
from tests.training.test_systems import evla, recipe_of
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hypervla import checkpoint
from hypervla.contracts import UserError
from hypervla.data.normalize import Robot
from hypervla.data.opening import open_mixture
from hypervla.data.record import record
from hypervla.data.stream import SampleStream
from hypervla.embodiment import Embodiment
from hypervla.models.action_head import ReleasedHead
from hypervla.models.hypervla import HyperVLAConfig
from hypervla.training.loop import check_fit, robots_of, train
from hypervla.training.metrics import LOG, processor_seconds
from hypervla.training.recipe import Recipe


def weights(out: Path) -> bytes:
    return (out / checkpoint.WEIGHTS).read_bytes()


def rows(out: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (out / LOG).read_text().splitlines()]


def test_the_checkpoint_holds_the_average_and_where_it_came_from(uninterrupted: Path, point_data: Path, recipe) -> None:
    model, about, _ = checkpoint.load(uninterrupted)
    assert about.config == recipe.model
    assert Embodiment.from_json(about.robots["point"]["embodiment"]) == POINT
    facts = about.provenance
    assert (facts["step"], facts["recipe"]["name"], facts["recipe"]["steps"]) == (12, "tiny", 12)
    assert (facts["datasets"][0]["episodes"], facts["datasets"][0]["name"]) == (36, point_data.name)
    (state,) = (uninterrupted / "resume").glob("*-state.safetensors")
    saved = load_file(state)
    for name, parameter in model.named_parameters():
        if not name.startswith("instruction_encoder."):
            assert torch.equal(parameter, saved[f"average/{name}"].half().float()), name
            assert not torch.equal(parameter, saved[f"weights/{name}"].half().float()), name


def test_a_run_may_start_from_a_checkpoint_and_keeps_its_statistics(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path
) -> None:
    still = replace(recipe, steps=1, optimizer=replace(recipe.optimizer, rate=0.0, backbone_rate=0.0))
    train(still, [point_data, point_data], tmp_path / "next", initial=uninterrupted)
    assert weights(tmp_path / "next") == weights(uninterrupted)
    before, after = checkpoint.read_card(uninterrupted), checkpoint.read_card(tmp_path / "next")
    assert after.robots == before.robots
    assert after.provenance["initial_checkpoint"] == before.digest
    assert len(after.provenance["datasets"]) == 2


def test_the_vision_of_a_checkpoint_may_be_taken_without_its_statistics(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path
) -> None:
    still = replace(recipe, steps=1, optimizer=replace(recipe.optimizer, rate=0.0, backbone_rate=0.0))
    bounded = replace(still, sampling=replace(still.sampling, normalisation="bounds"))
    for name, chosen in (("fresh", bounded), ("next", still)):
        train(chosen, point_data, tmp_path / name)
    train(still, point_data, tmp_path / "seeing", initial=tmp_path / "fresh", vision_only=True)
    before, plain, after = (load_file(tmp_path / n / checkpoint.WEIGHTS) for n in ("fresh", "next", "seeing"))
    for name, value in after.items():
        assert torch.equal(value, (before if name.startswith("backbone.") else plain)[name]), name
    assert checkpoint.read_card(tmp_path / "seeing").robots == checkpoint.read_card(tmp_path / "next").robots


def test_a_robot_in_another_place_may_have_statistics_of_its_own(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path
) -> None:
    still = replace(recipe, steps=1, optimizer=replace(recipe.optimizer, rate=0.0, backbone_rate=0.0))
    moved = shutil.copytree(uninterrupted, tmp_path / "moved")
    card = json.loads((moved / checkpoint.CARD).read_text())
    for robot in card["robots"].values():
        robot["normalisation"]["proprio_mean"][0] += 7
        del robot["normalisation_sha256"]
    (moved / checkpoint.CARD).write_text(json.dumps(card))
    for name, new in (("kept", False), ("new", True)):
        train(still, point_data, tmp_path / name, initial=moved, new_statistics=new)
        assert weights(tmp_path / name) == weights(uninterrupted)
    assert checkpoint.read_card(tmp_path / "new").robots == checkpoint.read_card(uninterrupted).robots
    assert checkpoint.read_card(tmp_path / "kept").robots != checkpoint.read_card(uninterrupted).robots


def test_a_run_may_end_by_its_time_and_go_on_with_more(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path
) -> None:
    train(recipe, point_data, tmp_path / "run", minutes=1e-9)
    assert checkpoint.read_card(tmp_path / "run").provenance["step"] == 1
    before = weights(tmp_path / "run")
    train(recipe, point_data, tmp_path / "run", minutes=1e-9, resume=True)  # what was spent before counts
    assert checkpoint.read_card(tmp_path / "run").provenance["step"] == 1
    assert weights(tmp_path / "run") == before
    spent = processor_seconds(tmp_path / "run") / 60
    train(recipe, point_data, tmp_path / "run", minutes=spent + 1e-9, resume=True)
    assert checkpoint.read_card(tmp_path / "run").provenance["step"] == 2
    train(recipe, point_data, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(uninterrupted)


@pytest.mark.parametrize("written", [(), (checkpoint.WEIGHTS,)])
def test_a_kill_before_the_last_checkpoint_is_made_good(
    recipe: Recipe, point_data: Path, uninterrupted: Path, tmp_path: Path, written: tuple[str, ...]
) -> None:
    """The state to resume from is written first, then the weights, then the card."""
    early, out = tmp_path / "early", tmp_path / "run"
    train(replace(recipe, steps=6), point_data, early)
    shutil.copytree(uninterrupted, out)
    for name in {checkpoint.WEIGHTS, checkpoint.CARD, checkpoint.CONTEXTS} - set(written):
        shutil.copy(early / name, out / name)
    train(recipe, point_data, out, resume=True)
    assert weights(out) == weights(uninterrupted)
    about = checkpoint.read_card(out)
    assert about.provenance["step"] == 12
    assert about.provenance["loss"] == checkpoint.read_card(uninterrupted).provenance["loss"]
    assert (out / checkpoint.CONTEXTS).read_bytes() == (uninterrupted / checkpoint.CONTEXTS).read_bytes()


def test_a_run_begun_with_more_is_not_resumed_with_less(
    recipe: Recipe, point_data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    train(replace(recipe, steps=2), point_data, tmp_path / "run", initial=uninterrupted, vision_only=True)
    with pytest.raises(UserError, match="its initial_part is vision, this command's is None"):
        train(recipe, point_data, tmp_path / "run", initial=uninterrupted, resume=True)


@pytest.mark.parametrize("change", [{"step": "1"}, {"identity": []}])
def test_a_damaged_state_is_refused(
    recipe: Recipe, point_data: Path, uninterrupted: Path, tmp_path: Path, change: dict
) -> None:
    out = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    card = json.loads((out / "resume/state.json").read_text())
    (out / "resume/state.json").write_text(json.dumps(card | change))
    with pytest.raises(UserError, match="state.json is damaged"):
        train(recipe, point_data, out, resume=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gripper": None}, "the gripper of point is not known: say what it is with --robot FILE.toml"),
        ({"gripper": replace(POINT.gripper, index=0)}, "the gripper of point is action 0"),
        ({"cameras": ()}, "point has no camera"),
    ],
)
def test_a_robot_that_the_recipe_is_not_made_for_is_refused(recipe: Recipe, change: dict, match: str) -> None:
    assert isinstance(recipe.model.head, ReleasedHead)
    check_fit(recipe, POINT)
    with pytest.raises(UserError, match=match):
        check_fit(recipe, replace(POINT, **change))


def test_what_is_left_out_is_never_seen(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    mixture = open_mixture([point_data])
    reader = mixture.readers[0]
    known = sorted({reader.instruction(int(row)) for row in reader.starts[:-1]})
    assert len(known) > 1
    rest = replace(recipe, steps=3, sampling=replace(recipe.sampling, leave_out=(known[0],), rephrase=0.0))
    seen: set[str] = set()
    for validation in (False, True):
        robots = robots_of(rest, mixture, None)
        stream = SampleStream(mixture, robots, rest.sampling, seed=0, reads_proprio=True, validation=validation)
        if stream.episodes:
            seen |= {sentence for step in range(20) for sentence in stream.batch(step, 8).instructions}
    assert seen == set(known[1:])
    misspelt = replace(recipe, sampling=replace(recipe.sampling, leave_out=(known[0][:-1],)))
    with pytest.raises(UserError, match=f"none can be left out; there is '{known[0]}'"):
        train(misspelt, point_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frozen_vision_wants_weights_to_start_from(
    recipe: Recipe, text_folder: Path, point_data: Path, tmp_path
) -> None:
    frozen = recipe_of(replace(evla(text_folder), frozen_vision=True))
    with pytest.raises(UserError, match="start from a checkpoint with --init"):
        train(frozen, point_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_parts_train_from_the_first_step(recipe: Recipe, point_data: Path, tmp_path: Path, monkeypatch) -> None:
    """Pretrained parts come from transformers in evaluation mode."""
    build = HyperVLAConfig.build
    monkeypatch.setattr(HyperVLAConfig, "build", lambda self, pretrained=True: build(self, pretrained).eval())
    modes: list[bool] = []
    once = replace(recipe, steps=1)
    train(once, point_data, tmp_path / "out", on_step=lambda _, model: modes.append(model.hypernetwork.training))
    assert modes == [True]


def test_statistics_of_another_normalisation_are_not_kept(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path
) -> None:
    bounded = replace(recipe, sampling=replace(recipe.sampling, normalisation="bounds"))
    mixture = open_mixture([point_data])
    fresh, after = (robots_of(bounded, mixture, start)["point"].normalizer for start in (None, uninterrupted))
    assert after.digest == fresh.digest
    assert after.clip == 1.0
    kept = robots_of(recipe, mixture, uninterrupted)["point"].normalizer
    assert kept.digest == Robot.from_json(checkpoint.read_card(uninterrupted).robots["point"]).normalizer.digest


def test_a_run_that_started_elsewhere_is_another_run(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path
) -> None:
    train(recipe, point_data, tmp_path / "next", initial=uninterrupted)
    with pytest.raises(UserError, match="its initial is"):
        train(recipe, point_data, tmp_path / "next", resume=True)


def test_every_report_is_a_line_of_json(uninterrupted: Path) -> None:
    reports = rows(uninterrupted)
    assert [row["step"] for row in reports] == [3, 6, 9, 12]
    wanted = {"step", "time", "loss", "gradient_norm", "samples_per_second", "processor_seconds", "validation_loss"}
    assert all(set(row) == wanted for row in reports)
    assert list((uninterrupted / "tensorboard").glob("events.*"))


def test_a_run_is_a_function_of_its_recipe_and_data(uninterrupted: Path, recipe, point_data: Path, tmp_path) -> None:
    torch.manual_seed(12345)
    train(recipe, point_data, tmp_path / "again", save_every=3)
    train(replace(recipe, seed=1), point_data, tmp_path / "seed", save_every=3)
    assert weights(tmp_path / "again") == weights(uninterrupted)
    assert weights(tmp_path / "seed") != weights(uninterrupted)


@pytest.mark.parametrize("save_every", [1, 5, 100])
def test_saving_and_validating_change_nothing(uninterrupted, recipe, point_data, tmp_path, save_every: int) -> None:
    train(recipe, point_data, tmp_path / "out", save_every=save_every)
    assert weights(tmp_path / "out") == weights(uninterrupted)


def test_looking_on_sees_every_step_after_it(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    seen = []
    train(recipe, point_data, tmp_path / "out", on_step=lambda step, model: seen.append((step, type(model).__name__)))
    assert seen == [(step, "HyperVLA") for step in range(1, 13)]


def test_training_lowers_the_loss(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    train(replace(recipe, steps=80), point_data, tmp_path / "out", save_every=20)
    reports = rows(tmp_path / "out")
    assert reports[-1]["loss"] < 0.7 * reports[0]["loss"]
    assert reports[-1]["validation_loss"] < reports[0]["validation_loss"]


def test_a_paper_shaped_model_trains_in_bfloat16(
    recipe: Recipe, text_folder, vision_folder, point_data, tmp_path: Path
) -> None:
    model = tiny.paper_shaped(text_folder, vision_folder)
    train(
        tiny.recipe(
            model,
            sampling=replace(recipe.sampling, frames_per_context=1),
            precision="bfloat16",
            steps=3,
            checkpoint_dtype="float32",
        ),
        point_data,
        tmp_path / "out",
    )
    trained, before = checkpoint.load(tmp_path / "out")[0], tiny.seeded(model.build)
    frozen = trained.context_backbone.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in before.context_backbone.state_dict().items())
    assert not torch.equal(trained.backbone.model.layernorm.weight, before.backbone.model.layernorm.weight)


def test_gradients_are_clipped_all_together(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    norms: list[float] = []

    def measure(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()))

    hook = register_optimizer_step_pre_hook(measure)
    try:
        clip = replace(recipe.optimizer, clip=0.25)
        train(replace(recipe, optimizer=clip), point_data, tmp_path / "out", save_every=1)
    finally:
        hook.remove()
    reported = [row["gradient_norm"] for row in rows(tmp_path / "out")]
    assert max(reported) > 0.25
    assert norms == pytest.approx([min(0.25, norm) for norm in reported], rel=1e-4)


def test_the_first_step_has_rate_zero(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    train(replace(recipe, steps=1, checkpoint_dtype="float32"), point_data, tmp_path / "out")
    torch.manual_seed(recipe.seed)
    fresh = recipe.model.build().trained_parameters()
    saved = load_file(tmp_path / "out" / checkpoint.WEIGHTS)
    assert all(torch.equal(saved[name], parameter) for name, parameter in fresh.items())


def test_few_episodes_train_without_a_validation_loss(recipe: Recipe, tmp_path: Path) -> None:
    record(tmp_path / "few", ["find"], 2, make=make_point_world, noise=0.0, seed=0, workers=1, max_steps=12)
    train(replace(recipe, steps=2), tmp_path / "few", tmp_path / "out")
    assert "validation_loss" not in rows(tmp_path / "out")[-1]


def test_the_handler_of_ctrl_c_is_put_back(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(replace(recipe, steps=1), point_data, tmp_path / "out")
    assert signal.getsignal(signal.SIGINT) is before


# Refusals


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"cameras": 2}, "2 cameras"),
        ({"head": ReleasedHead(horizon=2, action_size=4, gripper_index=3)}, "4 action dimensions"),
        ({"policy": replace(tiny.convolutional(Path()).policy, proprio_size=3)}, "3 proprio numbers"),
    ],
)
def test_another_robots_data_is_refused(recipe: Recipe, point_data: Path, tmp_path: Path, change, what: str) -> None:
    other = replace(recipe, model=replace(recipe.model, **change))
    with pytest.raises(UserError, match=f"The recipe tiny is made for {what}, but point has"):
        train(other, point_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(uninterrupted: Path, recipe: Recipe, point_data: Path) -> None:
    before = weights(uninterrupted)
    with pytest.raises(UserError, match="already holds a run: continue it with --resume, or choose another --out"):
        train(recipe, point_data, uninterrupted)
    assert weights(uninterrupted) == before


def test_a_folder_without_data_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Not a LeRobot dataset"):
        train(recipe, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(recipe, point_data: Path, tmp_path: Path) -> None:
    wild = replace(recipe.optimizer, rate=1e30, warmup=1)
    with pytest.raises(UserError, match=r"The loss became (nan|inf) at step \d+: lower the learning rate"):
        train(replace(recipe, optimizer=wild), point_data, tmp_path / "out", save_every=12)
    assert not (tmp_path / "out" / checkpoint.CARD).exists()
    assert not (tmp_path / "out/resume").exists()


# Traced


@pytest.mark.traced
def test_a_traced_run_is_the_eager_one(recipe: Recipe, point_data: Path, tmp_path: Path, monkeypatch) -> None:
    """Traced in one piece, but run by PyTorch's own kernels: generating C++ for these would take a minute."""
    traced_as_one = partial(torch.compile, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced_as_one)
    for name, trace in (("eager", False), ("traced", True)):
        train(replace(recipe, trace=trace, checkpoint_dtype="float32"), point_data, tmp_path / name, save_every=6)
    eager, traced = (load_file(tmp_path / name / checkpoint.WEIGHTS) for name in ("eager", "traced"))
    for name, value in eager.items():
        torch.testing.assert_close(traced[name], value, rtol=1e-3, atol=1e-3, msg=name)
