"""The paper's ablations (spec 1.8), each one change to `paper`. The figures are the published success rates on
SIMPLER's Google robot and WidowX in per cent, where `paper` has 63 and 40; nobody has trained them with this code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypervla.embodiment import WIDOWX, Embodiment
from hypervla.models.action_head import LinearHead
from hypervla.models.backbones import Clip, Siglip
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLAConfig
from hypervla.models.interface import ModelConfig
from hypervla.models.monolithic import MonolithicConfig
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.paper import hypervla, paper
from hypervla.training.recipe import Recipe


def _changed(name: str, robot: Embodiment, model: ModelConfig) -> Recipe:
    return replace(paper(robot), name=name, model=model)


def paper_no_vision_backbone(robot: Embodiment = WIDOWX) -> Recipe:
    """An encoder of DINOv2's shape trained from scratch, shared and not generated; 600,000 steps. Published: 31, 5."""
    model = hypervla(robot)
    scratch = replace(model, backbone=replace(model.backbone, source=None), context_image="shared")
    recipe = _changed("paper_no_vision_backbone", robot, scratch)
    return replace(recipe, optimizer=OptimizerConfig(backbone_rate=3e-4), steps=600_000)


def paper_no_normalisation(robot: Embodiment = WIDOWX) -> Recipe:
    """The context embedding is not divided by the root of its width. Published: 57, 31."""
    model = replace(hypervla(robot), hypernetwork=HypernetworkConfig(normalise_embedding=False))
    return _changed("paper_no_normalisation", robot, model)


def paper_linear_head(robot: Embodiment = WIDOWX) -> Recipe:
    """The head of the paper's text, squared error on all seven dimensions; the released code has none such."""
    model = replace(hypervla(robot), head=LinearHead(horizon=4, action_size=robot.action_size))
    return _changed("paper_linear_head", robot, model)


def paper_diffusion_head(robot: Embodiment = WIDOWX) -> Recipe:
    """A diffusion head as Octo's, generated; 400,000 steps. Published: 53, 30."""
    head = DiffusionHead(horizon=4, action_size=robot.action_size)
    return replace(_changed("paper_diffusion_head", robot, replace(hypervla(robot), head=head)), steps=400_000)


def paper_backbone_rate(robot: Embodiment = WIDOWX) -> Recipe:
    """DINOv2 learns at the hypernetwork's rate. Published: 11, 0."""
    recipe = _changed("paper_backbone_rate", robot, hypervla(robot))
    return replace(recipe, optimizer=replace(recipe.optimizer, backbone_rate=3e-4))


def paper_frozen(robot: Embodiment = WIDOWX) -> Recipe:
    """DINOv2 is not trained. Published: 54, 15."""
    model = hypervla(robot)
    frozen = replace(model, backbone=replace(model.backbone, frozen=True), context_image="shared")
    return _changed("paper_frozen", robot, frozen)


def paper_clip(robot: Embodiment = WIDOWX) -> Recipe:
    """CLIP-B/16 in DINOv2's place, fine-tuned. Published: 59, 27; its initial image still went through DINOv2."""
    return _changed("paper_clip", robot, replace(hypervla(robot), backbone=Clip()))


def paper_siglip(robot: Embodiment = WIDOWX) -> Recipe:
    """SigLIP-B/16 in DINOv2's place, not trained. Published: 34, 1; its initial image still went through DINOv2."""
    siglip = replace(hypervla(robot), backbone=Siglip(frozen=True), context_image="shared")
    return _changed("paper_siglip", robot, siglip)


def paper_alone(robot: Embodiment = WIDOWX) -> Recipe:
    """No hypernetwork: one base policy that knows no instruction. Published: 9, 1."""
    model: HyperVLAConfig = hypervla(robot)
    alone = MonolithicConfig(model.backbone, model.policy, model.head, cameras=model.cameras)
    return _changed("paper_alone", robot, alone)


def paper_monolithic(robot: Embodiment = WIDOWX) -> Recipe:
    """No hypernetwork either, but the base policy reads the instruction at every step. Not among the published ones."""
    model: HyperVLAConfig = hypervla(robot)
    words = model.instruction_encoder
    told = MonolithicConfig(model.backbone, model.policy, model.head, instruction_encoder=words, cameras=model.cameras)
    return _changed("paper_monolithic", robot, told)


def paper_variance(robot: Embodiment = WIDOWX) -> Recipe:
    """The released code's other initialisation of the output heads, which the published run leaves off."""
    model = replace(hypervla(robot), hypernetwork=HypernetworkConfig(initialisation="variance"))
    return _changed("paper_variance", robot, model)


def paper_words_only(robot: Embodiment = WIDOWX) -> Recipe:
    """The context is the instruction alone, without the initial image."""
    return _changed("paper_words_only", robot, replace(hypervla(robot), context_image="none"))


def paper_patches(robot: Embodiment = WIDOWX) -> Recipe:
    """The context encoder reads DINOv2's patch tokens of the initial image instead of its class token."""
    return _changed("paper_patches", robot, replace(hypervla(robot), context_feature="patches"))


RECIPES: tuple[Callable[..., Recipe], ...] = (
    paper_no_vision_backbone,
    paper_no_normalisation,
    paper_linear_head,
    paper_diffusion_head,
    paper_backbone_rate,
    paper_frozen,
    paper_clip,
    paper_siglip,
    paper_alone,
    paper_monolithic,
    paper_variance,
    paper_words_only,
    paper_patches,
)
