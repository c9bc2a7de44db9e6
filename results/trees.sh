#!/usr/bin/env bash
# Compare adaptive trees with trees of fixed sizes (nodes/depth) in one run.
#
#   DECODER=fspad SIZES="8/2 16/3" HEAD=FOLDER results/trees.sh question_odd.jsonl [more options of run]
#
# - `python results/trees.py FOLDER` makes the table of such a record.
# - Run nothing else meanwhile: the speeds compared are a few percent apart.
set -euo pipefail
questions=${1:?a file of Spec-Bench questions}
shift
decoder=${DECODER:-fspad}
decoders="vanilla,auto=$decoder"
options=(-D auto.tree=auto)
for size in ${SIZES:-4/1 6/2 8/2 8/3 12/3 16/3 16/4 24/4 32/5}; do
    nodes=${size%/*}
    depth=${size#*/}
    name="n${nodes}d${depth}"
    decoders+=",$name=$decoder"
    options+=(-D "$name.tree=fixed" -D "$name.nodes=$nodes" -D "$name.depth=$depth")
    if [ -n "${HEAD:-}" ]; then options+=(-D "$name.head=$HEAD"); fi
done
if [ -n "${HEAD:-}" ]; then options+=(-D "auto.head=$HEAD"); fi
exec fspad-bench run --decoder "$decoders" "${options[@]}" --target "${TARGET:-smollm2-135m}" --task all \
    --data "spec-bench=$questions" --limit 10 --max-new-tokens 128 --dtype bfloat16 "$@"
