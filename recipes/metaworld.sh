#!/usr/bin/env bash
# The embedded checkpoint, from nothing: demonstrations of ten tasks, training, demonstrations of how to mend its
# mistakes, training; then 50 demonstrations of each of fifty tasks, and training from there. Two CPU cores with bf16
# units, about four hours. Every step can be interrupted: the same command continues.
set -euo pipefail
data=${1:-data}
runs=${2:-runs}
mkdir -p "$data" "$runs"

train() {  # train OUT ARGUMENTS...
    local out=$1 resume=(); shift
    [ -d "$out/resume" ] && resume=(--resume)
    hypervla train metaworld_small --out "$out" "${resume[@]}" "$@"
}

# 1,510 demonstrations (19 minutes), more of them for the tasks with a small puck or peg. The executed action carries
# noise, its label none.
hypervla record --suite metaworld-mt10 --episodes 150 240 300 100 100 60 100 300 80 80 \
    --noise 0.4 --max-steps 250 --workers 2 --out "$data/mt10"
train "$runs/metaworld_small_1" --data "$data/mt10" --steps 3500 # 27 minutes

# 545 more (7 minutes): the policy drives up to 120 steps, the expert labels them and then takes over.
hypervla record --suite metaworld-mt10 --episodes 80 110 130 20 30 15 20 110 15 15 --seed 5000 \
    --noise 0.1 --max-steps 250 --workers 2 --driver "$runs/metaworld_small_1" --out "$data/mt10-driven"
train "$runs/metaworld_small_2" --data "$data/mt10" --data "$data/mt10-driven" \
    --init "$runs/metaworld_small_1" --steps 6000 # 43 minutes

# All fifty tasks; the ten's own demonstrations go on at half their weight.
hypervla record --suite metaworld-mt50 --episodes 50 --noise 0.3 --max-steps 300 --workers 2 --out "$data/mt50"
train "$runs/metaworld_small" --data "$data/mt50" --data "$data/mt10:0.5" \
    --init "$runs/metaworld_small_2" --steps 6000 # 105 minutes of one core

# Scenes, and then sentences, that training has not seen; then every instruction of three tasks in all their scenes.
hypervla eval "$runs/metaworld_small" --suite metaworld-mt50 --trials 10 --out "$runs/eval-mt50"
hypervla eval "$runs/metaworld_small" --suite metaworld-mt10 --trials 30 --out "$runs/eval"
hypervla eval "$runs/metaworld_small" --suite metaworld-mt10 --trials 30 --held-out-instructions \
    --against "$runs/eval" --out "$runs/eval-held-out"
hypervla eval "$runs/metaworld_small" --suite metaworld-shared-scene --out "$runs/eval-shared-scene"
