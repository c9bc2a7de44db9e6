#!/usr/bin/env bash
# Trains the shipped heads: `baselines/heads/train.sh conversations.jsonl`. Uses a GPU where there is one; a killed run
# goes on where it stopped. On two CPU cores an epoch over a million answer tokens takes six to ten minutes a head.
set -euo pipefail
data=${1:-self}
epochs=${2:-6}
cd "$(dirname "$0")"
for decoder in fspad eagle; do
    fspad-bench train --decoder "$decoder" --target smollm2-135m --data "$data" --output "$decoder-smollm2-135m" \
        --epochs "$epochs" --noise 0.05 --logit-weight 0.5 --warmup 100
done
