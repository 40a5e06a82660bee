"""The systems of the papers side by side at small size: one data stream, one encoder of images, one optimizer, and
models that differ in what they are. Nobody reads proprio, as in the papers.

    hypervla train small_hypervla --data data/mt10 --out runs/small_hypervla      (and so for each)

Two CPU cores: about 40 minutes of one core for 1,500 steps of 256 samples; docs/log.md has the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypervla.baselines.octo import OctoCamera, OctoConfig, SmallStem
from hypervla.baselines.openvla import OpenVLAConfig
from hypervla.baselines.rt1 import RT1Config, RT1Transformer
from hypervla.baselines.rt1_actions import ARM_4, ActionTokens
from hypervla.baselines.rt1_sentence import SentenceEncoder
from hypervla.baselines.rt1_vision import FilmEfficientNet
from hypervla.data.stream import Sampling
from hypervla.embodiment import METAWORLD_SAWYER, Embodiment
from hypervla.models.action_head import LinearHead
from hypervla.models.backbones import ConvNet
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.evla import EvlaConfig, Mode
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLAConfig, PolicyConfig
from hypervla.models.instruction_encoders import MINILM
from hypervla.models.interface import ModelConfig
from hypervla.models.monolithic import MonolithicConfig
from hypervla.models.vision_language import LanguageModel, VisionLanguage
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.recipe import Recipe, head_for

ENCODER = ConvNet(image_size=128, widths=(48, 96, 192), stride=4)
POLICY = PolicyConfig(width=64, layers=3, heads=4, mlp=128)
HORIZON = 4

LANGUAGE = LanguageModel(
    family="llama",
    width=128,
    layers=4,
    heads=4,
    kv_heads=4,
    mlp=344,
    vocabulary=30_784,
    tied=True,
    context=128,
    tokenizer=MINILM.source,
)
"""MiniLM's vocabulary, and 256 rows and more for actions."""


def _compared(name: str, model: ModelConfig) -> Recipe:
    """A constant rate, so that a run may be judged wherever it is; the moving average stands in for its descent."""
    return Recipe(
        name=name,
        model=model,
        sampling=Sampling(
            image_size=model.image_size,
            horizon=model.horizon,
            window=model.window,
            frames_per_context=8,
            frames_per_episode=8,
            action_mask="pad_only",
            view_shift=3,
        ),
        optimizer=OptimizerConfig(rate=5e-4, backbone_rate=1e-3, warmup=300, schedule="constant", ema_start=500),
        steps=1_500,
        batch_contexts=32,
        seed=0,
        memory_gb=16.0,
        precision="bfloat16",
        trace=True,
        checkpoint_dtype="float16",
    )


def _hypervla(robot: Embodiment) -> HyperVLAConfig:
    return HyperVLAConfig(
        backbone=ENCODER,
        instruction_encoder=MINILM,
        hypernetwork=HypernetworkConfig(width=48, layers=3, heads=4, mlp=192),
        policy=POLICY,
        head=head_for(robot, HORIZON),
        cameras=len(robot.cameras),
        context_image="shared",
        context_image_dropout=0.5,
    )


