"""Context → weights: what the hypernetwork sees, how it starts and how one step of training moves it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import WeightSpec
from hypervla.models.action_head import ReleasedHead
from hypervla.models.base_policy import BasePolicy
from hypervla.models.hypernetwork import POSITION_STD, Hypernetwork, HypernetworkConfig, initial_weight

WIDTH = 16
POLICY = BasePolicy(
    width=16, layers=2, heads=2, mlp=64, token_width=96, tokens=24, proprio_size=0, head=ReleasedHead(2, 3, 2)
)
TRUNCATED = 0.8796
"""Standard deviation of a normal cut at two of its own, as a share of it."""


def hypernetwork(**changes) -> Hypernetwork:
    config = HypernetworkConfig(**{"width": WIDTH, "layers": 2, "heads": 2, "mlp": 32, **changes})
    torch.manual_seed(0)
    return Hypernetwork(
        config, POLICY.layout, instruction_tokens=5, instruction_width=6, images=2, image_width=7
    ).double()


def contexts(count: int = 4) -> dict[str, Tensor]:
    """Task contexts of 5 tokens, the last two of them padding, and 2 images."""
    random = torch.Generator().manual_seed(1)
    return {
        "instruction": torch.randn(count, 5, 6, generator=random, dtype=torch.float64),
        "instruction_mask": torch.tensor([[True, True, True, False, False]]).repeat(count, 1),
        "image": torch.randn(count, 2, 7, generator=random, dtype=torch.float64),
        "image_mask": torch.ones(count, 2, dtype=torch.bool),
    }


def policies(network: Hypernetwork, context: dict[str, Tensor]) -> Tensor:
    return network.generate(network.embed(**context))


# One step of training (paper, section 3.3.2)


@pytest.mark.parametrize("normalise", [True, False])
def test_one_sgd_step_moves_the_generated_weights_by_the_embeddings_square_and_one(normalise: bool) -> None:
    network, context, rate = hypernetwork(normalise_embedding=normalise), contexts(count=1), 1e-3
    heads = [*network.kernel_heads.parameters(), *network.other_heads.parameters()]
    network.requires_grad_(False)
    for parameter in heads:
        parameter.requires_grad_()

    before = policies(network, context)
    before.retain_grad()
    (before.sin() * torch.linspace(-3, 3, before.numel(), dtype=torch.float64)).sum().backward()
    torch.optim.SGD(heads, lr=rate).step()

    squares = network.embed(**context).square().sum()
    moved = policies(network, context) - before
    torch.testing.assert_close(moved, -rate * (squares + 1) * before.grad, rtol=1e-9, atol=1e-14)
    assert float(squares) == pytest.approx(1 if normalise else WIDTH, rel=1e-3)


@pytest.mark.parametrize("width", [8, 32, 128])
def test_dividing_by_the_root_of_the_width_makes_the_squares_sum_to_one(width: int) -> None:
    squares = hypernetwork(width=width).embed(**contexts()).square().sum(-1)
    torch.testing.assert_close(squares, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-3)


# How it starts


def test_bias_hyperinit_starts_every_task_from_one_policy() -> None:
    network = hypernetwork()
    embedding = network.embed(**contexts())
    assert (embedding.std(0) > 0.01).any()
    generated = network.generate(embedding)
    assert torch.equal(generated, generated[:1].expand(4, -1))


def test_bias_hyperinit_gives_the_context_encoder_no_gradient_until_the_heads_have_moved() -> None:
    network, context = hypernetwork(), contexts()
    others = [p for name, p in network.named_parameters() if "_heads." not in name]

    def gradients() -> list[Tensor]:
        network.zero_grad()
        policies(network, context).sin().sum(-1).square().sum().backward()
        return [p.grad for p in others]

    assert not any(gradient.any() for gradient in gradients())
    assert network.kernel_heads.weight.grad.any()
    torch.optim.SGD(network.parameters(), lr=1e-3).step()
    assert any(gradient.any() for gradient in gradients())


def test_bias_hyperinit_is_an_ordinary_initialisation_of_the_policy() -> None:
    weights = POLICY.layout.split(policies(hypernetwork(), contexts())[0].detach())
    assert all((weights[spec.name] == 1).all() for spec in POLICY.layout.specs if spec.kind == "scale")
    assert float(weights["position"].std()) == pytest.approx(POSITION_STD, rel=0.15)
    assert float(weights["image.kernel"].std()) == pytest.approx(96**-0.5, rel=0.1)
    up = weights["layers.0.up.kernel"]
    assert float(up.abs().max()) == pytest.approx((6 / (16 + 64)) ** 0.5, rel=0.02)
    assert float(up.std()) == pytest.approx((2 / (16 + 64)) ** 0.5, rel=0.1)
    assert 0 < float(weights["layers.0.down.bias"].abs().max()) < 1e-5
    assert not weights["layers.0.query.bias"].any()
    assert not weights["head.arm.bias"].any()


def rows(network: Hypernetwork) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrix rows and bias of each generated tensor's head."""
    matrix = torch.cat([network.kernel_heads.weight, network.other_heads.weight]).detach()
    bias = torch.cat([network.kernel_heads.bias, network.other_heads.bias]).detach()
    return {
        spec.name: (matrix[at : at + spec.size], bias[at : at + spec.size])
        for spec, at in zip(POLICY.layout.specs, POLICY.layout.offsets, strict=True)
    }


