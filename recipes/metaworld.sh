#!/usr/bin/env bash
# The embedded checkpoint, from nothing: demonstrations, training, evaluation. Two CPU cores, about two hours.
#   20 minutes to record 1,510 demonstrations of ten tasks, 75 to 90 to train, 10 to evaluate.
# Every step can be interrupted: the same command continues.
set -euo pipefail
data=${1:-data/mt10}
run=${2:-runs/metaworld_small}

# More demonstrations for the tasks with a small puck or peg. The executed action carries noise, its label none.
hypervla record --suite metaworld-mt10 --episodes 150 240 300 100 100 60 100 300 80 80 \
    --noise 0.4 --max-steps 250 --workers 2 --out "$data"

resume=(); [ -d "$run/resume" ] && resume=(--resume)
hypervla train metaworld_small --data "$data" --out "$run" "${resume[@]}"

# Scenes, and then sentences, that training has not seen; then every instruction of three tasks in every scene of theirs.
hypervla eval "$run" --suite metaworld-mt10 --trials 30 --seed 0 --out "$run/eval"
hypervla eval "$run" --suite metaworld-mt10 --trials 30 --seed 0 --held-out-instructions --out "$run/eval-held-out"
hypervla eval "$run" --suite metaworld-shared-scene --trials 10 --seed 0 --out "$run/eval-shared-scene"
