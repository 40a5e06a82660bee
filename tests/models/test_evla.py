"""EVLA's modes: what each may see, transformers' own Qwen2 as the reference, padding, batches and published size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import UserError
from hypervla.models.action_tokens import BINS, bins_of, values_of
from hypervla.models.backbones import ConvNet
from hypervla.models.evla import END, EVLA_1B, Evla, EvlaConfig
from hypervla.models.interface import Batch, ModelConfig, Monolithic
from hypervla.models.lora import LoRA
from hypervla.models.vision_language import QWEN2_05B, VisionLanguage

SIDE, ACTIONS = 16, 3
SHORT, LONG = "find", "flee from the point at once"
MODES = ["joint", "ar_causal", "evla_released", "evla_released_literal"]
SAFE = MODES[:3]


@pytest.fixture(scope="module")
def config(text_folder: Path) -> EvlaConfig:
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 48, "vocabulary": 64, "context": 64}
    language = replace(QWEN2_05B, **sizes, tokenizer=str(text_folder))
    return EvlaConfig(VisionLanguage(ConvNet(SIDE, (4, 8), 4), (16,), language), ACTIONS)


def build(config: EvlaConfig, mode: str, seed: int = 0) -> Evla:
    """With weights large enough that everything that can be seen is felt."""
    model = tiny.seeded(Evla, replace(config, mode=mode), seed=seed).eval()
    return tiny.loud(model)


def make_batch(sentences: list[str], seed: int = 0, horizon: int = 1) -> Batch:
    random = torch.Generator().manual_seed(seed)
    count = len(sentences)
    actions = torch.rand(count, 1, 1, horizon, ACTIONS, generator=random) * 2 - 1
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


def part(batch: Batch, i: int) -> Batch:
    """One sample alone."""
    tensors = {name: x[i : i + 1] for name, x in vars(batch).items() if isinstance(x, Tensor)}
    return replace(batch, instructions=batch.instructions[i : i + 1], **tensors)


@torch.no_grad()
def logits(model: Evla, batch: Batch) -> Tensor:
    bins, _ = model._targets(batch)
    return model._logits(bins, *model.prepare(batch.inputs()))


@pytest.mark.parametrize("mode", MODES)
def test_it_fulfils_the_protocols(config: EvlaConfig, mode: str) -> None:
    model = build(config, mode)
    assert isinstance(model, Monolithic)
    assert isinstance(model.config, ModelConfig)
    assert sum(model.parts().values()) == sum(p.numel() for p in model.parameters())
    assert model.infer(*model.example(2)).shape == (2, 1, ACTIONS)


@pytest.mark.parametrize("mode", SAFE)
def test_padding_and_company_change_nothing(config: EvlaConfig, mode: str) -> None:
    model, batch = build(config, mode), make_batch([SHORT, LONG, SHORT, LONG])
    together = logits(model, batch)
    chunks = model.infer(*model.prepare(batch.inputs()))
    for i in range(4):
        alone = part(batch, i)
        torch.testing.assert_close(logits(model, alone), together[i : i + 1], rtol=1e-4, atol=1e-4)
        assert torch.equal(model.infer(*model.prepare(alone.inputs())), chunks[i : i + 1])


def test_the_released_mask_makes_a_short_sample_depend_on_its_company(config: EvlaConfig) -> None:
    """The last 8 columns of a padded batch are a long sample's actions, but a short one's padding."""
    model, batch = build(config, "evla_released_literal"), make_batch([SHORT, LONG])
    together = logits(model, batch)
    longest, shortest = logits(model, part(batch, 1)), logits(model, part(batch, 0))
    torch.testing.assert_close(longest, together[1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(shortest, together[:1], rtol=1e-2, atol=1e-2)


def changed(batch: Batch, column: int) -> Batch:
    """The same with one action dimension in another bin."""
    actions = batch.actions.clone()
    actions[..., column] = -actions[..., column]
    return replace(batch, actions=actions)


def test_jointly_no_prediction_reads_an_action(config: EvlaConfig) -> None:
    model, batch = build(config, "joint"), make_batch([SHORT, LONG])
    for column in range(ACTIONS):
        assert torch.equal(logits(model, batch), logits(model, changed(batch, column)))


@pytest.mark.parametrize(
    ("mode", "reads"),
    [
        # whether the prediction of (a1, a2, a3, end) changes when (a1, a2, a3) is another
        ("ar_causal", [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
        ("evla_released", [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_which_action_is_predicted_from_which(config: EvlaConfig, mode: str, reads: list[list[int]]) -> None:
    model, batch = build(config, mode), make_batch([SHORT, LONG])
    before = logits(model, batch)
    for column in range(ACTIONS):
        after = logits(model, changed(batch, column))
        differs = [int(not torch.allclose(before[:, k], after[:, k], atol=1e-5)) for k in range(ACTIONS + 1)]
        assert differs == reads[column]


def test_every_query_slot_sees_the_others(config: EvlaConfig) -> None:
    model, batch = build(config, "joint"), make_batch([SHORT])
    before = logits(model, batch)
    with torch.no_grad():
        model.queries[-1] += 1
    assert not torch.allclose(before[:, 0], logits(model, batch)[:, 0], atol=1e-4)


@torch.no_grad()
def test_the_causal_loss_is_transformers_own(config: EvlaConfig) -> None:
    """With the action tokens' rows in Qwen2's own vocabulary, all other words being impossible."""
    model, batch = build(config, "ar_causal"), make_batch([LONG, LONG])
    images, ids, words = model.prepare(batch.inputs())
    assert words.all()
    prompt = model.model.embed(ids)
    known = F.pad(bins_of(batch.actions[:, 0, 0, 0]) - 1, (0, 1), value=END)
    embeddings = torch.cat([prompt[:, :1], model.model.look(images), prompt[:, 1:], model.tokens(known)], 1)
    hidden = model.model.language_model.model(inputs_embeds=embeddings).last_hidden_state
    ours = hidden[:, -known.shape[1] - 1 : -1] @ model.tokens.weight.T
    wanted = F.cross_entropy(ours.flatten(0, 1), known.flatten())
    torch.testing.assert_close(model.loss(batch), wanted, rtol=1e-5, atol=1e-5)


def test_a_cache_writes_what_reading_again_writes(config: EvlaConfig) -> None:
    model, batch = build(config, "ar_causal"), make_batch([SHORT, LONG, LONG])
    tensors = model.prepare(batch.inputs())
    assert torch.equal(model.generate(*tensors), model.generate(*tensors, cached=False))


def test_written_actions_are_the_most_likely_given_themselves(config: EvlaConfig) -> None:
    for mode in ("ar_causal", "evla_released"):
        model, batch = build(config, mode), make_batch([SHORT, LONG])
        tensors = model.prepare(batch.inputs())
        bins = model.generate(*tensors)
        with torch.no_grad():
            found = model._logits(bins, *tensors)[:, :ACTIONS, :BINS].argmax(-1)
        assert torch.equal(found, bins)
        assert torch.equal(model.infer(*tensors)[:, 0], values_of(bins + 1))


@pytest.mark.parametrize("mode", MODES)
def test_only_actions_that_count_cost(config: EvlaConfig, mode: str) -> None:
    model, batch = build(config, mode), make_batch([SHORT, SHORT])
    mask = batch.mask.clone()
    mask[1] = False
    kept, alone = model.loss(replace(batch, mask=mask)), model.loss(part(batch, 0))
    torch.testing.assert_close(kept, alone, rtol=1e-5, atol=1e-5)
    assert model.loss(replace(batch, mask=torch.zeros_like(mask))) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_tiny_model_overfits_32_samples(config: EvlaConfig, mode: str) -> None:
    torch.manual_seed(0)
    model, batch = Evla(replace(config, mode=mode)), make_batch([SHORT, LONG] * 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first = model.loss(batch).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.1 * first
    assert model.action_token_accuracy(batch) > 0.95


def test_a_joint_chunk_has_a_slot_for_every_number(config: EvlaConfig) -> None:
    model = build(replace(config, horizon=2), "joint")
    batch = make_batch([SHORT, LONG], horizon=2)
    assert logits(model, batch).shape == (2, 2 * ACTIONS, BINS)
    assert model.infer(*model.prepare(batch.inputs())).shape == (2, 2, ACTIONS)


def test_an_instruction_longer_than_the_context_is_refused(config: EvlaConfig) -> None:
    with pytest.raises(UserError, match="prompt of .* tokens, but the language model has room for 56"):
        build(config, "joint").prepare(make_batch([" ".join(["find"] * 60)]).inputs())


def test_a_frozen_vision_and_adapters_leave_the_rest_alone(config: EvlaConfig) -> None:
    model = Evla(replace(config, frozen_vision=True, lora=LoRA(rank=2)))
    moving = {name for name, value in model.trained_parameters().items() if value.requires_grad}
    assert not [name for name in moving if name.startswith("model.vision_backbone.")]
    language = {name for name in moving if name.startswith("model.language_model.")}
    assert language
    assert all("lora_" in name for name in language)
    assert {"tokens.weight", "queries", "model.projector.fc1.weight"} <= moving


def test_the_published_size_and_its_parts() -> None:
    """493.8 M, 715.7 M with 15.2 M more of an unused pool, 2.75 M, as the spec counts; and the rows of our actions."""
    with torch.device("meta"):
        parts = EVLA_1B.build(pretrained=False).parts()
    assert parts["language_model"] == 493_803_392
    assert parts["backbone"] + parts["unused_vision"] == 303_230_976 + 412_442_352 + 15_238_352
    assert parts["projector"] == 2176 * 896 + 896 + 896 * 896 + 896 == 2_754_304
    assert parts["action_tokens"] == (257 + 7) * 896
    without = sum(parts.values()) - 15_238_352 - parts["action_tokens"]
    assert without == 1_212_231_024
