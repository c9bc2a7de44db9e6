#!/usr/bin/env bash
# FSPAD's claim at equal data, steps and seeds: compare trained heads in one run. The heads are those of
# `DECODER="eagle fspad ..." SEEDS="0 1" baselines/heads/train.sh HEADS`.
#
#   results/variants.sh HEADS question_odd.jsonl [more options of run]
#
# `python results/variants.py FOLDER` makes the table of such a record.
set -euo pipefail
heads=${1:?the folder of the trained heads}
questions=${2:?a file of Spec-Bench questions}
shift 2
target=${TARGET:-smollm2-135m}
decoders=vanilla
options=()
for head in "$heads"/*-"$target"-*/; do
    name=$(basename "$head" | sed "s/-$target-/-/")
    decoders+=",$name=fspad_bench.decoders.variants:AnyHead"
    options+=(-D "$name.head=${head%/}" -D "$name.tree=fixed")
done
exec fspad-bench run --decoder "$decoders" "${options[@]}" --target "$target" --task all \
    --data "spec-bench=$questions" --limit 10 --max-new-tokens 128 --temperature 0,1 "$@"
