"""`hypervla`: the commands. Each imports the floor it calls when it runs, so that --help needs none of them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from hypervla.bench_commands import bench_app, info
from hypervla.data_commands import Cameras, Robot, Rows, data_app, told
from hypervla.weights_commands import weights_app

Flag = FlagCreatePairsOff[bool]
Device = Annotated[str, arg(help="cpu, cuda or cuda:N.")]
Execution = Annotated[str, arg(help="open-loop, receding-horizon:steps=N or temporal-ensemble:recency=R,every=N.")]
Tasks = UseAppendAction[Annotated[tuple[str, ...], arg(name="task")]]
Out = Annotated[Path, arg(aliases=["-o"])]

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
    # A demonstration shows what this machine does now; it never goes on from an earlier one.
    (out / "results.jsonl").unlink(missing_ok=True)
    evaluate("embedded", suite="metaworld-mt10", out=out, trials=trials, seed=seed, workers=workers)


@app.command
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
        tasks: Record this task, instead of a suite.
        episodes: Successful episodes of each task: one number for all, or one for each task in order.
        noise: Largest standard deviation of the noise on the executed actions; the recorded label stays the expert's.
        seed: First scene of each task.
        workers: Processes that simulate.
        max_steps: An attempt ends after this many steps.
        driver: A checkpoint that drives the first steps of each episode, while the expert labels what it should have
            done and then rescues it (DAgger).
    """
    from hypervla.contracts import UserError

    if (suite is None) == (not tasks):
        raise UserError("Say what to record: either --suite NAME or one or more --task NAME.")
    from hypervla.arguments import driver_options
    from hypervla.data.record import record as record_episodes
    from hypervla.evaluation.suites import suite as find_suite
    from hypervla.simulation.demonstrators.metaworld import make

    chosen = tuple(find_suite(suite).tasks) if suite else tasks
    record_episodes(
        out,
        chosen,
        episodes[0] if len(episodes) == 1 else episodes,
        make=make,
        noise=noise,
        seed=seed,
        workers=workers,
        max_steps=max_steps,
        suite=suite or "",
        command=shlex.join(["hypervla", *sys.argv[1:]]),
        **driver_options(driver),
    )


app.command(data_app, name="data", help="Look into datasets, check them, convert them, make their statistics.")


@app.command
def train(
    recipe: Positional[str],
    /,
    *,
    data: UseAppendAction[tuple[str, ...]],
    out: Out,
    mixture: str | None = None,
    cameras: Cameras = (),
    robot: Robot = None,
    rows: Rows = None,
    paraphrases: Path | None = None,
    resume: Flag = False,
    initial: Annotated[str | None, arg(name="init")] = None,
    device: Device = "cpu",
    workers: int = 0,
    steps: int | None = None,
    batch_contexts: int | None = None,
    seed: int | None = None,
    trace: Flag = False,
    no_trace: Flag = False,
) -> None:
    """Train a recipe on a dataset or a mixture of datasets (LeRobot, RLDS).

    Example: hypervla train small --data data/kitchen:1.0 --data data/desk:0.3 --out runs/both

    Args:
        recipe: Name of the recipe.
        data: A dataset as FOLDER or FOLDER:WEIGHT; given several times, they are mixed by weight × size.
        out: Folder for checkpoints and logs.
        mixture: A named mixture whose datasets lie in the folder --data, such as oxe_hypervla.
        paraphrases: JSON with other ways to say instructions, as scripts/convert_paraphrases.py writes it.
        resume: Continue the interrupted run in --out, bit for bit.
        initial: A checkpoint to start from, with a fresh optimizer; what does not fit starts afresh and is listed.
        workers: Processes that decode and augment images beside the training process.
        steps: Override the recipe's number of steps.
        batch_contexts: Override the recipe's task contexts per batch.
        seed: Override the recipe's seed.
        trace: Compile the training step with torch.compile, whatever the recipe says.
        no_trace: Run eagerly, whatever the recipe says.
    """
    from hypervla.arguments import check_device, choose_one, find_checkpoint, override
    from hypervla.data.opening import open_mixture
    from hypervla.display import show_mixture
    from hypervla.training.recipes import recipe as find_recipe

    traced = choose_one("--trace", trace, "--no-trace", no_trace)
    find_recipe(recipe)  # an unknown name is refused before any data is read
    start = None if initial is None else find_checkpoint(initial)
    options = {"resume": resume, "device": check_device(device), "workers": workers}
    datasets = open_mixture(data, named=mixture, told=told(robot, rows, cameras, paraphrases))
    show_mixture(datasets)
    from hypervla.training.loop import train as train_recipe

    changes = {"steps": steps, "batch_contexts": batch_contexts, "seed": seed, "trace": traced}
    chosen = override(find_recipe(recipe, datasets.readers[0].embodiment), changes)
    train_recipe(chosen, datasets, out, initial=start, **options)


