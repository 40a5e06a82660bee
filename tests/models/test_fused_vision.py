"""DINOv2 and SigLIP side by side: published names and sizes, and transformers' own models as the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests import tiny
from torch import Tensor

from hypervla.models.fused_vision import DINO_L, SIGLIP_SO400M, FusedVision, FusedVisionBackbone, VisionTransformer

DINO = replace(DINO_L, width=16, layers=3, heads=2, mlp=64, patch=8)
SIGLIP = replace(SIGLIP_SO400M, width=24, layers=4, heads=2, mlp=40, patch=8, gelu="tanh")
SIDE = 32


def randomised(shape) -> VisionTransformer:
    model = tiny.seeded(VisionTransformer, shape, SIDE).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.3, generator=random)
    return model


def pixels(model: VisionTransformer, images: Tensor) -> Tensor:
    return (images.float() / 255 - torch.tensor(model.shape.mean).view(3, 1, 1)) / torch.tensor(model.shape.std).view(
        3, 1, 1
    )


def images(count: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)


def attention_of(ours: dict[str, Tensor], i: int) -> dict[str, tuple[Tensor, Tensor]]:
    weights, biases = (ours[f"blocks.{i}.attn.qkv.{part}"].chunk(3) for part in ("weight", "bias"))
    return dict(zip("qkv", zip(weights, biases, strict=True), strict=True))


def place(state: dict[str, Tensor], ends: dict[str, Tensor]) -> None:
    """Put tensors where a name ends so, once each."""
    for end, value in ends.items():
        (name,) = [name for name in state if name.endswith(end)]
        assert state[name].shape == value.shape, (name, value.shape)
        state[name] = value


@torch.no_grad()
def test_the_first_part_is_transformers_dinov2_with_registers() -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    ours = randomised(DINO)
    shape = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=8, image_size=SIDE, num_register_tokens=4
    )
    theirs, mine = Dinov2WithRegistersModel(shape).eval(), ours.state_dict()
    state = theirs.state_dict()
    nowhere = torch.zeros(1, 1, 16)  # the published class token has no position
    place(
        state,
        {
            "cls_token": mine["cls_token"],
            "register_tokens": mine["reg_token"],
            "position_embeddings": torch.cat([nowhere, mine["pos_embed"]], 1),
            "patch_embeddings.projection.weight": mine["patch_embed.proj.weight"],
            "patch_embeddings.projection.bias": mine["patch_embed.proj.bias"],
        },
    )
    for i in range(3):
        layer = f"layer.{i}."
        for part, (weight, bias) in attention_of(mine, i).items():
            place(state, {f"{layer}attention.{part}_proj.weight": weight, f"{layer}attention.{part}_proj.bias": bias})
        for mine_name, theirs_name in {
            "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias", "norm2.weight": "norm2.weight",
            "norm2.bias": "norm2.bias", "attn.proj.weight": "attention.o_proj.weight",
            "attn.proj.bias": "attention.o_proj.bias", "ls1.scale_factor": "layer_scale1.lambda1",
            "ls2.scale_factor": "layer_scale2.lambda1", "mlp.fc1.weight": "mlp.fc1.weight",
            "mlp.fc1.bias": "mlp.fc1.bias", "mlp.fc2.weight": "mlp.fc2.weight", "mlp.fc2.bias": "mlp.fc2.bias",
        }.items():  # fmt: skip
            place(state, {layer + theirs_name: mine[f"blocks.{i}.{mine_name}"]})
    theirs.load_state_dict(state)
    hidden = theirs(pixel_values=pixels(ours, images()), output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours(images()), hidden[2][:, 5:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_second_part_is_transformers_siglip() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    ours = randomised(SIGLIP)
    shape = SiglipVisionConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=40, patch_size=8, image_size=SIDE
    )
    theirs, mine = SiglipVisionModel(shape).eval(), ours.state_dict()
    state = theirs.state_dict()
    place(
        state,
        {
            "position_embedding.weight": mine["pos_embed"][0],
            "patch_embedding.weight": mine["patch_embed.proj.weight"],
            "patch_embedding.bias": mine["patch_embed.proj.bias"],
        },
    )
    for i in range(4):
        layer = f"encoder.layers.{i}."
        for part, (weight, bias) in attention_of(mine, i).items():
            place(state, {f"{layer}self_attn.{part}_proj.weight": weight, f"{layer}self_attn.{part}_proj.bias": bias})
        for mine_name, theirs_name in {
            "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():  # fmt: skip
            for part in ("weight", "bias"):
                place(state, {f"{layer}{theirs_name}.{part}": mine[f"blocks.{i}.{mine_name}.{part}"]})
    theirs.load_state_dict(state)
    hidden = theirs(pixel_values=pixels(ours, images()), output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours(images()), hidden[3], rtol=1e-4, atol=1e-4)


def test_patches_are_joined_channel_by_channel_dinov2_first() -> None:
    model = tiny.seeded(FusedVisionBackbone, FusedVision(SIDE, DINO, SIGLIP)).eval()
    patches, mean = model(images().permute(0, 2, 3, 1))
    assert patches.shape == (2, FusedVision(SIDE, DINO, SIGLIP).tokens, 40)
    assert torch.equal(patches[..., :16], model.featurizer(images()))
    assert torch.equal(patches[..., 16:], model.fused_featurizer(images()))
    assert torch.equal(mean, patches.mean(1))


def test_what_lies_behind_the_second_to_last_block_changes_nothing() -> None:
    model = tiny.seeded(FusedVisionBackbone, FusedVision(SIDE, DINO, SIGLIP)).eval()
    seen = images().permute(0, 2, 3, 1)
    before = model(seen)[0]
    model(seen)[0].sum().backward()
    idle = [p for p in model.parameters() if p.grad is None]
    assert sum(p.numel() for p in idle) == model.unused()
    with torch.no_grad():
        for parameter in idle:
            parameter.fill_(torch.nan)
    assert torch.equal(model(seen)[0], before)


@pytest.fixture(scope="module")
def published() -> FusedVisionBackbone:
    with torch.device("meta"):
        return FusedVision().build(pretrained=False)


def test_the_published_sizes(published: FusedVisionBackbone) -> None:
    assert sum(p.numel() for p in published.featurizer.parameters()) == 303_230_976
    siglip = sum(p.numel() for p in published.fused_featurizer.parameters())
    pool = sum(p.numel() for p in published.fused_featurizer.attn_pool.parameters())
    assert (siglip - pool, pool) == (412_442_352, 15_238_352)
    assert (FusedVision().width, FusedVision().tokens) == (2176, 256)


def test_the_published_names(published: FusedVisionBackbone) -> None:
    names = dict(published.named_parameters())
    assert names["featurizer.pos_embed"].shape == (1, 256, 1024)
    assert names["featurizer.reg_token"].shape == (1, 4, 1024)
    assert names["fused_featurizer.pos_embed"].shape == (1, 256, 1152)
    block = {f"{part}.{kind}" for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
             for kind in ("weight", "bias")}  # fmt: skip
    for tower, last, scales in (("featurizer", 23, True), ("fused_featurizer", 26, False)):
        wanted = block | ({"ls1.scale_factor", "ls2.scale_factor"} if scales else set())
        start = f"{tower}.blocks.{last}."
        assert {name.removeprefix(start) for name in names if name.startswith(start)} == wanted
    pool = {name.removeprefix("fused_featurizer.attn_pool.") for name in names if ".attn_pool." in name}
    assert pool == {"latent"} | {
        f"{part}.{kind}" for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
    }
