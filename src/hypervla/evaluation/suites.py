"""Suites: pinned protocols, so that a success rate means the same thing next year."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from hypervla.contracts import Demonstrator, Environment, Make, UserError, unknown
from hypervla.embodiment import GOOGLE_ROBOT, METAWORLD_SAWYER, WIDOWX, Embodiment

InstructionSet = Literal["canonical", "train", "held_out"]
"""Which sentences ask for the task: the first training sentence, all training sentences, or those kept for testing."""

RECORDING_SEEDS = range(100_000)
FIRST_EVALUATION_SEED = 1_000_000
"""Recordings draw their scenes from RECORDING_SEEDS, so none is ever both trained on and tested."""
TRIALS_PER_SEED = 10_000

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)


@dataclass(frozen=True)
class Suite:
    """Tasks, and everything about how they are tried that a success rate depends on."""

    name: str
    tasks: tuple[str, ...]
    embodiment: Embodiment
    environment: Callable[[str], Environment]
    """Makes the environment of a task; a module's function (or a partial of one), so that workers can be sent it."""
    sentences: Callable[[str, InstructionSet], Sequence[str]]
    """The instructions of a task, by set; none where every scene has its own, which its environment knows."""
    success_rule: str
    """One sentence for the report."""
    scene: str = ""
    """What the policy may see that a reader should know about."""
    trials: int = 10
    """Of each task, by the protocol."""
    max_steps: int = 400
    middle: float = 1.0
    """Share of the area of the cameras' views that a checkpoint looks at, in the middle."""
    task_steps: Mapping[str, int] = field(default_factory=dict)
    """Of tasks whose trials are shorter than `max_steps`."""
    scenes: Mapping[str, int] = field(default_factory=dict)
    """How many scenes a task has, where they are so many and no more."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tasks that are also counted together, where the published figure is the mean over such groups."""
    make: Make | None = None
    """Makes the environment of a task and who demonstrates it, where there is such a one."""
    needs: str | None = None
    """The simulator's package, where it lives in an environment of its own (simulation/homes.py)."""

    def only(self, tasks: Sequence[str]) -> Suite:
        """This suite with some of its tasks, in the suite's order. Raises UserError for a task it does not have."""
        for task in tasks:
            if task not in self.tasks:
                raise unknown(task, self.tasks, f"task of suite {self.name} called")
        return replace(self, tasks=tuple(task for task in self.tasks if task in tasks))

    @property
    def is_away(self) -> bool:
        """Whether its simulator is in an environment of its own, and not in this one."""
        from hypervla.simulation.homes import is_home

        return not is_home(self.needs)

    def steps_of(self, task: str) -> int:
        """Steps of a trial at most."""
        return self.task_steps.get(task, self.max_steps)

    def instruction(self, task: str, instructions: InstructionSet, trial: int) -> str | None:
        """The sentence that asks for the task in this trial: sets of several sentences take turns. None where the scene
        decides."""
        sentences = self.sentences(task, instructions)
        return sentences[trial % len(sentences)] if sentences else None


def suite(name: str) -> Suite:
    """The suite of that name. Raises UserError naming near matches."""
    if name not in SUITES:
        raise unknown(name, SUITES, "suite")
    return SUITES[name]()


def environment_seed(seed: int, trial: int) -> int:
    """The seed of a trial's scene; evaluation seeds and recording seeds never meet. Raises UserError out of range."""
    if seed < 0:
        raise UserError(f"The evaluation seed must be 0 or more, but {seed} came.")
    if not 0 <= trial < TRIALS_PER_SEED:
        raise UserError(
            f"A seed holds {TRIALS_PER_SEED:,} trials a task, but trial {trial:,} was asked for: use more seeds."
        )
    return FIRST_EVALUATION_SEED + TRIALS_PER_SEED * seed + trial


def _metaworld(name: str, tasks: tuple[str, ...] | None, goal_visible: bool) -> Suite:
    from hypervla.simulation import metaworld

    return Suite(
        name=name,
        tasks=tasks or tuple(metaworld.tasks()),
        groups={} if tasks else metaworld.difficulties(),
        embodiment=METAWORLD_SAWYER,
        environment=partial(_metaworld_environment, goal_visible=goal_visible),
        sentences=_metaworld_sentences,
        success_rule="Metaworld's own success signal, at any step.",
        scene="The goal marker is visible where Metaworld draws one." if goal_visible else "The goal marker is hidden.",
        make=partial(_metaworld_demonstrated, goal_visible=goal_visible),
    )


