"""How well EVLA's action tokens are told when those before are the true ones, and when they are its own.

    python scripts/evla_own_tokens.py runs/small_evla runs/small_evla_autoregressive --data data/mt10

Prints, for each action dimension on held-back frames, the share of bins that are right and the mean distance of the
actions (normalised, ±1). Training and its accuracy know the true tokens before; acting does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hypervla import checkpoint
from hypervla.data.normalize import Robot
from hypervla.data.opening import open_mixture
from hypervla.data.stream import SampleStream
from hypervla.models.action_tokens import BINS, values_of
from hypervla.training.batches import from_stream
from hypervla.training.recipes import recipe

CONTEXTS, BATCHES = 16, 8


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="checkpoints of a recipe of EVLA")
    parser.add_argument("--data", required=True, help="folder of the demonstrations")
    arguments = parser.parse_args()
    mixture = open_mixture([arguments.data])
    for folder in arguments.checkpoints:
        model, about, _ = checkpoint.load(folder)
        robots = {name: Robot.from_json(robot) for name, robot in about.robots.items()}
        sampling = recipe(about.provenance["recipe"]["name"]).sampling
        stream = SampleStream(mixture, robots, sampling, seed=0, reads_proprio=False, pictures=None, validation=True)
        batch_of = from_stream(stream, CONTEXTS)
        rows: dict[str, list[torch.Tensor]] = {"true": [], "told": [], "own": []}
        for i in range(BATCHES):
            batch = batch_of(i)
            bins, _ = model._targets(batch)
            tensors = model.prepare(batch.inputs())
            logits = model._logits(bins, *tensors)[:, : model.config.actions, :BINS]
            for name, found in (("true", bins), ("told", logits.argmax(-1)), ("own", model.generate(*tensors))):
                rows[name].append(found)
        true, told, own = (torch.cat(parts) for parts in rows.values())
        print(f"{folder.name}, step {about.provenance['step']}, {len(true)} held-back frames")
        for words, found in (("true tokens before", told), ("its own before", own)):
            right = (found == true).float().mean(0)
            off = (values_of(found + 1) - values_of(true + 1)).abs().mean(0)
            print(f"  {words}: right {_rounded(right)}, off {_rounded(off)}")


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


if __name__ == "__main__":
    main()
