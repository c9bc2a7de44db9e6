#!/usr/bin/env bash
# Trains draft heads at scale: makes the data, then trains each arm on it, on a GPU where there is one.
#
#   baselines/heads/train.sh OUTPUT                    # the two shipped heads
#   ARMS="eagle fspad feature-sampling partial-alignment wide" SEEDS="0 1" baselines/heads/train.sh OUTPUT
#
# Every part resumes. With LIMIT=540 it stops itself after so many seconds with exit code 75; call it again until it
# ends with 0. On an H200 20 million tokens and 100 million token passes an arm are planned for 25 minutes in all.
set -euo pipefail
output=${1:?the folder that data and heads go to}
target=${TARGET:-smollm2-135m}
tokens=${TOKENS:-20M}
epochs=${EPOCHS:-5}
batch_tokens=${BATCH_TOKENS:-32768}
rows=${ROWS:-1024}
data=${DATA:-$output/data}
train=${TRAIN:---live --lr 0.002 --noise 0.05 --logit-weight 0.5 --warmup 100}
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}  # caches grow as answers do
end=$((SECONDS + ${LIMIT:-864000}))

within() {
    local left=$((end - SECONDS)) code=0
    ((left > 0)) || exit 75
    timeout --signal=INT --kill-after=20 "$left" "$@" || code=$?
    ((code != 124 && code != 130)) || exit 75
    return "$code"
}

if [ "$data" = "$output/data" ] && [ ! -e "$output/data.done" ]; then
    mkdir -p "$output"
    within fspad-bench distill --target "$target" --output "$data" --tokens "$tokens" --rows "$rows" --shard $((4 * rows))
    touch "$output/data.done"
fi
for seed in ${SEEDS:-0}; do
    for arm in ${ARMS:-fspad eagle}; do
        head="$output/$arm-$target-$seed"
        [ ! -e "$head/head.json" ] || continue
        # shellcheck disable=SC2086
        within fspad-bench train --decoder "$arm" --target "$target" --data "$data" --output "$head" \
            --epochs "$epochs" --batch-tokens "$batch_tokens" --seed "$seed" --checkpoint-every 60 $train
    done
done