def _metaworld_environment(task: str, goal_visible: bool) -> Environment:
    from hypervla.simulation.metaworld import MetaworldEnvironment

    return MetaworldEnvironment(task, goal_visible=goal_visible)


def _metaworld_demonstrated(task: str, goal_visible: bool) -> tuple[Environment, Demonstrator]:
    from hypervla.simulation.demonstrators.metaworld import make

    return make(task, goal_visible=goal_visible)


def _libero(part: str, whose: str) -> Suite:
    from hypervla.simulation import libero

    protocol = libero.PROTOCOLS[whose]
    return Suite(
        name=f"libero-{part}{whose}",
        tasks=libero.tasks()[part],
        embodiment=protocol.robot,
        environment=partial(_libero_environment, part, whose),
        sentences=_libero_sentences,
        success_rule=protocol.rule(part),
        scene=libero.scene(),
        trials=50,
        middle=RELEASED_MIDDLE if whose == "-hypervla" else 1.0,
        max_steps=protocol.steps[part],
        scenes=dict.fromkeys(libero.tasks()[part], libero.STORED),
        make=partial(_libero_demonstrated, part, whose),
        needs="libero",
    )


def _simpler(name: str, drawn: bool) -> Suite:
    from hypervla.simulation import simpler

    return Suite(
        name=name,
        tasks=tuple(simpler.TASKS),
        embodiment=WIDOWX,
        environment=partial(_simpler_environment, drawn=drawn),
        sentences=_simpler_sentences,
        success_rule="ManiSkill 3's, at any step (SIMPLER asks at the last one): the thing is on its target, and "
        "carrot and cube press on it; SIMPLER also wants these to touch nothing else.",
        scene=simpler.scene(),
        trials=20 if drawn else simpler.SCENES,
        middle=RELEASED_MIDDLE if drawn else 1.0,
        max_steps=max(task.steps for task in simpler.TASKS.values()),
        task_steps={name: task.steps for name, task in simpler.TASKS.items()},
        scenes={} if drawn else dict.fromkeys(simpler.TASKS, simpler.SCENES),
        make=partial(_simpler_demonstrated, drawn=drawn),
        needs="mani_skill",
    )


def _simpler_environment(task: str, drawn: bool) -> Environment:
    from hypervla.simulation.simpler import SimplerEnvironment

    return SimplerEnvironment(task, FIRST_EVALUATION_SEED, drawn)


def _simpler_demonstrated(task: str, drawn: bool) -> tuple[Environment, Demonstrator]:
    from hypervla.simulation.demonstrators.simpler import SimplerExpert
    from hypervla.simulation.simpler import SimplerEnvironment

    environment = SimplerEnvironment(task, FIRST_EVALUATION_SEED, drawn)
    return environment, SimplerExpert(environment)


def _simpler_sentences(task: str, instructions: InstructionSet) -> tuple[str, ...]:
    from hypervla.simulation.simpler import TASKS

    return _only_sentence(TASKS[task].instruction, instructions)


def _only_sentence(sentence: str, instructions: InstructionSet) -> tuple[str, ...]:
    _check_not_held_out(instructions)
    return (sentence,)


def _check_not_held_out(instructions: InstructionSet) -> None:
    if instructions == "held_out":
        raise UserError("This suite asks for each task in one way: there are no sentences kept out of training.")


def _simpler_google(name: str) -> Suite:
    from hypervla.simulation import simpler_google

    steps = {task: simpler_google.TASKS[task].steps for task in simpler_google.SETS[name]}
    drawn = name in simpler_google.DRAWN
    return Suite(
        name=name,
        tasks=tuple(steps),
        embodiment=GOOGLE_ROBOT,
        environment=partial(_simpler_google_environment, drawn=drawn),
        sentences=_scene_sentences,
        success_rule="SIMPLER's own, at any step (its scripts ask at the last one): the thing is lifted, or near the "
        "other with nothing knocked over; the drawer is 15 cm open, or within 5 cm of closed.",
        scene=simpler_google.NEVER_RUN,
        trials=20 if drawn else 36,
        middle=RELEASED_MIDDLE if drawn else 1.0,
        max_steps=max(steps.values()),
        task_steps=steps,
        scenes={} if drawn else {task: simpler_google.TASKS[task].grid for task in steps},
        needs="simpler_env",
    )