@pytest.mark.parametrize(("normalise", "scale"), [(True, 1.0), (False, WIDTH**-0.5)])
def test_variance_initialisation_scales_the_heads_by_the_fan_in_of_what_they_generate(
    normalise: bool, scale: float
) -> None:
    heads = rows(hypernetwork(initialisation="variance", normalise_embedding=normalise))
    for spec in POLICY.layout.specs:
        matrix, bias = heads[spec.name]
        if spec.kind in ("kernel", "position"):
            nominal = POSITION_STD if spec.kind == "position" else spec.shape[0] ** -0.5
            assert float(matrix.std()) == pytest.approx(scale * TRUNCATED * nominal, rel=0.05), spec.name
            assert float(matrix.abs().max()) <= 2 * scale * nominal
        else:
            assert not matrix.any(), spec.name
        assert (bias == (1 if spec.kind == "scale" else 0)).all(), spec.name


def test_variance_initialisation_starts_every_task_from_its_own_policy_of_ordinary_size() -> None:
    generated = policies(hypernetwork(initialisation="variance"), contexts()).detach()
    assert (generated[:, None] != generated).any(-1).sum() == 4 * 3
    kernel = POLICY.layout.split(generated)["image.kernel"]
    assert float(kernel.std()) == pytest.approx(TRUNCATED * 96**-0.5, rel=0.2)


@pytest.mark.parametrize("kind", ["bias", "kernel", "scale", "position"])
def test_a_tensor_with_no_weights_of_its_own_is_all_zero_but_for_scales(kind: str) -> None:
    spec = WeightSpec("norm", (3, 4), kind, fan=(3, 4))
    assert (initial_weight(spec, bias_only=True) == (kind == "scale")).all()


# What it sees


def with_noise(context: dict[str, Tensor], name: str, *at) -> dict[str, Tensor]:
    changed = context[name].clone()
    changed[at] += 10
    return {**context, name: changed}


@pytest.fixture
def network() -> Hypernetwork:
    return hypernetwork(initialisation="variance")


def test_padding_is_seen_by_nobody(network: Hypernetwork) -> None:
    context = contexts()
    embedding = network.embed(**context)
    for token in (3, 4):
        assert torch.equal(network.embed(**with_noise(context, "instruction", slice(None), token)), embedding)
    for token in (0, 1, 2):
        changed = network.embed(**with_noise(context, "instruction", slice(None), token))
        assert not torch.isclose(changed, embedding).all(-1).any()


def test_a_hidden_image_is_seen_by_nobody(network: Hypernetwork) -> None:
    context = contexts()
    context["image_mask"][0, 1] = False
    embedding, changed = network.embed(**context), network.embed(**with_noise(context, "image", slice(None), 1))
    assert torch.equal(changed[0], embedding[0])
    assert not torch.isclose(changed[1:], embedding[1:]).all(-1).any()


def test_the_context_token_is_seen_by_itself_only(network: Hypernetwork) -> None:
    seen: list[Tensor] = []
    network.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    network.embed(**contexts())
    with torch.no_grad():
        network.context_token += torch.randn(WIDTH, dtype=torch.float64)
    network.embed(**contexts())
    assert torch.equal(seen[0][:, :-1], seen[1][:, :-1])
    assert not torch.isclose(seen[0][:, -1], seen[1][:, -1]).all(-1).any()


def test_without_language_only_the_image_speaks(network: Hypernetwork) -> None:
    context = contexts()
    context["instruction_mask"][:] = False
    embedding = network.embed(**context)
    for token in range(5):
        assert torch.equal(network.embed(**with_noise(context, "instruction", slice(None), token)), embedding)
    changed = network.embed(**with_noise(context, "image", slice(None), 0))
    assert not torch.isclose(changed, embedding).all(-1).any()


def test_with_nothing_to_see_embedding_and_gradients_are_finite(network: Hypernetwork) -> None:
    context = contexts()
    context["instruction_mask"][:] = False
    context["image_mask"][:] = False
    embedding = network.embed(**context)
    assert torch.equal(embedding, embedding[:1].expand(4, -1))
    embedding.sin().sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_context_is_read_by_itself(network: Hypernetwork) -> None:
    context = contexts()
    alone = [policies(network, {name: x[i : i + 1] for name, x in context.items()}) for i in range(4)]
    torch.testing.assert_close(policies(network, context), torch.cat(alone), rtol=1e-10, atol=1e-12)


def test_the_context_encoder_is_torchs_own_pre_norm_transformer(network: Hypernetwork) -> None:
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    ours = network.encoder(x, mask[None, None].expand(2, 1, 5, 5))
    for layer in network.encoder.layers:
        reference = torch.nn.TransformerEncoderLayer(
            WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=True, layer_norm_eps=1e-6, dtype=torch.float64,
            activation=lambda y: F.gelu(y, approximate="tanh"),
        )  # fmt: skip
        own = {name: parameter for name, parameter in layer.named_parameters()}
        reference.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([own[f"{n}.weight"] for n in ("query", "key", "value")]),
                "self_attn.in_proj_bias": torch.cat([own[f"{n}.bias"] for n in ("query", "key", "value")]),
                **{f"{theirs}.{part}": own[f"{ours}.{part}"] for part in ("weight", "bias") for ours, theirs in (
                    ("out", "self_attn.out_proj"), ("up", "linear1"), ("down", "linear2"),
                    ("norm1", "norm1"), ("norm2", "norm2"),
                )},
            }
        )  # fmt: skip
        x = reference(x, src_mask=~mask)
    torch.testing.assert_close(ours, network.encoder.norm(x), rtol=1e-9, atol=1e-11)
