"""The papers' questions as studies for two processor cores (HyperVLA's tables 1 to 4 and 6 in miniature)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypervla.contracts import unknown
from hypervla.evaluation.suites import IN_SCENE_OF, MT10, suite
from hypervla.studies.study import Column, Part, Pretraining, Study, System

RECORDINGS = {
    "mt10": "hypervla record --suite metaworld-mt10 --episodes 150 240 300 100 100 60 100 300 80 80 --noise 0.4 "
    "--max-steps 250",
    "mt50": "hypervla record --suite metaworld-mt50 --episodes 50 --noise 0.3 --max-steps 300",
    "simpler-widowx": "hypervla record --suite simpler-widowx --episodes 100 --noise 0.2 --max-steps 120",
} | {
    f"libero-{part}": f"hypervla record --suite libero-{part} --episodes 50 --noise 0.2 --max-steps {steps}"
    for part, steps in {"spatial": 280, "object": 280, "goal": 300, "10": 520}.items()
}
"""How the studies' demonstrations are made, by the dataset's name."""


def canonical(name: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The sentences that ask for these tasks of a suite in its recordings."""
    return tuple(suite(name).sentences(task, "canonical")[0] for task in tasks)


def _of(name: str, recordings: tuple[str, ...], **fields: object) -> Study:
    return Study(name=name, recordings={one: RECORDINGS[one] for one in recordings}, **fields)  # type: ignore[arg-type]


def ablations() -> Study:
    """HyperVLA's tables 4 and 6: what each of its parts is worth, on Metaworld MT10."""
    seen = {"start": "vision of the other forty tasks", "vision_only": True}
    return _of(
        "ablations",
        ("mt10", "mt50"),
        question="What is each part of HyperVLA worth, when every run learns for the same time?",
        systems=(
            System("HyperVLA", "small_hypervla", published="31, 5"),
            System("no hypernetwork", "small_alone", published="9, 1"),
            System("no hypernetwork, told the instruction", "small_monolithic"),
            System("no normalisation of the embedding", "small_hypervla_no_normalisation", published="57, 31"),
            System("linear head of the paper's text", "small_hypervla_linear"),
            System("diffusion head", "small_hypervla_diffusion", published="53, 30"),
            System("variance initialisation", "small_hypervla_variance"),
            System("context without the image", "small_hypervla_words_only"),
            System("context with all patches", "small_hypervla_patches"),
            System("pretrained vision, tuned slowly", "small_hypervla_slow_vision", **seen, published="63, 40"),
            System("pretrained vision, tuned fast", "small_hypervla_fast_vision", **seen, published="11, 0"),
            System("pretrained vision, frozen", "small_hypervla_frozen_vision", **seen, published="54, 15"),
        ),
        parts=(Part("mt10", ("mt10",), (Column("MT10", "metaworld-mt10"),)),),
        published="Published: of SIMPLER's Google robot and WidowX (HyperVLA, tables 4 and 6). The paper's full model "
        "has pretrained vision, tuned slowly: its 63, 40 is what the other rows compare with there, and the first row "
        "here is its run without pretrained vision.",
        pretrainings={seen["start"]: Pretraining("small_hypervla", ("mt50",), canonical("metaworld-mt50", MT10))},
    )


def comparison() -> Study:
    """The systems of HyperVLA's table 3 and of EVLA's figures, each as small as HyperVLA's small sibling."""
    return _of(
        "comparison",
        ("mt10",),
        question="What becomes of each system on the same demonstrations in the same time?",
        systems=(
            System("HyperVLA", "small_hypervla"),
            System("base policy", "small_alone"),
            System("base policy, told the instruction", "small_monolithic"),
            System("EVLA, one pass", "small_evla"),
            System("EVLA, one after another", "small_evla_autoregressive"),
            System("OpenVLA", "small_openvla"),
            System("Octo", "small_octo"),
        ),
        parts=(Part("mt10", ("mt10",), (Column("MT10", "metaworld-mt10"),)),),
    )


def zero_shot() -> Study:
    """HyperVLA's table 1: scenes, sentences, combinations, places and objects that no demonstration is about."""
    others = tuple(name for name in suite("metaworld-shared-scene").tasks if len(set(name.split(IN_SCENE_OF))) == 2)
    objects = tuple(task for task in suite("libero-object").tasks if "milk" in task or "butter" in task)
    simpler = ("widowx-carrot-on-plate", "widowx-stack-cube")
    return _of(
        "zero-shot",
        ("mt10", "libero-object", "libero-spatial", "simpler-widowx"),
        question="What of its training does a policy carry over to what no demonstration is about?",
        systems=(
            System("HyperVLA", "small_hypervla"),
            System("base policy told the instruction", "small_monolithic"),
        ),
        parts=(
            Part(
                "metaworld",
                ("mt10",),
                (
                    Column("MT10, new scenes", "metaworld-mt10"),
                    Column("MT10, new scenes and sentences", "metaworld-mt10", held_out_instructions=True),
                    Column("a task in another's scene", "metaworld-shared-scene", others, in_distribution=False),
                ),
            ),
            _partly("libero-object", "LIBERO-Object", "objects never asked for", objects),
            _partly("libero-spatial", "LIBERO-Spatial", "new places", suite("libero-spatial").tasks[:2]),
            _partly("simpler-widowx", "SIMPLER", "new object", ("widowx-spoon-on-towel",), simpler),
        ),
    )


def _partly(name: str, title: str, new: str, unseen: tuple[str, ...], seen: tuple[str, ...] | None = None) -> Part:
    """Training on a suite without some of its tasks; judged on those, and on the others or some of them."""
    seen = seen or tuple(task for task in suite(name).tasks if task not in unseen)
    columns = (
        Column(f"{title}, new scenes", name, seen),
        Column(f"{title}, {new}", name, unseen, in_distribution=False, unseen_instructions=True),
    )
    return Part(name, (name,), columns, canonical(name, unseen))


def few_shot() -> Study:
    """HyperVLA's table 2: fifty demonstrations of each task of a LIBERO suite, pretrained and from scratch."""
    parts = ("spatial", "object", "goal", "10")
    return _of(
        "few-shot",
        tuple(f"libero-{part}" for part in parts),
        question="What is pretraining worth, when there are fifty demonstrations of each task?",
        systems=(
            System("HyperVLA, pretrained on Metaworld", "libero_small", start="embedded", published="95, 94, 92, 74"),
            System("HyperVLA, from scratch", "libero_small"),
        ),
        parts=tuple(
            Part(part, (f"libero-{part}",), (Column(f"LIBERO-{part.capitalize()}", f"libero-{part}"),))
            for part in parts
        ),
        steps=3_000,
        published="Published: of LIBERO-Spatial, -Object, -Goal and -10, after pretraining on Open X-Embodiment "
        "(HyperVLA, table 2).",
    )


STUDIES: Mapping[str, Callable[[], Study]] = {
    "zero-shot": zero_shot,
    "few-shot": few_shot,
    "comparison": comparison,
    "ablations": ablations,
}


def study(name: str) -> Study:
    """The study of that name. Raises UserError naming near matches."""
    if name not in STUDIES:
        raise unknown(name, STUDIES, "study")
    return STUDIES[name]()