def _simpler_google_environment(task: str, drawn: bool) -> Environment:
    from hypervla.simulation.simpler_google import SimplerGoogleEnvironment

    return SimplerGoogleEnvironment(task, FIRST_EVALUATION_SEED, drawn)


def _scene_sentences(task: str, instructions: InstructionSet) -> tuple[str, ...]:
    _check_not_held_out(instructions)
    return ()


def _libero_environment(part: str, whose: str, task: str) -> Environment:
    from hypervla.simulation.libero import PROTOCOLS, LiberoEnvironment

    return LiberoEnvironment(part, task, FIRST_EVALUATION_SEED, PROTOCOLS[whose])


def _libero_demonstrated(part: str, whose: str, task: str) -> tuple[Environment, Demonstrator]:
    from hypervla.simulation.demonstrators.libero import LiberoExpert
    from hypervla.simulation.libero import PROTOCOLS, LiberoEnvironment

    environment = LiberoEnvironment(part, task, FIRST_EVALUATION_SEED, PROTOCOLS[whose])
    return environment, LiberoExpert(environment)


def _libero_sentences(task: str, instructions: InstructionSet) -> tuple[str, ...]:
    from hypervla.simulation.libero import sentence

    return _only_sentence(sentence(task), instructions)


RELEASED_MIDDLE = 0.9
"""As HyperVLA's released code is run (--crop), whose policies were trained on random crops."""
IN_SCENE_OF = " in the scene of "


def _shared_scene() -> Suite:
    """Every instruction of reach, push and pick-place in every scene of the three: does the policy follow words?"""
    from hypervla.simulation.metaworld import SHARED_SCENE

    return Suite(
        name="metaworld-shared-scene",
        tasks=tuple(f"{task}{IN_SCENE_OF}{scene}" for task in SHARED_SCENE for scene in SHARED_SCENE),
        embodiment=METAWORLD_SAWYER,
        environment=_shared_scene_environment,
        sentences=_shared_scene_sentences,
        success_rule="Reach: hand within 5 cm of the marker. Push: puck within 5 cm of it, seen from above. "
        "Pick-place: puck within 7 cm of it. At any step; a task in its own scene by Metaworld's own signal.",
        scene="The marker is visible: red in reach's scene, green in push's, blue in pick-place's.",
        max_steps=200,
    )


def _shared_scene_environment(name: str) -> Environment:
    from hypervla.simulation.metaworld import MetaworldEnvironment

    task, scene = name.split(IN_SCENE_OF)
    return MetaworldEnvironment(task, scene=scene)


def _shared_scene_sentences(name: str, instructions: InstructionSet) -> tuple[str, ...]:
    return _metaworld_sentences(name.split(IN_SCENE_OF)[0], instructions)


def _metaworld_sentences(task: str, instructions: InstructionSet) -> tuple[str, ...]:
    from hypervla.simulation import metaworld

    known = metaworld.tasks()[task]
    return {"canonical": known.train[:1], "train": known.train, "held_out": known.held_out}[instructions]


SUITES: dict[str, Callable[[], Suite]] = {
    "metaworld-mt50": partial(_metaworld, "metaworld-mt50", None, True),
    "metaworld-mt10": partial(_metaworld, "metaworld-mt10", MT10, True),
    "metaworld-mt10-hidden-goal": partial(_metaworld, "metaworld-mt10-hidden-goal", MT10, False),
    "metaworld-shared-scene": _shared_scene,
    "simpler-widowx": partial(_simpler, "simpler-widowx", False),
    "simpler-widowx-hypervla": partial(_simpler, "simpler-widowx-hypervla", True),
    "simpler-google": partial(_simpler_google, "simpler-google"),
    "simpler-google-hypervla": partial(_simpler_google, "simpler-google-hypervla"),
} | {
    f"libero-{part}{whose}": partial(_libero, part, whose)
    for whose in ("", "-lerobot", "-hypervla")
    for part in ("spatial", "object", "goal", "10")
}
