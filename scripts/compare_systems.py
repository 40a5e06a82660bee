"""Train comparison recipes on one dataset at two equal budgets, samples and time, and roll each checkpoint out.

    python scripts/compare_systems.py small_hypervla small_alone --data data/mt10 --out runs/compare --core 1

Each system first sees the same number of samples; then it goes on until its training steps have taken the given
minutes of one core's time (a system that is there already does not). Both checkpoints are rolled out on the same
scenes. Every part can be interrupted: the same command goes on. `OUT/NAME.json` holds a system's results as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROUND = 50
"""Steps between two reports of a run."""
CURVE = ("step", "loss", "validation_loss", "action_token_accuracy")
"""What is kept of each report."""


def hypervla(arguments: argparse.Namespace, *words: str) -> None:
    """One command on one core."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    core = [] if arguments.core is None else ["taskset", "-c", str(arguments.core)]
    subprocess.run([*core, sys.executable, "-m", "hypervla.cli", *words], env=environment, check=True)


def rows(run: Path) -> list[dict]:
    """The reports of a run, the last of each step (a resumed run may report a step again)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return list({row["step"]: row for row in lines}.values())


def seconds(run: Path) -> float:
    """Processor time of the training steps, without decoding and validation: on one thread, that of an idle core."""
    return sum(row["processor_seconds"] for row in rows(run))


def train(arguments: argparse.Namespace, name: str, run: Path, steps: int) -> None:
    """Bring the run to this many steps, unless it is there."""
    card = run / "checkpoint.json"
    done = json.loads(card.read_text())["provenance"]["step"] if card.exists() else 0
    if done >= steps:
        return
    resume = ["--resume"] if (run / "resume").exists() else []
    hypervla(arguments, "train", name, "--data", arguments.data, "--out", str(run), "--steps", str(steps), *resume)


def judge(arguments: argparse.Namespace, run: Path, out: Path) -> dict:
    """Success of a checkpoint, task by task; an evaluation that is complete stands."""
    suite, trials = arguments.suite, str(arguments.trials)
    if not (out / "results.json").exists():
        hypervla(arguments, "eval", str(run), "--suite", suite, "--trials", trials, "--workers", "1", "--out", str(out))
    trials_made = json.loads((out / "results.json").read_text())["trials"]
    tasks = sorted({trial["task"] for trial in trials_made})
    return {task: [int(trial["success"]) for trial in trials_made if trial["task"] == task] for task in tasks}


def compare(arguments: argparse.Namespace, name: str) -> None:
    from hypervla.benchmark.counts import describe
    from hypervla.runtime.provenance import code_commit, machine
    from hypervla.training.recipes import recipe

    chosen, run = recipe(name), arguments.out / name
    samples = chosen.batch_contexts * chosen.sampling.frames_per_context
    found = {"system": name, "samples_a_step": samples, "commit": code_commit(), "machine": machine()}
    found["model"] = describe(chosen.model)
    for budget in ("equal samples", "equal time"):
        copy = arguments.out / f"{name}-{budget.split()[1]}"
        steps = arguments.steps
        if budget == "equal time":
            rate = steps / (60 * found["equal samples"]["minutes"])
            steps = max(steps, round(arguments.minutes * 60 * rate / ROUND) * ROUND)
        if steps == arguments.steps and budget == "equal time":
            found[budget] = found["equal samples"]  # they took the time already
        else:
            found[budget] = trained(arguments, run, copy, steps, samples)
        (arguments.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def trained(arguments: argparse.Namespace, run: Path, copy: Path, steps: int, samples: int) -> dict:
    """The run at so many steps, kept in `copy`, and its success."""
    if not copy.exists():
        train(arguments, run.name, run, steps)
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("resume"))
    last = rows(copy)[-1]
    return {
        "steps": last["step"],
        "minutes": seconds(copy) / 60,
        "samples_per_second": last["step"] * samples / seconds(copy),
        "loss": last["loss"],
        "validation_loss": last.get("validation_loss"),
        "curve": [{key: row[key] for key in CURVE if key in row} for row in rows(copy)],
        "successes": judge(arguments, copy, arguments.out / "evaluations" / copy.name),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", help="recipes, such as small_hypervla")
    parser.add_argument("--data", required=True, help="folder of the demonstrations")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--steps", type=int, default=1_500, help="steps of the equal-samples budget")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of training of the equal-time budget")
    parser.add_argument("--suite", default="metaworld-mt10")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--core", type=int, help="run on this processor core only")
    arguments = parser.parse_args()
    for name in arguments.systems:
        compare(arguments, name)


if __name__ == "__main__":
    main()