@app.command
def pretrain(
    recipe: Positional[str],
    /,
    *,
    data: Path,
    images: Path,
    out: Out,
    initial: Annotated[str | None, arg(name="init")] = None,
    resume: Flag = False,
    fit: Literal["letterbox", "naive"] = "letterbox",
    epochs: int = 1,
    batch: int = 32,
    rate: float = 2e-5,
    device: Device = "cpu",
    workers: int = 0,
) -> None:
    """Teach EVLA's language model to talk about pictures, before train --init teaches it to act.

    Example: hypervla pretrain evla --data llava.json --images coco --init runs/evla-parts --out runs/evla-vlm

    Args:
        recipe: Name of a recipe of EVLA.
        data: Image-text pairs: a JSON list in LLaVA's format.
        images: Folder that the list's image names are relative to.
        out: Folder for checkpoints and logs.
        initial: A checkpoint to start from, such as hypervla weights import makes of published parts.
        resume: Continue the interrupted run in --out, bit for bit.
        fit: Whether pictures are padded to a square or pressed into one.
        epochs: How often to go through the pairs.
        batch: Pairs in a step.
        rate: Learning rate after the warm-up.
        workers: Processes that decode pictures beside the training process.
    """
    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.data.image_text import ImageText
    from hypervla.training.pretrain import pretrain as pretrain_recipe
    from hypervla.training.pretrain import text_recipe
    from hypervla.training.recipes import recipe as find_recipe

    model = find_recipe(recipe)
    start = None if initial is None else find_checkpoint(initial)
    pairs = ImageText(data, images, model.sampling.image_size, fit)
    chosen = text_recipe(model, len(pairs), epochs=epochs, batch=batch, rate=rate)
    options = {"resume": resume, "device": check_device(device), "workers": workers}
    pretrain_recipe(chosen, pairs, out, initial=start, **options)


@app.command(name="compile")
def compile_(
    checkpoint: Positional[str],
    /,
    *,
    instruction: str,
    image: UseAppendAction[tuple[str, ...]],
    out: Out,
    robot: str | None = None,
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
    """
    from hypervla.arguments import check_device, find_checkpoint, read_images
    from hypervla.runtime.compiler import load_compiler

    compiler = load_compiler(find_checkpoint(checkpoint), check_device(device), robot)
    policy = compiler.compile(instruction, read_images(image, compiler.embodiment))
    out.parent.mkdir(parents=True, exist_ok=True)
    policy.save(out)
    print(f"Wrote {out}: {policy.layout.size:,} generated weights for '{instruction}'.")


@app.command
def act(
    checkpoint: Positional[str],
    /,
    *,
    suite: str = "metaworld",
    task: str,
    instruction: str,
    video: Path,
    seed: int = 0,
    execution: Execution = "temporal-ensemble",
    device: Device = "cpu",
) -> None:
    """Try one sentence of your own in the simulator and film it.

    Example: hypervla act embedded --task drawer-open-v3 --instruction "open the drawer" --video out.mp4

    Args:
        checkpoint: Folder of a checkpoint, or the name of a shipped one.
        suite: The suite the task belongs to.
        task: The scene, by the name of its task.
        instruction: One sentence saying what the robot should do.
        video: Film to write (mp4).
        seed: Which scene of the task; never one that was trained on.
    """
    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.evaluation import rollout
    from hypervla.evaluation.suites import suite as find_suite
    from hypervla.runtime.execution import execution_mode

    found = find_suite(suite).only([task])
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


@app.command(name="eval")
def evaluate(
    checkpoint: Positional[str],
    /,
    *,
    suite: str,
    tasks: Tasks = (),
    trials: int = 10,
    seed: int = 0,
    workers: int | None = None,
    out: Out = Path("runs/eval"),
    held_out_instructions: Flag = False,
    against: Path | None = None,
    execution: Execution = "temporal-ensemble",
    device: Device = "cpu",
) -> None:
    """Roll a checkpoint out on a suite; print success per task and write results.json and report.html.

    Example: hypervla eval embedded --suite metaworld-mt10 --trials 10 --seed 0

    Args:
        checkpoint: Folder of a checkpoint, or the name of a shipped one.
        suite: Name of the suite.
        tasks: Only this task of the suite.
        trials: Attempts at each task.
        seed: First scene of each task.
        workers: Processes that simulate; one for each core when not given.
        out: Folder for the report.
        held_out_instructions: Ask with the paraphrases kept out of training.
        against: Folder of an earlier evaluation on the same scenes: also print what changed, scene by scene.
    """
    from rich.console import Console

    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.display import trial_progress
    from hypervla.evaluation import film, report, rollout
    from hypervla.evaluation.results import Results, paired
    from hypervla.evaluation.suites import suite as find_suite
    from hypervla.runtime.execution import execution_mode

    before = None if against is None else Results.load(against / "results.json")
    path, found, console = find_checkpoint(checkpoint), find_suite(suite), Console()
    found = found.only(tasks) if tasks else found
    with trial_progress(console) as on_trial:
        results = rollout.evaluate(
            path,
            found,
            trials=trials,
            seed=seed,
            execution=execution_mode(execution, found.embodiment),
            out=out,
            workers=workers,
            device=check_device(device),
            instructions="held_out" if held_out_instructions else "canonical",
            on_trial=on_trial,
        )
    page = report.write(results, film.load_filmstrips(out / "films"), out)
    console.print(report.table(results))
    if before is not None:
        console.print(f"Against {against}: {paired(before, results)}", soft_wrap=True)
    console.print(f"The report is in {page}", soft_wrap=True)


app.command(info)
app.command(weights_app, name="weights", help="Published weights into checkpoints, and back.")
app.command(bench_app, name="bench", help="Time the models beside the papers' figures.")


def fail(message: str, code: int) -> NoReturn:
    """End with one line on stderr."""
    print("hypervla: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit code 0: done; 2: something the user can put right, said in one line; 130: interrupted."""
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
