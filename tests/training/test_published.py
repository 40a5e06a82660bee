"""Published weights into checkpoints and back, and the statistics beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from tests.baselines.test_openvla import config, published  # noqa: F401
from tests.conformance.policy import check_policy
from tests.fakes import POINT
from tests.models.test_pretrained_parts import CONFIG as PARTS_CONFIG
from tests.models.test_pretrained_parts import parts  # noqa: F401
from tests.training.test_systems import alone, octo, recipe_of

from hypervla import checkpoint, cli
from hypervla.baselines import octo_weights, rt1_weights
from hypervla.baselines.rt1 import RT1_X, RT1Config
from hypervla.contracts import UserError
from hypervla.data.normalize import Normalizer, Robot
from hypervla.data.published_statistics import read_statistics
from hypervla.embodiment import WIDOWX
from hypervla.models import released_weights
from hypervla.models.action_head import ReleasedHead
from hypervla.models.evla import EvlaConfig
from hypervla.models.lora import LoRA
from hypervla.models.npz import read_npz, write_npz
from hypervla.runtime.compiler import load
from hypervla.training.initial import start_from
from hypervla.training.loop import train
from hypervla.training.published import export_weights, import_weights, published_normalizer
from hypervla.training.recipes import recipe

ROBOT = Robot(POINT, tiny.NORMALIZER)


def test_octos_weights_become_a_policy_and_leave_as_they_came(text_folder: Path, tmp_path: Path) -> None:
    shape = octo(text_folder)
    model = tiny.seeded(shape.build)
    arrays = octo_weights.to_flax(model.trained_parameters(), shape)
    write_npz(tmp_path / "octo.npz", arrays)
    assert import_weights(shape, str(tmp_path / "octo.npz"), ROBOT, tmp_path / "ours") == len(
        model.trained_parameters()
    )
    loaded = load(tmp_path / "ours")
    assert all(torch.equal(loaded.model.get_parameter(n), p) for n, p in model.named_parameters())
    first = tiny.observation().images
    check_policy(lambda: loaded.compile(tiny.INSTRUCTIONS[0], first), tiny.observation, trained=False)
    export_weights(tmp_path / "ours", tmp_path / "back.npz")
    back = read_npz(tmp_path / "back.npz")
    assert back.keys() == arrays.keys()
    assert all((back[name] == value).all() for name, value in arrays.items())


def test_released_hypervla_weights_run_with_flaxs_rule(text_folder: Path, vision_folder: Path, tmp_path: Path) -> None:
    shape = tiny.paper_shaped(text_folder, vision_folder, head=ReleasedHead(2, 3, 2))
    model = tiny.seeded(shape.build)
    arrays = released_weights.to_flax(model.trained_parameters(), shape)
    write_npz(tmp_path / "hypervla.npz", arrays)
    import_weights(shape, str(tmp_path / "hypervla.npz"), ROBOT, tmp_path / "ours")
    about = checkpoint.read_card(tmp_path / "ours")
    assert about.config == replace(shape, backbone=replace(shape.backbone, position_rule="flax"))
    export_weights(tmp_path / "ours", tmp_path / "back.npz")
    back = read_npz(tmp_path / "back.npz")
    assert all((back[name] == value).all() for name, value in arrays.items())


def test_openvlas_weights_stay_where_they_are(published, tmp_path: Path) -> None:  # noqa: F811
    shape, model, folder = published
    assert import_weights(shape, str(folder), ROBOT, tmp_path / "ours") == 0
    assert (tmp_path / "ours" / checkpoint.WEIGHTS).stat().st_size < 1000
    loaded = load(tmp_path / "ours")
    assert all(torch.equal(loaded.model.get_parameter(n), p) for n, p in model.named_parameters())
    (folder / "model-00001-of-00002.safetensors").rename(folder / "pytorch_model.bin")
    for source, words in ((folder, "lacks model-00001"), (tmp_path / "ours", "holds another model")):
        with pytest.raises(UserError, match=words):
            import_weights(shape, str(source), ROBOT, tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_what_nobody_published_is_refused(text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not read into the model Monolithic: there are readers for HyperVLA"):
        import_weights(alone(text_folder), "x.npz", ROBOT, tmp_path / "ours")
    tiny.save_checkpoint(tmp_path / "here", tiny.convolutional(text_folder))
    with pytest.raises(UserError, match="already holds a checkpoint"):
        import_weights(octo(text_folder), "x.npz", ROBOT, tmp_path / "here")


OCTO = {"action": {"mean": [0.0], "std": [1.0], "p01": [-1.0], "p99": [2.0]}, "proprio": {"mean": [3.0]}}


@pytest.fixture
def octo_statistics(tmp_path: Path) -> Path:
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps({"bridge_dataset": OCTO, "fractal": OCTO}))
    return path


def test_octos_statistics_are_told_by_our_names(octo_statistics: Path) -> None:
    found = read_statistics(octo_statistics, "fractal")
    assert found["action"] == {"mean": [0.0], "std": [1.0], "q01": [-1.0], "q99": [2.0]}
    assert found["observation.state"] == {"mean": [3.0]}


def test_statistics_of_one_dataset_need_no_name(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    for data in (OCTO, {"only": OCTO}, {"norm_stats": {"only": OCTO}}):
        path.write_text(json.dumps(data))
        assert read_statistics(path)["action"]["q01"] == [-1.0]


@pytest.mark.parametrize("mean", [["a"] * 7, {"a": 1}, [[1], [1, 2]], [1e300] * 7, None])
def test_statistics_that_are_no_numbers_are_refused(mean: object) -> None:
    statistics = {"action": {"mean": mean, "std": [1.0] * 7}}
    with pytest.raises(UserError, match="need 7 finite numbers for the mean"):
        Normalizer.from_statistics(statistics, WIDOWX)
    with pytest.raises(UserError, match="negative std"):
        Normalizer.from_statistics({"action": {"mean": [0.0] * 7, "std": [-1.0] * 7}}, WIDOWX)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "{", "[]", '{"a": 1}', '{"a": {"state": {}}}', '{"action": 3}'])
def test_a_file_without_statistics_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match="holds no action statistics"):
        read_statistics(tmp_path / "bad.json")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["weights", *words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_command_line_says_what_is_missing(capsys, octo_statistics: Path, tmp_path: Path) -> None:
    source, out = str(tmp_path / "octo.npz"), ("--out", str(tmp_path / "out"))
    command = ("import", source, "--recipe", "octo_small", *out)
    assert "Say which robot" in refused(capsys, *command)
    assert "statistics are missing" in refused(capsys, *command, "--robot", "widowx")
    assert "There is no robot 'widow'; there is" in refused(
        capsys, *command, "--robot", "widow", "--statistics", str(octo_statistics)
    )
    said = refused(capsys, *command, "--robot", "widowx", "--statistics", str(octo_statistics), "--key", "bridge")
    assert "say bridge_dataset" in said
    seven = {"bridge": {"action": {"mean": [0.0] * 7, "std": [1.0] * 7}}}
    octo_statistics.write_text(json.dumps(seven))
    command += ("--robot", "widowx", "--statistics", str(octo_statistics))
    assert "There is no file" in refused(capsys, *command)
    np.savez(tmp_path / "octo.npz", odd=np.zeros(3, np.float32))
    assert "holds another model than the recipe" in refused(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_evlas_parts_are_there_to_train_from(text_folder: Path, parts: Path, tmp_path: Path) -> None:  # noqa: F811
    language = replace(PARTS_CONFIG.language, tokenizer=str(text_folder))
    shape = EvlaConfig(replace(PARTS_CONFIG, language=language), 3)
    import_weights(shape, str(parts), None, tmp_path / "ours")
    about = checkpoint.read_card(tmp_path / "ours")
    assert (about.config, about.robots) == (shape, {})
    weights = checkpoint.read_weights(tmp_path / "ours" / checkpoint.WEIGHTS, about.digest)
    siglip = load_file(parts / "siglip/model.safetensors")
    assert all(torch.equal(weights[f"model.vision_backbone.fused_featurizer.{n}"], x) for n, x in siglip.items())
    with pytest.raises(UserError, match="move no robot yet"):
        import_weights(shape, str(parts), ROBOT, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_that_move_a_robot_want_to_know_which(text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Say which robot the weights move"):
        import_weights(octo(text_folder), "octo.npz", None, tmp_path / "ours")


def test_rt1_x_speaks_in_units_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle bins are rest, and SIMPLER's factors lie behind them."""
    read: list[RT1Config] = []
    monkeypatch.setattr(rt1_weights, "read_published", lambda path, model: read.append(model.config) or {})
    chosen = recipe("rt1_x", WIDOWX)
    normalizer = published_normalizer(chosen.model, WIDOWX)
    assert normalizer is not None
    import_weights(chosen.model, "rt1x.npz", Robot(WIDOWX, normalizer), tmp_path / "ours")
    assert read[0].actions == replace(
        chosen.model.actions, world_vector=(-2.0, 2.0), rotation_delta=RT1_X.actions.rotation_delta
    )
    assert checkpoint.read_card(tmp_path / "ours").config == read[0]
    moved = normalizer.inverse_actions(np.array([1.75, -1.75, 0, 1.4, -1.4, 0, 1], np.float32))
    np.testing.assert_allclose(moved[:6], [0.05, -0.05, 0, 0.25, -0.25, 0], atol=1e-7)
    with pytest.raises(UserError, match="is not known, only for widowx"):
        published_normalizer(chosen.model, POINT)
    assert published_normalizer(recipe("octo_small").model, WIDOWX) is None