def small_hypervla(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """HyperVLA: weights generated per task, the released code's head."""
    return _compared("small_hypervla", _hypervla(robot))


def _tuned(name: str, robot: Embodiment, rate: float) -> Recipe:
    """`small_hypervla` for a vision backbone that was pretrained (`--init CKPT --vision-only`)."""
    recipe = small_hypervla(robot)
    return replace(recipe, name=name, optimizer=replace(recipe.optimizer, backbone_rate=rate))


def small_hypervla_slow_vision(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The paper's way with a pretrained backbone: it learns at a tenth of the hypernetwork's rate."""
    return _tuned("small_hypervla_slow_vision", robot, 5e-5)


def small_hypervla_fast_vision(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The paper's ablation: a pretrained backbone learns at the hypernetwork's rate."""
    return _tuned("small_hypervla_fast_vision", robot, 5e-4)


def small_hypervla_frozen_vision(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The paper's ablation: a pretrained backbone does not learn."""
    return _tuned("small_hypervla_frozen_vision", robot, 0.0)


def small_hypervla_no_normalisation(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The paper's ablation: the context embedding is not divided by the root of its width."""
    model = _hypervla(robot)
    hypernetwork = replace(model.hypernetwork, normalise_embedding=False)
    return _compared("small_hypervla_no_normalisation", replace(model, hypernetwork=hypernetwork))


def small_hypervla_linear(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The paper's text: one linear head with squared error on all dimensions, the gripper among them."""
    head = LinearHead(HORIZON, robot.action_size)
    return _compared("small_hypervla_linear", replace(_hypervla(robot), head=head))


def small_hypervla_variance(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The released code's other initialisation of the output heads."""
    model = _hypervla(robot)
    hypernetwork = replace(model.hypernetwork, initialisation="variance")
    return _compared("small_hypervla_variance", replace(model, hypernetwork=hypernetwork))


def small_hypervla_words_only(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The context is the instruction alone, without the initial image."""
    model = replace(_hypervla(robot), context_image="none", context_image_dropout=0.0)
    return _compared("small_hypervla_words_only", model)


def small_hypervla_patches(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The context encoder reads all cells of the initial image instead of their mean."""
    return _compared("small_hypervla_patches", replace(_hypervla(robot), context_feature="patches"))


def _monolithic(robot: Embodiment) -> MonolithicConfig:
    return MonolithicConfig(ENCODER, POLICY, head_for(robot, HORIZON), cameras=len(robot.cameras))


def small_alone(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The paper's ablation "no hypernetwork": the base policy with weights of its own, which knows no instruction."""
    return _compared("small_alone", _monolithic(robot))


def small_monolithic(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The base policy with weights of its own, reading the instruction's tokens beside those of the image."""
    return _compared("small_monolithic", replace(_monolithic(robot), instruction_encoder=MINILM))


def small_rt1(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """RT-1 in small: FiLM-EfficientNet from scratch, TokenLearner, the transformer, one action in 256 bins."""
    model = RT1Config(
        sentence=SentenceEncoder(MINILM, width=256),
        vision=FilmEfficientNet(image_size=128, width=0.5, depth=0.5, features=256, source=None),
        transformer=RT1Transformer(layers=4, heads=4, key=64),
        actions=ActionTokens(columns=ARM_4),
        window=1,
        unused_embedding=False,
    )
    return _bounded(_compared("small_rt1", model))


def small_octo(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """Octo in small: words, two frames and a readout in one transformer, its stem, its diffusion head."""
    model = OctoConfig(
        instruction_encoder=replace(MINILM, length=16),
        views=(OctoCamera("corner2", 128),),
        head=DiffusionHead(horizon=4, action_size=4, hidden=128),
        width=96,
        layers=4,
        heads=4,
        mlp=384,
        stem=SmallStem(channels=(32, 64, 96, 128), features=192),
    )
    return _compared("small_octo", model)


def small_openvla(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """OpenVLA in small: the shared image encoder, and a Llama from scratch that writes four action tokens in turn."""
    model = OpenVLAConfig(
        model=VisionLanguage(ENCODER, (256, 128), LANGUAGE),
        action_size=4,
        above_actions=30_784,
        end=102,
        before_answer=None,
        source=None,
    )
    return _bounded(_compared("small_openvla", model))


def _small_evla(name: str, mode: Mode) -> Recipe:
    language = replace(LANGUAGE, family="qwen2", kv_heads=2)
    model = EvlaConfig(VisionLanguage(ENCODER, (128,), language), action_size=4, mode=mode)
    return _bounded(_compared(name, model))


def small_evla(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """EVLA in small, as its paper says: the shared image encoder and a Qwen2 from scratch, four bins in one pass."""
    return _small_evla("small_evla", "joint")


def small_openvla_joint(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """small_openvla's parts with EVLA's joint decoding."""
    model = EvlaConfig(VisionLanguage(ENCODER, (256, 128), LANGUAGE), action_size=4)
    return _bounded(_compared("small_openvla_joint", model))


def small_evla_autoregressive(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """Its twin that writes the bins one after another."""
    return _small_evla("small_evla_autoregressive", "ar_causal")


def small_evla_released(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """Its twin with the released code's mask, safe for padding."""
    return _small_evla("small_evla_released", "evla_released")


def small_hypervla_diffusion(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The paper's ablation: a generated diffusion head, here a quarter as wide as Octo's."""
    head = DiffusionHead(HORIZON, robot.action_size, hidden=64)
    return _compared("small_hypervla_diffusion", replace(_hypervla(robot), head=head))


def _bounded(recipe: Recipe) -> Recipe:
    """Actions in bins want bounds."""
    return replace(recipe, sampling=replace(recipe.sampling, normalisation="bounds"))


RECIPES: tuple[Callable[..., Recipe], ...] = (
    small_hypervla,
    small_hypervla_slow_vision,
    small_hypervla_fast_vision,
    small_hypervla_frozen_vision,
    small_hypervla_no_normalisation,
    small_hypervla_linear,
    small_hypervla_variance,
    small_hypervla_words_only,
    small_hypervla_patches,
    small_alone,
    small_monolithic,
    small_rt1,
    small_octo,
    small_openvla,
    small_evla,
    small_evla_autoregressive,
    small_evla_released,
    small_openvla_joint,
    small_hypervla_diffusion,
)
