"""OpenVLA: published size and names, greedy decoding and loss as transformers has them, batches of any lengths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests import tiny
from torch import Tensor

from hypervla.baselines.openvla import OPENVLA_7B, OpenVLA, OpenVLAConfig
from hypervla.contracts import UserError
from hypervla.data.published_statistics import read_statistics
from hypervla.models.action_tokens import bins_of, values_of
from hypervla.models.backbones import ConvNet
from hypervla.models.fused_vision import DINO_L, SIGLIP_SO400M, FusedVision
from hypervla.models.interface import Batch, Model, ModelConfig, Monolithic
from hypervla.models.safetensors_folder import load_published
from hypervla.models.vision_language import LLAMA_2_7B, VisionLanguage

SIDE, ACTIONS = 16, 3
SHORT, LONG = "find", "flee from the point at once"


@pytest.fixture(scope="module")
def config(text_folder: Path) -> OpenVLAConfig:
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp": 48, "vocabulary": 320, "context": 64}
    language = replace(LLAMA_2_7B, **sizes, tokenizer=str(text_folder))
    model = VisionLanguage(ConvNet(SIDE, (4, 8), 4), (16,), language)
    return OpenVLAConfig(model, ACTIONS, above_actions=320, end=2, before_answer=5, source=None)


@pytest.fixture
def model(config: OpenVLAConfig) -> OpenVLA:
    return tiny.seeded(OpenVLA, config).eval()


def make_batch(sentences: list[str], seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    count = len(sentences)
    actions = torch.rand(count, 1, 1, 1, ACTIONS, generator=random) * 2 - 1
    images = torch.randint(256, (count, 1, 1, 1, SIDE, SIDE, 3), dtype=torch.uint8, generator=random)
    return Batch(
        instructions=sentences,
        initial_images=images[:, 0, 0],
        images=images,
        timestep_mask=torch.ones(count, 1, 1, dtype=torch.bool),
        proprio=None,
        actions=actions,
        mask=torch.ones_like(actions, dtype=torch.bool),
    )


def test_it_fulfils_the_protocols(model: OpenVLA) -> None:
    assert isinstance(model.config, ModelConfig)
    assert isinstance(model, Model)
    assert isinstance(model, Monolithic)


def test_the_published_size_to_the_last_parameter() -> None:
    with torch.device("meta"):
        model = OPENVLA_7B.build(pretrained=False)
    assert sum(model.parts().values()) == 7_541_237_184
    assert model.parts()["language_model"] == 6_738_939_904
    assert model.parts()["projector"] == 71_385_600
    assert model.activated() == 7_541_237_184 - model.parts()["unused_vision"]


def test_the_published_names() -> None:
    with torch.device("meta"):
        names = dict(OPENVLA_7B.build(pretrained=False).model.named_parameters())
    for name in (
        "vision_backbone.featurizer.blocks.23.ls2.scale_factor", "vision_backbone.fused_featurizer.attn_pool.latent",
        "projector.fc3.bias", "language_model.model.embed_tokens.weight", "language_model.lm_head.weight",
        "language_model.model.layers.31.self_attn.q_proj.weight", "language_model.model.layers.0.mlp.gate_proj.weight",
        "language_model.model.layers.31.post_attention_layernorm.weight", "language_model.model.norm.weight",
    ):  # fmt: skip
        assert name in names, name
    assert names["language_model.model.embed_tokens.weight"].shape == (32_064, 4096)


def test_the_prompt_is_the_published_one_and_ends_as_it_must(model: OpenVLA, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model.prompts, "tokenizer", lambda text: asked.append(text) or {"input_ids": [9, 8]})
    _, ids, valid = model.prepare(make_batch(["Put the SPOON down"]).inputs())
    assert asked == ["In: What action should the robot take to put the spoon down?\nOut:"]
    assert ids.tolist() == [[9, 8, 5]]
    assert valid.all()


def test_a_batch_of_mixed_lengths_decodes_as_one_by_one(model: OpenVLA) -> None:
    batch = make_batch([SHORT, LONG, SHORT])
    together = model.generate(*model.prepare(batch.inputs()))
    for i, sentence in enumerate(batch.instructions):
        alone = replace(
            make_batch([sentence]), images=batch.images[i : i + 1], initial_images=batch.initial_images[i : i + 1]
        )
        assert torch.equal(model.generate(*model.prepare(alone.inputs())), together[i : i + 1])


@torch.no_grad()
def prompt(model: OpenVLA, batch: Batch) -> Tensor:
    """What transformers would be given: no padding."""
    images, ids, valid = model.prepare(batch.inputs())
    assert valid.all()
    words = model.model.embed(ids)
    return torch.cat([words[:, :1], model.model.look(images), words[:, 1:]], 1)


def test_greedy_decoding_is_transformers_own(model: OpenVLA) -> None:
    batch = make_batch([LONG, LONG])
    theirs = model.model.language_model.generate(
        inputs_embeds=prompt(model, batch), max_new_tokens=ACTIONS, min_new_tokens=ACTIONS, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(model.generate(*model.prepare(batch.inputs())), theirs)


def test_the_loss_is_transformers_own_on_actions_and_end(model: OpenVLA) -> None:
    batch = make_batch([LONG, LONG])
    before = prompt(model, batch)
    ids = torch.cat([320 - bins_of(batch.actions[:, 0, 0, 0]), torch.full((2, 1), 2)], 1)
    labels = torch.cat([torch.full(before.shape[:2], -100), ids], 1)
    embeddings = torch.cat([before, model.model.embed(ids)], 1)
    theirs = model.model.language_model(inputs_embeds=embeddings, labels=labels).loss
    torch.testing.assert_close(model.loss(batch), theirs, rtol=1e-5, atol=1e-6)


def test_only_actions_that_count_cost(model: OpenVLA) -> None:
    batch = make_batch([SHORT, LONG])
    mask = batch.mask.clone()
    mask[1] = False
    assert torch.equal(model.loss(replace(batch, mask=mask)), model.loss(replace(make_batch([SHORT, LONG]), mask=mask)))
    first = replace(
        make_batch([SHORT]), images=batch.images[:1], initial_images=batch.initial_images[:1], actions=batch.actions[:1]
    )
    torch.testing.assert_close(model.loss(replace(batch, mask=mask)), model.loss(first), rtol=1e-5, atol=1e-6)
    assert model.loss(replace(batch, mask=torch.zeros_like(mask))) == 0


def test_a_chunk_is_the_centres_of_the_written_bins(model: OpenVLA) -> None:
    tensors = model.prepare(make_batch([LONG, SHORT]).inputs())
    assert torch.equal(model.infer(*tensors)[:, 0], values_of(320 - model.generate(*tensors)))


def test_an_instruction_longer_than_the_context_is_refused(model: OpenVLA) -> None:
    with pytest.raises(UserError, match="prompt of .* tokens, but the language model has room for 56"):
        model.prepare(make_batch([" ".join(["find"] * 60)]).inputs())


def test_the_example_is_shaped_like_what_is_prepared(model: OpenVLA) -> None:
    tensors = model.prepare(make_batch([LONG]).inputs())
    assert [(x.dtype, x.dim()) for x in model.example(1)] == [(x.dtype, x.dim()) for x in tensors]
    assert model.infer(*model.example(2)).shape == (2, 1, ACTIONS)


def test_it_overfits_32_samples(config: OpenVLAConfig) -> None:
    torch.manual_seed(0)
    model, batch = OpenVLA(config), make_batch([SHORT, LONG] * 16)
    optimizer = torch.optim.Adam(model.trained_parameters().values(), lr=5e-3)
    first = model.loss(batch).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.05 * first
    assert model.action_token_accuracy(batch) > 0.95
    chunk = model.eval().infer(*model.prepare(batch.inputs()))
    assert (chunk - batch.actions[:, 0, 0]).abs().mean() < 0.02


@pytest.fixture
def published(config: OpenVLAConfig, tmp_path: Path) -> tuple[OpenVLAConfig, OpenVLA, Path]:
    """A tiny model in a folder like the published one: two shards, an index, statistics."""
    fused = FusedVision(
        SIDE,
        replace(DINO_L, width=8, layers=2, heads=2, mlp=16, patch=8),
        replace(SIGLIP_SO400M, width=12, layers=2, heads=2, mlp=16, patch=8),
    )
    shape = replace(config, model=replace(config.model, vision=fused), source=str(tmp_path))
    model = tiny.seeded(OpenVLA, shape, False, seed=3)
    tensors = {name: value.detach().clone() for name, value in model.model.named_parameters()}
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    places = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    stats = {key: {"action": {"q01": [0.0], "q99": [1.0], "mask": [True]}} for key in ("bridge_orig", "kuka")}
    (tmp_path / "config.json").write_text(json.dumps({"norm_stats": stats}))
    return shape, model, tmp_path


def test_published_weights_are_read_by_their_names(published) -> None:
    config, model, _ = published
    loaded = tiny.seeded(config.build, True, seed=9)
    assert all(torch.equal(loaded.get_parameter(name), value) for name, value in model.named_parameters())


def rewrite(folder: Path, change) -> None:
    """Change the first shard and the index."""
    from safetensors.torch import load_file

    file = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    index = {name: place for name, place in index.items() if place != file.name} | dict.fromkeys(tensors, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


DAMAGES = {
    "missing": (lambda folder: rewrite(folder, lambda t: t.pop(sorted(t)[0])), "1 tensors are missing"),
    "unknown": (lambda folder: rewrite(folder, lambda t: t.update(odd=torch.zeros(1))), "1 unknown \\['odd'\\]"),
    "mis-shaped": (
        lambda folder: rewrite(folder, lambda t: t.update({sorted(t)[0]: torch.zeros(5, 5)})), "has shape \\(5, 5\\)"),
    "cut": (
        lambda folder: (folder / "model-00002-of-00002.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
        "cannot be read"),
    "lacking": (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "lacks model-00002"),
    "index": (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "is damaged"),
    "outside": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x": "../secret.safetensors"}})
        ), "no file of its folder"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_in_a_sentence(published, damage, words: str) -> None:
    _, model, folder = published
    damage(folder)
    with pytest.raises(UserError, match=words):
        load_published(str(folder), model.model)


def test_a_pickle_is_never_opened(published, tmp_path: Path) -> None:
    _, model, _ = published
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match="pickled weights .pytorch_model.bin., which are never opened"):
        load_published(str(tmp_path / "old"), model.model)


def test_statistics_are_asked_for_by_name(published) -> None:
    path = published[2] / "config.json"
    assert read_statistics(path, "kuka") == {"action": {"q01": [0.0], "q99": [1.0], "mask": [True]}}
    with pytest.raises(UserError, match="no dataset 'bridge_dataset': say bridge_orig"):
        read_statistics(path, "bridge_dataset")
    with pytest.raises(UserError, match="several datasets: say bridge_orig or kuka"):
        read_statistics(path)
