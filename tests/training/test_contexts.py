"""The contexts of the training, kept with the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.fakes import make_point_world

from hypervla import checkpoint, cli
from hypervla.contracts import UserError
from hypervla.data.opening import open_mixture
from hypervla.data.record import record
from hypervla.runtime.compiler import load, load_compiler
from hypervla.runtime.task_policy import TaskPolicy
from hypervla.training.contexts import draw, keep_contexts
from hypervla.training.loop import train
from hypervla.training.recipe import Recipe

IMAGE = tiny.observation().images["top"]


@pytest.fixture
def copy(uninterrupted: Path, tmp_path: Path) -> Path:
    """A trained checkpoint that a test may change."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "copy"))


def test_training_keeps_its_contexts(uninterrupted: Path, point_data: Path) -> None:
    about = checkpoint.read_card(uninterrupted)
    known = checkpoint.read_contexts(uninterrupted, about)
    assert known is not None
    mixture = open_mixture([point_data])
    compiler = load_compiler(uninterrupted)
    reader = mixture.readers[0]
    distances = []
    for start in reader.starts[:-1].tolist():
        policy = compiler.compile(reader.instruction(start), reader.images("top", [start])[0])
        distances.append(policy.card.context_distance)
        assert policy.card.context_limit == pytest.approx(known.limit)
    assert np.mean(np.array(distances) <= known.limit) > 0.95, (distances, known.limit)


def test_held_back_episodes_are_drawn_apart(point_data: Path) -> None:
    mixture = open_mixture([point_data])
    (reader,) = mixture.readers
    seen = [draw(mixture, 400, 24, np.random.default_rng(0), held_back=held_back) for held_back in (False, True)]
    assert [len(contexts) for contexts in seen] == [400, 400 if len(reader.validation_episodes) else 0]
    first, second = ({context.images.tobytes() for context in contexts} for contexts in seen)
    assert not first & second
    assert len(first) == len(reader) - len(reader.validation_episodes)


def test_an_unfamiliar_context_is_flagged_and_may_be_refused(copy: Path, tmp_path: Path) -> None:
    known = checkpoint.read_contexts(copy, checkpoint.read_card(copy))
    assert known is not None
    small = type(known)(known.means + 1, known.whitening, known.limit)  # as if it had been trained with others
    checkpoint.add_contexts(copy, small)
    compiler = load_compiler(copy)
    policy = compiler.compile("find the goal", IMAGE)
    assert policy.card.unfamiliar
    policy.save(tmp_path / "task.safetensors")
    assert TaskPolicy.load(tmp_path / "task.safetensors", compiler.engine).card.unfamiliar
    compiler.refuse_unfamiliar = True
    with pytest.raises(UserError, match="'find the goal' with this first image is .* from the contexts of"):
        compiler.compile("find the goal", IMAGE)


def test_a_checkpoint_without_contexts_flags_nothing(copy: Path) -> None:
    card = json.loads((copy / checkpoint.CARD).read_text())
    del card["contexts_sha256"]
    (copy / checkpoint.CARD).write_text(json.dumps(card))
    compiler = load_compiler(copy)
    policy = compiler.compile("find the goal", IMAGE)
    assert policy.card.context_distance is None
    compiler.refuse_unfamiliar = True
    with pytest.raises(UserError, match="does not know the contexts of its training, so none can be refused"):
        compiler.compile("find the goal", IMAGE)
    assert not policy.card.unfamiliar


def test_damaged_contexts_are_refused(copy: Path) -> None:
    data = bytearray((copy / checkpoint.CONTEXTS).read_bytes())
    data[-1] ^= 1
    (copy / checkpoint.CONTEXTS).write_bytes(data)
    with pytest.raises(UserError, match="contexts.safetensors is damaged or foreign"):
        load(copy)


def test_the_command_keeps_what_training_kept(copy: Path, point_data: Path, capsys) -> None:
    before = (copy / checkpoint.CONTEXTS).read_bytes()
    (copy / checkpoint.CONTEXTS).unlink()
    cli.main(["contexts", str(copy), "--data", str(point_data)])
    assert "99.9 % of the contexts are within a distance of" in capsys.readouterr().out
    assert (copy / checkpoint.CONTEXTS).read_bytes() == before


def test_what_was_left_out_is_not_known(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    (reader,) = open_mixture([point_data]).readers
    _, *others = sorted({reader.instruction(int(row)) for row in reader.starts[:-1]})
    some = replace(recipe, steps=1, sampling=replace(recipe.sampling, leave_out=tuple(others)))
    train(some, point_data, tmp_path)
    before = checkpoint.read_contexts(tmp_path, checkpoint.read_card(tmp_path))
    assert before is not None
    assert len(before.means) == 1
    cli.main(["contexts", str(tmp_path), "--data", str(point_data)])
    again = checkpoint.read_contexts(tmp_path, checkpoint.read_card(tmp_path))
    assert again is not None
    assert torch.equal(again.means, before.means)


def test_too_few_contexts_say_nothing_of_others(recipe: Recipe, tmp_path: Path) -> None:
    """One demonstration of each task, which is drawn again and again."""
    record(tmp_path / "data", ("find", "flee"), 1, make=make_point_world, noise=0.1, seed=0, workers=1, max_steps=40)
    train(replace(recipe, steps=1), tmp_path / "data", tmp_path / "run")
    assert checkpoint.read_card(tmp_path / "run").contexts_digest is None


def test_contexts_are_of_a_checkpoint_and_data_of_ones_own(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "data", ("find",), 1, make=make_point_world, noise=0.1, seed=0, workers=1, max_steps=40)
    for name, match in (
        ("embedded", "embedded is none"),
        (str(copy), "data is not what the checkpoint was trained on"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["contexts", name, "--data", str(tmp_path / "data")])
        assert match in capsys.readouterr().err


def test_a_model_without_contexts_is_refused(text_folder: Path, point_data: Path, tmp_path: Path) -> None:
    from tests.training.test_systems import evla

    model = evla(text_folder)
    weights = tiny.seeded(model.build, False).trained_parameters()
    checkpoint.save(tmp_path, weights, config=model, robots={}, provenance={}, dtype=torch.float32)
    with pytest.raises(UserError, match="a model without a hypernetwork"):
        keep_contexts(tmp_path, open_mixture([point_data]))


def test_data_that_says_nothing_leaves_the_checkpoint_as_it_is(
    copy: Path, point_data: Path, monkeypatch, capsys
) -> None:
    before = (copy / checkpoint.CARD).read_bytes()
    mixture = open_mixture([point_data])
    monkeypatch.setattr(type(mixture.readers[0]), "instruction", lambda reader, row: "")
    assert keep_contexts(copy, mixture) is None
    with pytest.raises(SystemExit):
        cli.main(["contexts", str(copy), "--data", str(point_data)])
    assert "too few different contexts in the data" in capsys.readouterr().err
    assert (copy / checkpoint.CARD).read_bytes() == before
