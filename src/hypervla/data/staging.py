"""The folder of an unfinished recording: what was planned, what came of every attempt, and how it becomes a dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError
from hypervla.data.lerobot_writer import LeRobotWriter
from hypervla.data.staged import write_json
from hypervla.embodiment import Embodiment

FOLDER = ".recording"
PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What is to be recorded; two plans that are equal give the same dataset, whatever the number of workers."""

    suite: str
    tasks: tuple[str, ...]
    episodes: tuple[int, ...]
    """Successful episodes wanted, by task."""
    noise: float
    """The largest standard deviation of the action noise, as a share of the limits; each episode draws its own below
    it."""
    seed: int
    """Attempt k of a task happens in the scene of seed + k."""
    max_steps: int
    driver: str = ""
    """The policy that drives the first steps of each episode; empty when the demonstrator does it all."""

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps({"version": PLAN_VERSION, **asdict(self)}))


def most_failures(wanted: int) -> int:
    """With more than so many at a task it is given up."""
    return 20 + 4 * wanted


def most_attempts(wanted: int) -> int:
    """All that can be made at a task: its successes, and one failure more than are borne."""
    return wanted + most_failures(wanted) + 1


@dataclass
class Tally:
    """The attempts of one task: what came of those that ended, and those under way."""

    wanted: int
    ended: dict[int, bool] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)

    @property
    def kept(self) -> int:
        return sum(self.ended.values())

    @property
    def failed(self) -> int:
        return len(self.ended) - self.kept

    def next_attempt(self) -> int | None:
        """The lowest attempt not yet made, unless those under way may suffice.

        Never running more than may be needed makes the kept episodes the first successes in the order of their
        seeds, however many workers there are and however often they were interrupted.
        """
        if self.kept + len(self.running) >= self.wanted:
            return None
        return next(k for k in count() if k not in self.ended and k not in self.running)

    @property
    def hopeless(self) -> bool:
        return self.failed > most_failures(self.wanted)


def tallies_of(staging: Path, plan: Plan) -> list[Tally]:
    """What came of the attempts so far, by task."""
    tallies = [Tally(wanted) for wanted in plan.episodes]
    for path in staging.glob("task-*/attempt-*/attempt.json"):
        if path.parent.suffix != ".tmp":
            task, attempt = (int(part.rsplit("-", 1)[1]) for part in path.parent.parts[-2:])
            tallies[task].ended[attempt] = json.loads(path.read_text())["success"]
    return tallies


def attempt_folder(staging: Path, task: int, attempt: int) -> Path:
    return staging / f"task-{task:03d}" / f"attempt-{attempt:05d}"


def is_finished(out: Path, plan: Plan) -> bool:
    """Whether this plan's dataset is complete; another dataset in its place raises UserError."""
    if not (out / "meta/info.json").is_file():
        return False
    about = out / "meta/hypervla.json"
    if not about.is_file() or json.loads(about.read_text()).get("plan") != plan.to_json():
        raise UserError(f"{out} already holds another dataset: record into a new folder.")
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return True


def open_staging(out: Path, staging: Path, plan: Plan) -> None:
    """Begin in an empty folder, or go on with the same plan; drops what an interruption left half done."""
    begun = (staging / "plan.json").is_file()
    if not begun and out.exists() and (not out.is_dir() or any(path != staging for path in out.iterdir())):
        raise UserError(f"{out} exists and is no recording of ours: record into a new folder.")
    if begun:
        known, wanted = json.loads((staging / "plan.json").read_text()), plan.to_json()
        different = [name for name in wanted if known.get(name) != wanted[name]]
        if different:
            raise UserError(
                f"{out} holds an unfinished recording with other settings ({', '.join(different)}): "
                f"repeat its command to continue it, or record into a new folder."
            )
    write_json(staging / "plan.json", plan.to_json())
    for half_done in staging.glob("task-*/attempt-*.tmp"):
        shutil.rmtree(half_done)
    for name in ("data", "videos", "meta"):
        shutil.rmtree(out / name, ignore_errors=True)


def assemble(out: Path, staging: Path, plan: Plan, command: str) -> None:
    """Join the kept episodes, by task and then by seed, into the dataset, and drop the staging folder."""
    tallies = tallies_of(staging, plan)
    writer: LeRobotWriter | None = None
    paraphrases: dict[str, Sequence[str]] = {}
    for task, tally in enumerate(tallies):
        for attempt in sorted(attempt for attempt, success in tally.ended.items() if success):
            folder = attempt_folder(staging, task, attempt)
            about = json.loads((folder / "attempt.json").read_text(encoding="utf-8"))
            embodiment = Embodiment.from_json(about["embodiment"])
            writer = writer or LeRobotWriter(out, embodiment)
            if writer.embodiment != embodiment:
                raise UserError(
                    f"{out} was begun with another embodiment ({writer.embodiment.name}): record into a new folder."
                )
            paraphrases[about["instructions"][0]] = about["instructions"]
            writer.add(folder)
    assert writer is not None
    failed = {name: tally.failed for name, tally in zip(plan.tasks, tallies, strict=True)}
    writer.finish(
        paraphrases=paraphrases,
        about={"command": command, "suite": plan.suite, "plan": plan.to_json(), "failed_attempts": failed},
    )
    kept = sum(tally.kept for tally in tallies)
    print(f"{out}: {kept} episodes, {writer.frames} frames; {sum(failed.values())} failed attempts left out.")
    shutil.rmtree(staging)
