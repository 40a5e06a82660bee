"""RT-1 and RT-1-X: published sizes, masks, bins and windows, at tiny size where something is computed (spec 6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny

from hypervla.baselines.rt1 import ACTIONS, RT1, RT1_X, RT1Config, RT1Policy, RT1Transformer, block_mask
from hypervla.baselines.rt1_actions import ARM_4, ActionTokens
from hypervla.baselines.rt1_sentence import EmbeddingTable, SentenceEncoder, write_embeddings
from hypervla.baselines.rt1_vision import FilmEfficientNet
from hypervla.contracts import UserError
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import Batch, Inputs, ModelConfig, Monolithic

SENTENCES = ("open the drawer", "close the drawer")
SIDE, WINDOW = 32, 3


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingTable:
    path, random = tmp_path_factory.mktemp("sentences") / "table.safetensors", np.random.default_rng(0)
    write_embeddings(path, {sentence: random.standard_normal(8).astype(np.float32) for sentence in SENTENCES})
    return EmbeddingTable(str(path), width=8)


@pytest.fixture
def config(table: EmbeddingTable) -> RT1Config:
    return RT1Config(
        sentence=table,
        vision=FilmEfficientNet(SIDE, width=0.2, depth=0.1, features=16, tokens=3, momentum=0.5, source=None),
        transformer=RT1Transformer(layers=2, heads=2, key=12),
        actions=ActionTokens(columns=ARM_4, bins=16),
        window=WINDOW,
    )


def build(config: RT1Config) -> RT1Policy:
    """In evaluation mode, with FiLM, running statistics and places that do something."""
    model = tiny.seeded(config.build).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.trained_parameters().items():
            if "film" in name or "running_mean" in name:
                value.normal_(std=0.1, generator=random)
            if "position.weight" in name:
                value.normal_(generator=random)
    return model


def make_batch(contexts: int = 4, window: int = WINDOW, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    shape = (contexts, 1, window)
    actions = torch.rand(*shape, 1, 4, generator=random) * 2 - 1
    actions[..., 3] = (actions[..., 3] > 0).float()
    images = torch.randint(256, (*shape, 1, SIDE, SIDE, 3), dtype=torch.uint8, generator=random)
    return Batch(
        instructions=[SENTENCES[i % 2] for i in range(contexts)],
        initial_images=images[:, 0, 0],
        images=images,
        timestep_mask=torch.ones(shape, dtype=torch.bool),
        proprio=None,
        actions=actions,
        mask=torch.ones_like(actions, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("config", "total", "parts"),
    [
        (RT1, 35_252_128, {"token_learner": 34_376, "transformer": 19_245_056, "output": 131_328}),
        (RT1_X, 56_896_809, {"token_learner": 39_121, "transformer": 40_885_248, "output": 262_656}),
    ],
    ids=["RT-1", "RT-1-X"],
)
def test_the_published_sizes(config: RT1Config, total: int, parts: dict[str, int]) -> None:
    with torch.device("meta"):
        model = config.build(pretrained=False)
    shared = {"backbone": 10_696_232, "film": 3_701_808 + 525_312, "image_projection": 786_432}
    unused = {"unused_embedding": 131_584} if config is RT1 else {}
    assert model.parts() == {**shared, **parts, **unused}
    assert sum(parameter.numel() for parameter in model.parameters()) == total == sum(model.parts().values())
    assert model.activated() == total - sum(unused.values())
    assert len(model.vision.films) == 26


def blocks(rows: list[str], sizes: list[int]) -> np.ndarray:
    """A table of blocks: 1 all, 0 nothing, / the triangle up to the diagonal."""
    fill = {"1": np.ones, "0": np.zeros, "/": lambda shape: np.tri(*shape)}
    return np.block(
        [[fill[cell]((sizes[i], sizes[j])) for j, cell in enumerate(row)] for i, row in enumerate(rows)]
    ).astype(bool)


@pytest.mark.parametrize(
    ("images_see_actions", "rows"),
    [  # images, actions, images, actions of two steps
        (True, ["/000", "1000", "11/0", "1010"]),
        (False, ["/000", "1000", "10/0", "1010"]),
    ],
    ids=["RT-1", "RT-1-X"],
)
def test_the_mask_is_the_table_of_the_spec(images_see_actions: bool, rows: list[str]) -> None:
    np.testing.assert_array_equal(block_mask(2, 3, images_see_actions).numpy(), blocks(rows, [3, 11, 3, 11]))


@pytest.mark.parametrize("images_see_actions", [True, False])
def test_an_action_token_is_heard_at_its_own_place_and_by_later_images_at_most(images_see_actions: bool) -> None:
    config = RT1Transformer(layers=3, heads=2, key=12, images_see_actions=images_see_actions)
    base = RT1Config(EmbeddingTable("none", 8), transformer=config, window=2)
    model = replace(base, vision=FilmEfficientNet(SIDE, 0.2, 0.1, features=16, tokens=3)).build(False).eval()
    x = torch.randn(1, 2 * 14, 16)
    other = x.clone()
    other[0, 5] += 1  # the third action token of the first step
    changed = (model.transformer(x, model.mask) != model.transformer(other, model.mask)).any(-1)[0]
    heard = {5, *range(14, 28)} if images_see_actions else {5}
    assert set(changed.nonzero().flatten().tolist()) == heard


def test_one_pass_is_the_published_loop_of_eleven(config: RT1Config) -> None:
    model, batch = build(config), make_batch()
    images, real, sentence = model.prepare(batch.inputs())
    tokens = torch.zeros(4, WINDOW, ACTIONS, dtype=torch.long)
    assert model.unused is not None
    one_pass = model.output(model.attend(model.look(images, real, sentence)))[:, -1]
    for k in range(ACTIONS):
        embedded = torch.zeros_like(model.unused(torch.nn.functional.one_hot(tokens, 16).float()))
        steps = torch.cat([model.look(images, real, sentence), embedded], 2)
        logits = model.output(model.transformer(steps.flatten(1, 2), model.mask))[:, (WINDOW - 1) * 14 + 3 + k - 1]
        torch.testing.assert_close(logits, one_pass[:, k])
        tokens[:, -1, k] = logits.argmax(-1)
    torch.testing.assert_close(model.infer(images, real, sentence)[:, 0], config.actions.decode(tokens[:, -1]))


@pytest.mark.parametrize("start", ["shifted", "zeros"])
def test_what_is_repeated_before_the_first_observation_does_not_matter(config: RT1Config, start: str) -> None:
    model = build(replace(config, start=start))
    inputs = make_batch().inputs()
    real = torch.tensor([[False, False, True], [False, True, True], [True, True, True], [False, False, True]])
    inputs = replace(inputs, timestep_mask=real)
    other = replace(inputs, images=torch.where(real[:, :, None, None, None, None], inputs.images, 255 - inputs.images))
    features = [model.attend(model.look(*model._window(x.images[:, :, 0], real)[:2], model.prepare(x)[2]))
                for x in (inputs, other)]  # fmt: skip
    place = real.sum(1) - 1 if start == "shifted" else torch.full((4,), 2)
    first, second = (x[torch.arange(4), place] for x in features)
    torch.testing.assert_close(first, second)
    expected = config.actions.decode(model.output(first).argmax(-1))
    torch.testing.assert_close(model.infer(*model.prepare(other))[:, 0], expected)


def test_an_episode_begins_at_the_left_end_of_the_window(config: RT1Config) -> None:
    """The published controller writes its first image to place 0 and reads the action there."""
    model, inputs = build(config), make_batch().inputs()
    images, real, sentence = model.prepare(inputs)
    at_place_0 = model.attend(model.look(images.flip(1), real, sentence))[:, 0]
    first = torch.tensor([False, False, True]).expand(4, 3)
    expected = config.actions.decode(model.output(at_place_0).argmax(-1))
    torch.testing.assert_close(model.infer(images, first, sentence)[:, 0], expected)


def test_before_an_episode_rt1_x_sees_black_and_hears_nothing(config: RT1Config) -> None:
    model = build(replace(config, start="zeros"))
    images, _, sentence = model.prepare(make_batch().inputs())
    real = torch.tensor([False, True, True]).expand(4, 3)
    tokens = model.look(images, real, sentence)[:, 0]
    torch.testing.assert_close(tokens, model.vision(torch.zeros_like(images[:, 0]), torch.zeros_like(sentence)))


@pytest.mark.parametrize("start", ["shifted", "zeros"])
def test_the_loss_is_the_cross_entropy_of_what_counts(config: RT1Config, start: str) -> None:
    model, batch = build(replace(config, start=start)), make_batch(2)
    batch.timestep_mask[0, 0, 0] = False
    batch.mask[1, 0, 2, 0, 1] = False
    images, real, sentence = model.prepare(batch.inputs())
    images, seen, order = model._window(images, real)
    logits = model.output(model.attend(model.look(images, seen, sentence)))
    losses: list[list[float]] = [[], []]
    for b, place in np.ndindex(2, WINDOW):
        t = int(order[b, place])
        target = config.actions.encode(batch.actions[b, 0, t, 0])
        for k in range(ACTIONS):
            if batch.timestep_mask[b, 0, t] and (b, t, k) != (1, 2, 2):
                losses[b].append(-logits[b, place, k].log_softmax(-1)[target[k]].item())
    assert [len(x) for x in losses] == [22, 32]
    assert model.loss(batch).item() == pytest.approx(np.mean([np.mean(x) for x in losses]), rel=1e-5)


def test_a_sample_that_does_not_count_costs_nothing(config: RT1Config) -> None:
    model, batch = build(config), make_batch(1)
    batch.mask[:] = False
    assert model.loss(batch).item() == 0


def test_running_statistics_are_trained_weights_with_keras_momentum(config: RT1Config) -> None:
    model = replace(config, vision=replace(config.vision, momentum=0.9)).build().train()
    norm = model.vision.efficientnet.embeddings.batchnorm
    seen: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    model.loss(make_batch())
    name = "vision.efficientnet.embeddings.batchnorm.running_mean"
    torch.testing.assert_close(model.trained_parameters()[name], 0.1 * seen[0].mean((0, 2, 3)))
    before = {name: value.clone() for name, value in model.trained_parameters().items()}
    model.eval().loss(make_batch(seed=1))
    assert all(value.equal(before[name]) for name, value in model.trained_parameters().items())


def test_another_model_with_the_trained_weights_acts_the_same(config: RT1Config) -> None:
    model, copy = build(config), tiny.seeded(config.build, seed=5).eval()
    for name, value in copy.trained_parameters().items():
        value.data.copy_(model.trained_parameters()[name])
    tensors = model.prepare(make_batch().inputs())
    assert copy.attend(copy.look(*tensors)).equal(model.attend(model.look(*tensors)))
    assert not any(name.startswith("unused") for name in copy.trained_parameters())


def test_dropping_is_for_training_and_drops_whole_branches(config: RT1Config) -> None:
    vision = replace(config.vision, drop_connect=0.7)
    drop = vision.build(8, pretrained=False).efficientnet.encoder.blocks[5].projection.dropout
    assert drop.rate == pytest.approx(0.5)
    kept = drop.train()(torch.ones(200, 2, 3, 3)).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept == kept[:, :1]).all()
    assert drop.eval()(torch.ones(5, 2, 3, 3)).eq(1).all()
    model = build(config)
    tokens = torch.randn(2, WINDOW, 3, 16)
    assert model.attend(tokens).equal(model.attend(tokens))
    assert not model.train().attend(tokens).equal(model.attend(tokens))


def test_it_is_a_monolithic_model(config: RT1Config) -> None:
    model = build(config)
    assert isinstance(config, ModelConfig)
    assert isinstance(model, Monolithic)
    assert (config.window, config.horizon, config.action_size, config.cameras, config.proprio_size) == (3, 1, 4, 1, 0)
    example, prepared = model.example(4), model.prepare(make_batch().inputs())
    assert [(x.shape, x.dtype) for x in example] == [(x.shape, x.dtype) for x in prepared]
    chunk = model.infer(*example)
    assert chunk.shape == (4, 1, 4)
    assert {model.role(name) for name in model.trained_parameters()} == {"backbone", "plain"}


def test_an_unknown_sentence_is_refused_with_near_ones(config: RT1Config) -> None:
    model, inputs = build(config), make_batch(1).inputs()
    with pytest.raises(UserError, match="'open the drawers' is none of the 2 sentences.*'open the drawer'"):
        model.prepare(replace(inputs, instructions=["open the drawers"]))


def test_another_text_encoder_is_pooled_over_real_tokens_only(config: RT1Config, tmp_path: Path) -> None:
    folder = str(tiny.write_text_encoder(tmp_path / "text"))
    sentences = [tiny.INSTRUCTIONS[0], tiny.INSTRUCTIONS[-1]]
    models = [
        build(replace(config, sentence=SentenceEncoder(InstructionEncoder("t5", folder, length, 16), width=8)))
        for length in (8, 12)
    ]
    vectors = [model.sentence(sentences) for model in models]
    torch.testing.assert_close(vectors[0], vectors[1])
    torch.testing.assert_close(vectors[0].norm(dim=-1), torch.ones(2))
    trained = models[0].trained_parameters()
    assert "sentence.projection.weight" in trained
    assert not any("encoder.model" in name for name in trained)
    assert models[0].infer(*models[0].example(2)).shape == (2, 1, 4)


def test_it_overfits_32_samples(config: RT1Config) -> None:
    vision = replace(config.vision, features=32, drop_connect=0.0)
    config = replace(config, vision=vision, transformer=replace(config.transformer, dropout=0.0), window=1)
    model, batch = tiny.seeded(config.build).train(), make_batch(32, window=1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 6e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(100):
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            optimizer.step()
    inputs, target = batch.inputs(), config.actions.encode(batch.actions[:, 0, 0, 0])
    assert model.eval().loss(batch).item() < 0.1
    reached = config.actions.decode(target).unsqueeze(1)
    assert (model.infer(*model.prepare(inputs)) - reached).abs().lt(1e-3).float().mean() > 0.97


@pytest.mark.traced
def test_the_training_step_is_one_graph(config: RT1Config) -> None:
    config = replace(
        config,
        vision=replace(config.vision, drop_connect=0.0),
        transformer=replace(config.transformer, dropout=0.0, layers=1),
    )
    model, other, batch = build(config).train(), build(config).train(), make_batch()
    other.loss_of_tensors = torch.compile(other.loss_of_tensors, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(other.loss(batch), model.loss(batch))
    for name, value in model.trained_parameters().items():
        torch.testing.assert_close(other.trained_parameters()[name], value)


def test_a_goal_told_by_an_image_alone_is_refused(config: RT1Config) -> None:
    inputs: Inputs = replace(make_batch(1).inputs(), instructions=[""])
    with pytest.raises(UserError, match="'' is none of"):
        build(config).prepare(inputs)
