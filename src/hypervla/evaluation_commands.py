"""`hypervla record` and `hypervla eval`: demonstrations of experts, and success rates, in the simulators."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from hypervla.options import Device, Flag, Out

if TYPE_CHECKING:
    from rich.console import Console

    from hypervla.evaluation.compare import Run
    from hypervla.evaluation.results import Results
    from hypervla.evaluation.suites import InstructionSet, Suite

Execution = Annotated[str, arg(help="open-loop, receding-horizon:steps=N or temporal-ensemble:recency=R,every=N.")]
Engine = Annotated[
    str | None,
    arg(
        help="What the policies act on in place of eager PyTorch: the file of an exported engine, or cuda:fp16 (bf16, "
        "fp8, fp32) for the fast path of a GPU."
    ),
]
Ray = Annotated[
    str | None,
    arg(
        help="Try on the machines of this Ray cluster (HOST:PORT), which have the same hypervla; without an address on "
        "the one that Ray finds, or on this machine alone."
    ),
    PrimitiveConstructorSpec[str](
        nargs=(0, 1),
        metavar="[ADDRESS]",
        instance_from_str=lambda words: words[0] if words else "",
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda address: [str(address)],
    ),
]
"""An address, or an empty one when the flag comes alone."""
Tasks = UseAppendAction[Annotated[tuple[str, ...], arg(name="task")]]


def flags(name: str, values: Iterable[str]) -> list[str]:
    """A flag before each value."""
    return [word for value in values for word in (name, value)]


def _words(given: Mapping[str, object]) -> list[str]:
    """Flags and their values, as they are typed."""
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def record(
    *,
    out: Out,
    suite: str | None = None,
    tasks: Tasks = (),
    episodes: tuple[int, ...] = (100,),
    noise: float = 0.3,
    seed: int = 0,
    workers: int = 2,
    max_steps: int = 400,
    driver: str | None = None,
) -> None:
    """Record demonstrations of scripted experts as a LeRobot v3.0 dataset; running it again goes on.

    Example: hypervla record --suite metaworld-mt10 --episodes 100 --noise 0.3 --out data/mt10

    Args:
        out: Folder of the dataset.
        suite: Record every task of this suite.
        tasks: Record this task only; of Metaworld when no suite is given.
        episodes: Successful episodes of each task: one number for all, or one for each task in order.
        noise: Largest standard deviation of the noise on the executed actions, as a share of their limits; the recorded
            label stays the expert's.
        seed: First scene of each task.
        workers: Processes that simulate.
        max_steps: An attempt ends after this many steps.
        driver: A checkpoint, or a policy server at ws://HOST:PORT, that drives the first steps of each episode, while
            the expert labels what it should have done and then rescues it (DAgger).
    """
    from hypervla.contracts import UserError

    if suite is None and not tasks:
        raise UserError("Say what to record: --suite NAME, or one or more --task NAME.")
    from hypervla.arguments import driver_options
    from hypervla.away import run_away
    from hypervla.data.record import record as record_episodes
    from hypervla.data.staging import most_attempts
    from hypervla.evaluation.suites import RECORDING_SEEDS
    from hypervla.evaluation.suites import suite as find_suite
    from hypervla.runtime.provenance import command

    last = seed + max(map(most_attempts, episodes), default=0) - 1
    if seed not in RECORDING_SEEDS or last not in RECORDING_SEEDS:
        raise UserError(
            f"Recordings draw their scenes from seeds below {RECORDING_SEEDS.stop:,}, as evaluations have the others, "
            f"but {seed} came, from where so many episodes may take those up to {last:,}."
        )
    found = find_suite(suite or "metaworld-mt50")
    chosen = found.only(tasks).tasks if tasks else found.tasks
    if found.is_away:
        given = {"out": out, "suite": found.name, "noise": noise, "seed": seed, "workers": workers}
        words = ["record", *_words({**given, "max-steps": max_steps}), *flags("--task", tasks)]
        words += ["--episodes", *map(str, episodes)]
        if driver is None:
            run_away(str(found.needs), words)
            return
        with _served(found, driver) as address:
            run_away(str(found.needs), [*words, "--driver", address])
        return
    if found.make is None:
        raise UserError(f"Nobody demonstrates suite '{found.name}'.")
    record_episodes(
        out,
        chosen,
        episodes[0] if len(episodes) == 1 else episodes,
        make=found.make,
        noise=noise,
        seed=seed,
        workers=workers,
        max_steps=max_steps,
        suite=suite or "",
        command=shlex.join(["hypervla", *command()[1:]]),
        **driver_options(driver, found.embodiment),
    )


def evaluate(
    checkpoint: Positional[str | None] = None,
    /,
    *,
    suite: str,
    tasks: Tasks = (),
    trials: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    out: Out = Path("runs/eval"),
    held_out_instructions: Flag = False,
    against: Path | None = None,
    execution: Execution = "temporal-ensemble",
    device: Device = "cpu",
    engine: Engine = None,
    server: str | None = None,
    ray: Ray = None,
) -> None:
    """Roll a checkpoint out on a suite; print success per task and write results.json and report.html.

    Example: hypervla eval embedded --suite metaworld-mt10 --trials 10 --seed 0

    Args:
        checkpoint: Folder of a checkpoint, or the name of a shipped one; "expert" is the suite's demonstrator.
        suite: Name of the suite.
        tasks: Only this task of the suite.
        trials: Attempts at each task; as many as the suite's protocol has when not given.
        seed: First scene of each task.
        workers: Processes that simulate; one for each core (with --ray of the cluster) when not given.
        out: Folder for the report.
        held_out_instructions: Ask with the paraphrases kept out of training.
        against: Folder of an earlier evaluation on the same scenes: also print what changed, scene by scene.
        server: Evaluate what answers at this address over openpi's protocol (ws://HOST:PORT), in place of a checkpoint.
    """
    from hypervla.evaluation.expert import EXPERT
    from hypervla.evaluation.suites import suite as find_suite

    _check_subject(checkpoint, server, device, engine)
    found = find_suite(suite).only(tasks) if tasks else find_suite(suite)
    trials = found.trials if trials is None else trials
    if found.is_away:
        given = {"suite": suite, "trials": trials, "seed": seed, "execution": execution, "out": out}
        words = _words({**given, "workers": workers, "against": against})
        words += [*flags("--task", tasks), *(["--held-out-instructions"] if held_out_instructions else [])]
        _evaluate_away(found, checkpoint, words, server, device, engine, ray)
        return
    from rich.console import Console

    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.display import say_kept, trial_progress
    from hypervla.evaluation import rollout
    from hypervla.runtime.execution import execution_mode

    instructions: InstructionSet = "held_out" if held_out_instructions else "canonical"
    before = None if against is None else _earlier(against, found, trials, seed, instructions)
    path = server or (EXPERT if checkpoint in (None, EXPERT) else find_checkpoint(checkpoint))
    console = Console()
    with trial_progress(console) as on_trial:
        results = rollout.evaluate(
            path,
            found,
            trials=trials,
            seed=seed,
            execution=execution_mode(execution, found.embodiment),
            out=out,
            workers=workers,
            device=check_device(device) if ray is None and (engine or checkpoint not in (None, EXPERT)) else device,
            instructions=instructions,
            engine=engine,
            ray=ray,
            on_trial=on_trial,
            on_kept=partial(say_kept, console, out),
        )
    _show(results, before, against, out, console)


def _earlier(folder: Path, suite: Suite, trials: int, seed: int, instructions: InstructionSet) -> Results:
    """The earlier evaluation to pair this one with. Raises UserError where their scenes are not the same."""
    from hypervla.evaluation.results import Results, check_pairs
    from hypervla.evaluation.trial import tickets

    found = Results.load(folder / "results.json")
    asked = tickets(suite, trials=trials, seed=seed, instructions=instructions)
    check_pairs(found, suite.name, {(ticket.task, ticket.environment_seed) for ticket in asked})
    return found


def _check_subject(checkpoint: str | None, server: str | None, device: str, engine: str | None) -> None:
    from hypervla.arguments import SERVED
    from hypervla.contracts import UserError
    from hypervla.evaluation.expert import EXPERT

    if (checkpoint is None) == (server is None):
        raise UserError("Say what to evaluate: either a checkpoint, or --server ws://HOST:PORT.")
    if checkpoint is not None and checkpoint.startswith(SERVED):
        raise UserError(f"{checkpoint} is the address of a server: say --server {checkpoint}.")
    if checkpoint in (None, EXPERT) and (engine is not None or device != "cpu"):
        raise UserError("An engine and a device are for a checkpoint: leave out --engine and --device.")


def compare(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    out: Out = Path("compare.html"),
) -> None:
    """Put evaluations of one suite side by side: success, paired differences, times, why trials failed.

    Example: hypervla compare runs/eval runs/eval-held-out --out compare.html

    Args:
        runs: Folders of evaluations, or their results.json files; the others are compared with the first.
        out: The page to write.
    """
    from rich.console import Console

    from hypervla.evaluation import compare as comparison

    found = comparison.load_runs(runs)
    comparison.write(found, out)
    console = Console()
    console.print(comparison.table(found))
    _say_differences(found, console)
    console.print(f"The page is {out}", soft_wrap=True)


def _say_differences(runs: Sequence[Run], console: Console) -> None:
    """Conditions that evaluations beside each other do not share."""
    from hypervla.evaluation.compare import conditions

    for row in conditions(runs):
        if row.differs:
            console.print(f"The {row.title} differs: {' | '.join(row.cells)}", soft_wrap=True)


def _show(results: Results, before: Results | None, against: Path | None, out: Path, console: Console) -> None:
    """The report and its table, and what changed since."""
    from hypervla.evaluation import film, report
    from hypervla.evaluation.compare import Run
    from hypervla.evaluation.results import paired

    page = report.write(results, film.load_filmstrips(out / "films"), out)
    console.print(report.table(results))
    if results.conditions.scene:
        console.print(results.conditions.scene, soft_wrap=True)
    if before is not None:
        console.print(f"Against {against}: {paired(before, results)}", soft_wrap=True)
        _say_differences([Run(str(against), before), Run(str(out), results)], console)
    console.print(f"The report is in {page}", soft_wrap=True)


def _evaluate_away(
    suite: Suite,
    checkpoint: str | None,
    words: list[str],
    server: str | None,
    device: str,
    engine: str | None,
    ray: str | None,
) -> None:
    """Where the simulator is: the policy stays here, behind a server of its own. Raises UserError with --ray."""
    from hypervla.away import run_away
    from hypervla.contracts import UserError
    from hypervla.evaluation.expert import EXPERT

    package = str(suite.needs)
    if ray is not None:
        raise UserError("This suite goes on in an environment of its own, where --ray does not follow: leave it out.")
    if checkpoint == EXPERT:
        run_away(package, ["eval", EXPERT, *words])
    elif checkpoint is None:
        run_away(package, ["eval", "--server", str(server), *words])
    else:
        with _served(suite, checkpoint, device, engine) as address:
            run_away(package, ["eval", "--server", address, *words])


@contextmanager
def _served(suite: Suite, checkpoint: str, device: str = "cpu", engine: str | None = None) -> Iterator[str]:
    """The address of a server with the checkpoint, for the environment where the suite's simulator is; a server is its
    own."""
    from hypervla.arguments import SERVED, check_device, find_checkpoint
    from hypervla.simulation.homes import interpreter

    interpreter(str(suite.needs))  # refused before anything large is loaded
    if checkpoint.startswith(SERVED):
        yield checkpoint
        return
    from hypervla.evaluation.standing_in import load_for
    from hypervla.runtime.client import Served
    from hypervla.runtime.opening import describe
    from hypervla.serving.server import PolicyServer

    path = find_checkpoint(checkpoint)
    compiler = load_for(path, check_device(device), suite.embodiment, engine, suite.middle)
    served = Served(path.name, device, engine and describe(engine), suite.middle)
    with PolicyServer(compiler, port=0, served=served) as serving:
        yield f"{SERVED}127.0.0.1:{serving.port}"
