"""The tables and plots of what compare_systems.py measured.

    hypervla bench table3 --scale small --json > table3.json
    hypervla bench evla --scale small --json > evla.json
    python scripts/comparison_report.py docs/results/small_*.json --bench table3.json evla.json --out docs

Prints Markdown: success at both budgets, with what reading, computing and learning cost; and each system against the
first one named, on the same scenes. Writes OUT/comparison.png and, where there are two EVLAs, OUT/evla.png. A system
that has not had a budget yet is left out there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypervla.evaluation.intervals import PairedDifference, Rate
from hypervla.evaluation.report import percent, span

BUDGETS = ("equal samples", "equal time")
EVLAS = ("small_evla", "small_evla_autoregressive")
WORDS = {"small_evla": "joint: one pass", "small_evla_autoregressive": "autoregressive: one after another"}
PLAIN = "fused attention"
Found = Mapping[str, Any]


def outcomes(found: Found, budget: str) -> list[int]:
    """Of every scene, in one order."""
    successes = found[budget]["successes"]
    return [outcome for task in sorted(successes) for outcome in successes[task]]


def rate(found: Found, budget: str) -> Rate:
    all_of_them = outcomes(found, budget)
    return Rate(sum(all_of_them), len(all_of_them))


def against(first: Found, other: Found, budget: str) -> PairedDifference:
    """The other minus the first."""
    pairs = list(zip(outcomes(first, budget), outcomes(other, budget), strict=True))
    return PairedDifference(len(pairs), gained=pairs.count((0, 1)), lost=pairs.count((1, 0)))


def read_latency(benches: Sequence[Path]) -> dict[str, float]:
    """Median milliseconds of one control step by recipe; of several ways to compute it, the plain one."""
    rows = [row for path in benches for row in json.loads(path.read_text())["systems"]]
    plain = [row for row in rows if row["latency"] and row.get("way", PLAIN) == PLAIN]
    return {row["recipe"]: 1000 * row["latency"]["p50"] for row in reversed(plain)}


def main_table(systems: Sequence[Found], latency: Mapping[str, float]) -> list[str]:
    head = [
        *("system", "equal samples", "95 %", "equal time", "95 %"),
        *("steps in that time", "activated", "one step", "training"),
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for found in systems:
        cells = [f"`{found['system']}`"]
        for budget in BUDGETS:
            of_budget = rate(found, budget) if budget in found else None
            cells += ["–", "–"] if of_budget is None else [percent(of_budget.mean), span(of_budget.interval)]
        milliseconds = latency.get(found["system"])
        cells += [
            f"{found['equal time']['steps']:,}" if "equal time" in found else "–",
            f"{found['model']['activated']:,}",
            "–" if milliseconds is None else f"{milliseconds:.1f} ms",
            f"{found['equal samples']['samples_per_second']:.0f}/s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def task_table(systems: Sequence[Found]) -> list[str]:
    """Successes by task in the same time."""
    systems = [found for found in systems if "equal time" in found]
    tasks = sorted(systems[0]["equal time"]["successes"])
    lines = ["| task | " + " | ".join(f"`{found['system']}`" for found in systems) + " |"]
    lines.append("|---" * (len(systems) + 1) + "|")
    for task in tasks:
        counts = [str(sum(found["equal time"]["successes"][task])) for found in systems]
        lines.append(f"| {task} | {' | '.join(counts)} |")
    return lines


def plot_success(systems: Sequence[Found], path: Path) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 0.55 * len(systems) + 1.2), layout="constrained")
    for budget, offset, colour in zip(BUDGETS, (0.17, -0.17), ("#9db4d3", "#2b5797"), strict=True):
        there = [i for i, found in enumerate(systems) if budget in found]
        rates = [rate(systems[i], budget) for i in there]
        ends = [[r.mean - r.interval.low for r in rates], [r.interval.high - r.mean for r in rates]]
        places = [len(systems) - i + offset for i in there]
        axis.barh(places, [r.mean for r in rates], 0.32, xerr=ends, color=colour, ecolor="#555", label=budget)
    axis.set_yticks([len(systems) - i for i in range(len(systems))], [found["system"] for found in systems])
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axis.set_xlabel("success, 30 scenes of each of 10 tasks, 95 % intervals")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)


def plot_twins(twins: Sequence[Found], path: Path) -> None:
    """Training loss, and accuracy on held-back episodes, by samples and by time."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex="col", sharey="row")
    for found, colour in zip(twins, ("#2b5797", "#c0504d"), strict=True):
        run, name = found["equal time"], WORDS[found["system"]]
        minutes_a_step = run["minutes"] / run["steps"]
        for row, key in enumerate(("loss", "action_token_accuracy")):
            points = [(report["step"], report[key]) for report in run["curve"] if key in report]
            steps, values = zip(*points, strict=True)
            axes[row][0].plot([s * found["samples_a_step"] / 1000 for s in steps], values, color=colour, label=name)
            axes[row][1].plot([s * minutes_a_step for s in steps], values, color=colour, label=name)
    axes[0][0].set_ylabel("training loss")
    axes[1][0].set_ylabel("share of bins that are right, held back")
    axes[1][0].set_xlabel("thousand samples")
    axes[1][1].set_xlabel("minutes on one core")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="what compare_systems.py wrote")
    parser.add_argument("--bench", nargs="*", type=Path, default=[], help="what hypervla bench … --json printed")
    parser.add_argument("--out", type=Path, required=True, help="folder for the plots")
    arguments = parser.parse_args()
    systems = [json.loads(path.read_text()) for path in arguments.results]
    latency = read_latency(arguments.bench)
    print(*main_table(systems, latency), "", *task_table(systems), "", sep="\n")
    for budget in BUDGETS:
        for other in (found for found in systems[1:] if budget in found and budget in systems[0]):
            print(f"{other['system']} minus {systems[0]['system']}, {budget}: {against(systems[0], other, budget)}")
    plot_success(systems, arguments.out / "comparison.png")
    twins = [found for name in EVLAS for found in systems if found["system"] == name]
    if len(twins) == len(EVLAS):
        plot_twins(twins, arguments.out / "evla.png")


if __name__ == "__main__":
    main()