def test_only_a_recipe_with_dinov2_takes_released_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this recipe has a ConvNet"):
        import_weights(recipe("small").model, "hypervla.npz", ROBOT, tmp_path / "ours")


def test_published_openvla_is_tuned_from_where_it_lies(published, point_data: Path, tmp_path: Path) -> None:  # noqa: F811
    """The checkpoint of an import holds no tensors; a recipe of another source then reads the import's."""
    shape, model, folder = published
    import_weights(shape, str(folder), Robot(POINT, tiny.NORMALIZER), tmp_path / "imported")
    with pytest.raises(UserError, match="holds another model"):
        start_from(tmp_path / "imported", tiny.seeded(octo(shape.model.language.tokenizer).build))
    elsewhere = recipe_of(replace(shape, source="nobody/nothing", lora=LoRA(rank=2, alpha=1)))
    train(replace(elsewhere, steps=2), point_data, tmp_path / "tuned", initial=tmp_path / "imported")
    about = checkpoint.read_card(tmp_path / "tuned")
    assert about.config.source == str(folder.resolve())
    loaded, _, weights = checkpoint.load(tmp_path / "tuned")
    assert all("lora" in name for name in weights)
    name = "model.language_model.model.layers.0.mlp.up_proj"
    assert torch.equal(loaded.get_parameter(f"{name}.base_layer.weight"), model.get_parameter(f"{name}.weight"))
