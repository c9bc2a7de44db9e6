#!/usr/bin/env bash
# Make a data set and train draft heads on it, each stage bounded in seconds and resumable.
#
#   BUDGET=540 PACK=$OUT baselines/heads/train.sh OUTPUT      # one FSPAD head, on a lent GPU
#   BUDGET=100000 DATA_SECONDS=50000 TRAIN_SECONDS=50000 DECODER="fspad eagle" \
#       baselines/heads/train.sh OUTPUT                       # unhurried, on any machine
#   DECODER="eagle fspad feature-sampling partial-alignment wide" SEEDS="0 1" ...  # the variants
#
# - OUTPUT/data is the data set; OUTPUT/DECODER-TARGET-SEED a head, its held-out figures in
#   held_out.json. DATA=FOLDER trains on a data set that exists.
# - A data set that is cut off after DATA_SECONDS is trained on as it is, and never grows again:
#   checkpoints belong to their data.
# - A training that is cut off after TRAIN_SECONDS is ended at its last checkpoint (a stage of its
#   own), so that there is always a head; FINISH=0 leaves it to a later call. The learning rate of
#   such a head has not decayed.
# - To go on on another machine: FROM=FOLDER of what came back. Its checkpoint is there only if it
#   fits; TRAIN="... --init HEAD" goes on from a head.
# - baselines/parts.sh has the rules of BUDGET, AGAIN, PACK, FROM, WHEELS and PYTHON.
set -euo pipefail
# shellcheck source=baselines/parts.sh
source "$(dirname "${BASH_SOURCE[0]}")/../parts.sh"
device=${DEVICE:-auto}
target=${TARGET:-smollm2-135m}
tokens=${TOKENS:-4M}
data_seconds=${DATA_SECONDS:-240}
train_seconds=${TRAIN_SECONDS:-240}
epochs=${EPOCHS:-3}
batch_tokens=${BATCH_TOKENS:-16384}
rows=${ROWS:-2048}
options=${TRAIN:---live --lr 0.002 --noise 0.05 --logit-weight 0.5 --warmup 100}
# The caches of `distill` grow as answers do.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

make_data() {
    local shards
    if [ -n "${AGAIN:-}" ] || [ ! -e "$output/data.done" ]; then
        part data "$data_seconds" "$python" -m fspad_bench distill --target "$target" \
            --device "$device" --output "$data" --tokens "$tokens" --rows "$rows" \
            --shard "${SHARD:-$((rows < 128 ? rows : 128))}" --seed "${DATA_SEED:-0}"
    fi
    shards=("$data"/shard-*.jsonl)
    if [ ! -e "${shards[0]}" ]; then
        echo "there is no data yet" >&2
        end_parts
    fi
    failures=0  # what there is of the data will do
    # With no time left for training another call may still add to the data.
    if is_done data || (($(seconds_left) >= least)); then
        touch "$output/data.done"
    fi
}

# train_head STAGE SECONDS HEAD DECODER SEED EPOCHS
train_head() {
    # shellcheck disable=SC2086
    part "$1" "$2" "$python" -m fspad_bench train --decoder "$4" --target "$target" \
        --device "$device" --data "$data" --output "$3" --epochs "$6" --seed "$5" \
        --batch-tokens "$batch_tokens" --checkpoint-every "${CHECKPOINT_SECONDS:-30}" $options
}

# epochs_learned HEAD: the epochs that end just behind the last checkpoint.
epochs_learned() {
    "$python" - "$1/curve.csv" "$epochs" <<'CODE'
import csv
import sys

*_, last = csv.DictReader(open(sys.argv[1], newline=""))
step = int(last["step"])
steps = int(last["steps"])
more = max(2, steps // 100)  # epochs differ a little in their number of steps
print(min(1.0, (step + more) / steps) * float(sys.argv[2]))
CODE
}

write_figures() {
    "$python" - "$1" <<'CODE'
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
facts = json.loads((folder / "head.json").read_text())
figures = json.dumps(facts["held_out"], indent=2)
(folder / "held_out.json").write_text(figures + "\n")
print(folder.name, figures)
CODE
}

begin_parts "${1:?the folder that data and heads go to}" train
if [ -n "${DATA:-}" ]; then
    data=$DATA
else
    data=$output/data
    make_data
fi
for seed in ${SEEDS:-0}; do
    for decoder in ${DECODER:-fspad}; do
        name=$decoder-$(basename "$target")-$seed
        head=$output/$name
        [ -n "${AGAIN:-}" ] || [ ! -e "$head/held_out.json" ] || continue
        before=$failures
        reserve=$((${FINISH_SECONDS:-40} < budget / 4 ? ${FINISH_SECONDS:-40} : budget / 4))
        # a head needs a moment to be evaluated and written; a part's seconds are times SLOWER
        left=$((($(seconds_left) - reserve) / ${SLOWER:-1}))
        train_head "train-$name" "$((left < train_seconds ? left : train_seconds))" \
            "$head" "$decoder" "$seed" "$epochs"
        if [ ! -e "$head/head.json" ] && [ "${FINISH:-1}" = 1 ] && [ -e "$head/curve.csv" ]; then
            train_head "finish-$name" "$train_seconds" "$head" "$decoder" "$seed" \
                "$(epochs_learned "$head")"
        fi
        if [ -e "$head/head.json" ]; then
            write_figures "$head"
            failures=$before  # the training that was cut off has been ended
        fi
    done
done
end_parts
