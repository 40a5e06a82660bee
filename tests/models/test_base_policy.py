"""The base policy is a plain transformer whose weights are an argument."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import WeightSpec
from hypervla.models.action_head import ReleasedHead
from hypervla.models.base_policy import BasePolicy, action_token_mask
from hypervla.models.generated import initial_weight, linear
from hypervla.models.layers import attention

HEAD = ReleasedHead(horizon=2, action_size=3, gripper_index=2)


def policy(tokens: int = 6, proprio: int = 0, layers: int = 3) -> BasePolicy:
    return BasePolicy(
        width=8, layers=layers, heads=2, mlp=12, token_width=5, tokens=tokens, proprio_size=proprio, head=HEAD
    )


SHAPES = {
    "one camera": policy(),
    "two cameras and proprio": policy(tokens=12, proprio=3),
    "one layer": policy(layers=1),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


class PlainPolicy(nn.Module):
    """The same policy with weights of its own. What the robot sees is encoded before the action token exists; the
    action token then looks at it and at itself, layer by layer."""

    def __init__(self, shape: BasePolicy, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.shape, self.weights = shape, weights

    def linear(self, name: str) -> nn.Linear:
        kernel = self.weights[f"{name}.kernel"]
        module = nn.Linear(*kernel.shape)
        module.load_state_dict({"weight": kernel.T, "bias": self.weights[f"{name}.bias"]})
        return module

    def norm(self, name: str) -> nn.LayerNorm:
        module = nn.LayerNorm(self.shape.width, eps=1e-6)
        module.load_state_dict({"weight": self.weights[f"{name}.scale"], "bias": self.weights[f"{name}.bias"]})
        return module

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.shape.heads, -1).transpose(0, 1)

    def block(self, i: int, rows: Tensor, seen: Tensor) -> Tensor:
        name, norm = f"layers.{i}", self.norm(f"layers.{i}.norm1")
        query = self.heads(self.linear(f"{name}.query")(norm(rows)))
        key, value = (self.heads(self.linear(f"{name}.{part}")(norm(seen))) for part in ("key", "value"))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        rows = rows + self.linear(f"{name}.out")(attended)
        hidden = F.gelu(self.linear(f"{name}.up")(self.norm(f"{name}.norm2")(rows)), approximate="tanh")
        return rows + self.linear(f"{name}.down")(hidden)

    def forward(self, tokens: Tensor, proprio: Tensor | None) -> Tensor:
        x = self.linear("image")(tokens)
        if proprio is not None:
            x = torch.cat([x, self.linear("proprio")(proprio)[None]])
        seen, action = x + self.weights["position"][:-1], self.weights["position"][-1:]
        for i in range(self.shape.layers):
            seen, action = self.block(i, seen, seen), self.block(i, action, torch.cat([seen, action]))
        return torch.cat([self.linear(name)(self.norm("norm")(action)) for name in ("head.arm", "head.gripper")], -1)[0]


def inputs(shape: BasePolicy, count: int = 3, frames: int = 2) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight sets with nothing at zero, tokens and proprio."""
    random = torch.Generator().manual_seed(1)
    flat = torch.randn(count, shape.layout.size, generator=random) * 0.3
    tokens = torch.randn(count, frames, shape.tokens, shape.token_width, generator=random)
    proprio = torch.randn(count, frames, shape.proprio_size, generator=random) if shape.proprio_size else None
    return flat, tokens, proprio


def outputs(shape: BasePolicy, flat: Tensor, tokens: Tensor, proprio: Tensor | None) -> Tensor:
    """The head's linear maps of the features: what comes before any squashing."""
    weights = shape.layout.split(flat)
    features = shape.features(weights, tokens, proprio)
    return torch.cat([linear(weights, part, features) for part in ("head.arm", "head.gripper")], -1)


