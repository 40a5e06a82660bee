#!/usr/bin/env bash
# Few-shot adaptation (HyperVLA's table 2): 50 demonstrations of each task of a LIBERO suite, from a pretrained
# checkpoint and from scratch. Small recipe, two CPU cores: about two hours a suite. Every step can be interrupted: the
# same command continues. Wants make env-libero and HYPERVLA_LIBERO_ASSETS (docs/guide.md). SUITE is object, spatial,
# goal or 10; options are those of hypervla study: --trials 50 --seeds 3.
#
#     recipes/libero_adapt.sh [DATA] [RUNS] [SUITE...] [OPTION...]
set -euo pipefail
data=${1:-data}
runs=${2:-runs}
suites=() options=()
for word in "${@:3}"; do
    if [[ $word == -* || ${#options[@]} -gt 0 ]]; then options+=("$word"); else suites+=("$word"); fi
done
[ ${#suites[@]} -eq 0 ] && suites=(object spatial)

declare -A steps=([spatial]=280 [object]=280 [goal]=300 [10]=520)
for suite in "${suites[@]}"; do
    [ -n "${steps[$suite]:-}" ] || { echo "There is no suite '$suite': object, spatial, goal or 10." >&2; exit 2; }
done
for suite in "${suites[@]}"; do
    [ -d "$data/libero-$suite/meta" ] || hypervla record --suite "libero-$suite" --episodes 50 --noise 0.2 \
        --max-steps "${steps[$suite]}" --workers 2 --out "$data/libero-$suite"
done
hypervla study few-shot --data "$data" --out "$runs/few-shot" $(printf -- '--only %s ' "${suites[@]}") "${options[@]}"

# The paper's, on GPUs: 10,000 steps (60,000 for libero-10) from the checkpoint that was pretrained on Open
# X-Embodiment, 50 trials a task. Published: Spatial 95 %, Object 94 %, Goal 92 %, 10 74 %.
#
#     hypervla train paper --mixture oxe_hypervla --data OXE --out "$runs/paper" --device cuda --workers 8
#     hypervla train paper --data "$data/libero-object" --camera image --init "$runs/paper" --steps 10000 \
#         --out "$runs/paper-libero-object" --device cuda --workers 8
#     hypervla eval "$runs/paper-libero-object" --suite libero-object-hypervla --trials 50 --device cuda
