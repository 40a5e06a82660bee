"""EVLA's phase 1: a language model learns to talk about pictures, resumes bit for bit, and is there to start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.conversation import write_pairs, write_tokenizer
from tests.training.test_resume import assert_same_run
from tests.training.test_systems import evla, hypervla, recipe_of

from hypervla import checkpoint, cli
from hypervla.contracts import UserError
from hypervla.data.image_text import ImageText
from hypervla.models.instruction_encoders import load_tokenizer
from hypervla.runtime.compiler import load
from hypervla.training import recipes
from hypervla.training.loop import train
from hypervla.training.metrics import LOG
from hypervla.training.pretrain import TextRecipe, TextStream, count_cut, pretrain, split, text_recipe
from hypervla.training.recipe import Recipe

SIDE = 24


@pytest.fixture
def acting(text_folder: Path, tmp_path: Path) -> Recipe:
    """A tiny EVLA whose tokenizer has an end."""
    return recipe_of(evla(write_tokenizer(text_folder, tmp_path / "words")))


@pytest.fixture
def pairs(tmp_path: Path) -> ImageText:
    path = write_pairs(tmp_path / "pairs")
    return ImageText(path, path.parent, SIDE)


def talking(acting: Recipe, steps: int = 12, rate: float = 1e-2) -> TextRecipe:
    return replace(text_recipe(acting, 32, batch=4, rate=rate), steps=steps)


def test_the_settings_are_the_published_ones(acting: Recipe) -> None:
    recipe = text_recipe(acting, 64_000)
    assert (recipe.batch, recipe.steps, recipe.optimizer.warmup) == (32, 1980, 59)  # of 63,360 pairs to learn from
    assert (recipe.optimizer.rate, recipe.optimizer.decay, recipe.optimizer.schedule) == (2e-5, 0.1, "cosine")


def test_what_a_picture_shows_is_learned(acting: Recipe, pairs: ImageText, tmp_path: Path) -> None:
    """Of two answers the picture tells which. Who does not see it loses 0.24 a token: two in three are dark."""
    pretrain(talking(acting, steps=150), pairs, tmp_path / "out")
    first, *_, last = [json.loads(line)["loss"] for line in (tmp_path / "out" / LOG).read_text().splitlines()]
    assert last < 0.1 < 0.5 < first


def test_a_resumed_run_is_the_uninterrupted_run(acting: Recipe, pairs: ImageText, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, model: object) -> None:
        if step == 8:
            raise Stop

    pretrain(talking(acting), pairs, tmp_path / "whole", save_every=3)
    with pytest.raises(Stop):
        pretrain(talking(acting), pairs, tmp_path / "parts", save_every=3, on_step=stop)
    torch.manual_seed(999)
    pretrain(talking(acting), pairs, tmp_path / "parts", save_every=3, resume=True, workers=2)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_run_on_other_pairs_is_not_resumed(acting: Recipe, pairs: ImageText, tmp_path: Path) -> None:
    pretrain(talking(acting, steps=2), pairs, tmp_path / "out")
    other = ImageText(write_pairs(tmp_path / "more", 16), tmp_path / "more", SIDE)
    with pytest.raises(UserError, match="dataset"):
        pretrain(talking(acting, steps=4), other, tmp_path / "out", resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        pretrain(talking(acting, steps=4), pairs, tmp_path / "out")


def test_actions_are_learned_from_there(acting: Recipe, pairs: ImageText, point_data: Path, tmp_path: Path) -> None:
    pretrain(talking(acting, steps=2), pairs, tmp_path / "talks")
    with pytest.raises(UserError, match="has learned to move no robot yet"):
        load(tmp_path / "talks")
    starts: list[dict[str, torch.Tensor]] = []
    train(
        replace(acting, steps=1, optimizer=replace(acting.optimizer, rate=0.0, backbone_rate=0.0)),
        point_data,
        tmp_path / "acts",
        initial=tmp_path / "talks",
        on_step=lambda _, model: starts.append({n: p.clone() for n, p in model.trained_parameters().items()}),
    )
    about = checkpoint.read_card(tmp_path / "talks")
    talks = checkpoint.read_weights(tmp_path / "talks" / checkpoint.WEIGHTS, about.digest)
    assert starts[0].keys() == talks.keys()
    assert all(torch.equal(value, talks[name]) for name, value in starts[0].items())
    load(tmp_path / "acts")


def stream(acting: Recipe, pairs: ImageText, indices: Sequence[int], room: int = 99) -> TextStream:
    return TextStream(pairs, indices, load_tokenizer(acting.model.model.language.tokenizer), room, 3, 0)


def test_every_pair_comes_once_an_epoch(acting: Recipe, pairs: ImageText, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    read = ImageText.__getitem__
    monkeypatch.setattr(ImageText, "__getitem__", lambda self, i: (seen.append(i), read(self, i))[1])
    batches = stream(acting, pairs, range(6))
    for step in range(4):
        batches(step)
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]
    assert batches(0).ids.tolist() == stream(acting, pairs, range(6))(0).ids.tolist()


def test_a_hundredth_is_held_back() -> None:
    learned, held_back = split(250)
    assert list(held_back) == [99, 199]
    assert sorted([*learned, *held_back]) == list(range(250))
    assert list(split(12)[1]) == []


def test_long_conversations_are_cut_and_counted(acting: Recipe, tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "find"}, {"from": "gpt", "value": "go " * count}]}
        for count in (2, 30, 3)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    pairs = ImageText(tmp_path / "pairs.json", tmp_path, SIDE)
    tokenizer = load_tokenizer(acting.model.model.language.tokenizer)
    assert count_cut(pairs, tokenizer, 20) == 1
    assert stream(acting, pairs, range(3), room=20)(0).ids.shape == (3, 20)


def test_a_model_that_does_not_talk_is_refused(text_folder: Path) -> None:
    with pytest.raises(UserError, match="is the model HyperVLA"):
        text_recipe(recipe_of(hypervla(text_folder)), 100)


@pytest.mark.parametrize("numbers", [{"epochs": 0}, {"batch": -1}, {"rate": float("nan")}])
def test_numbers_that_are_not_positive_are_refused(acting: Recipe, numbers: dict) -> None:
    with pytest.raises(UserError, match="should be a positive number"):
        text_recipe(acting, 100, **numbers)


def test_a_batch_of_more_pairs_than_there_are_is_refused(acting: Recipe) -> None:
    with pytest.raises(UserError, match="A batch of 32 wants as many pairs to learn from, but there are 4"):
        text_recipe(acting, 4)


def test_a_run_that_fails_at_once_leaves_nothing_behind(acting: Recipe, pairs: ImageText, tmp_path: Path) -> None:
    for entry in pairs.entries:
        if entry.image:
            (pairs.folder / entry.image).write_bytes(b"no image")
    with pytest.raises(UserError):
        pretrain(talking(acting), pairs, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_the_command_pretrains(
    acting: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": lambda *robot: acting})
    path = write_pairs(tmp_path / "pairs")
    words = ["pretrain", "tiny", "--data", str(path), "--images", str(path.parent), "--out", str(tmp_path / "out")]
    cli.main([*words, "--batch", "4", "--epochs", "2"])
    assert checkpoint.read_card(tmp_path / "out").provenance["step"] == 6
    assert checkpoint.read_card(tmp_path / "out").robots == {}
    (path.parent / "0.png").unlink()
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--resume"])
    assert end.value.code == 2
    assert "0.png" in capsys.readouterr().err