@shapes
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad], ids=["with gradients", "without gradients"])
def test_it_equals_a_plain_torch_module_of_the_same_weights(shape: BasePolicy, mode) -> None:
    flat, tokens, proprio = inputs(shape)
    with mode():
        together = outputs(shape, flat, tokens, proprio)
        for n, f in ((0, 0), (2, 1)):
            plain = PlainPolicy(shape, shape.layout.split(flat[n]))
            alone = plain(tokens[n, f], None if proprio is None else proprio[n, f])
            torch.testing.assert_close(together[n, f], alone, rtol=1e-5, atol=1e-5)


@shapes
def test_many_tasks_at_once_equal_one_by_one(shape: BasePolicy) -> None:
    flat, tokens, proprio = inputs(shape, count=5)
    one_by_one = [
        outputs(shape, flat[n : n + 1], tokens[n : n + 1], None if proprio is None else proprio[n : n + 1])
        for n in range(5)
    ]
    torch.testing.assert_close(outputs(shape, flat, tokens, proprio), torch.cat(one_by_one), rtol=1e-5, atol=1e-5)


@shapes
def test_a_frame_is_read_by_itself(shape: BasePolicy) -> None:
    flat, tokens, proprio = inputs(shape)
    second = outputs(shape, flat, tokens[:, 1:], None if proprio is None else proprio[:, 1:])
    torch.testing.assert_close(outputs(shape, flat, tokens, proprio)[:, 1:], second, rtol=1e-5, atol=1e-5)


@shapes
def test_every_weight_and_every_input_matters(shape: BasePolicy) -> None:
    flat, tokens, proprio = inputs(shape, count=1, frames=1)
    wanted = [x.requires_grad_() for x in (flat, tokens, proprio) if x is not None]
    outputs(shape, flat, tokens, proprio).square().sum().backward()
    still = {name for name, gradient in shape.layout.split(flat.grad[0]).items() if not gradient.any()}
    assert still == set()
    assert all(x.grad.any() for x in wanted)


@pytest.mark.parametrize("mask", [None, action_token_mask(5, torch.device("cpu"))], ids=["open", "masked"])
def test_both_ways_to_attend_agree_in_value_and_gradient(mask: Tensor | None) -> None:
    query, key, value = torch.randn(3, 4, 2, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    written_out = attention(query, key, value, mask)
    with torch.no_grad():
        fused = attention(query, key, value, mask)
    torch.testing.assert_close(written_out, fused, rtol=1e-5, atol=1e-6)
    reference = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    for ours, theirs in zip(
        torch.autograd.grad(written_out.square().sum(), (query, key, value)),
        torch.autograd.grad(reference.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_the_action_token_sees_the_action_token() -> None:
    assert action_token_mask(3, torch.device("cpu")).tolist() == [[True, True, False], [True, True, False], [True] * 3]


def test_kernels_lie_first_and_the_layout_cuts_without_gaps() -> None:
    layout = SHAPES["two cameras and proprio"].layout
    kinds = [spec.kind == "kernel" for spec in layout.specs]
    assert kinds == sorted(kinds, reverse=True)
    parts = layout.split(torch.arange(layout.size))
    assert torch.equal(torch.cat([part.flatten() for part in parts.values()]), torch.arange(layout.size))
    with pytest.raises(ValueError, match=f"holds {layout.size} weights, but the vector has 3"):
        layout.split(torch.zeros(3))


@pytest.mark.parametrize("layers", [1, 4])
def test_an_ordinary_initialisation_keeps_the_outputs_of_order_one(layers: int) -> None:
    shape = BasePolicy(width=64, layers=layers, heads=4, mlp=128, token_width=64, tokens=16, proprio_size=0, head=HEAD)
    torch.manual_seed(0)
    flat = torch.cat([initial_weight(spec).flatten() for spec in shape.layout.specs])[None]
    raw = outputs(shape, flat, torch.randn(1, 64, 16, 64), None)
    assert 0.3 < float(raw.square().mean().sqrt()) < 3


def test_a_specs_size_is_the_product_of_its_shape() -> None:
    assert WeightSpec("x", (3, 4), "kernel", fan=(3, 4)).size == 12
