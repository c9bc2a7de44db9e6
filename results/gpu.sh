#!/usr/bin/env bash
# What only a GPU can show: the kernels compiled and tested, their speed, a step's cost, losslessness and speedup there.
#
#   results/gpu.sh OUTPUT question_odd.jsonl
#
# Every part leaves its output in OUTPUT and is skipped when that is complete. With LIMIT=540 the script stops itself
# after so many seconds with exit code 75; call it again until it ends with 0. Planned for 25 minutes on an H200.
set -euo pipefail
output=${1:?the folder that reports and records go to}
questions=${2:?a file of Spec-Bench questions}
device=${DEVICE:-cuda}
target=${TARGET:-smollm2-135m}
shapes=${SHAPES:-random:smollm2-135m random:llama3-8b random:llama3-70b:8}
measured=(--target "$target" --device "$device" --data "spec-bench=$questions" --max-new-tokens "${TOKENS:-128}")
end=$((SECONDS + ${LIMIT:-864000}))
mkdir -p "$output"

part() {  # part NAME COMMAND...: its output to NAME.txt, once
    local name=$1 left=$((end - SECONDS)) code=0
    shift
    [ ! -e "$output/$name.txt" ] || return 0
    ((left > 0)) || exit 75
    echo "$name: $*" >&2
    timeout --signal=INT --kill-after=20 "$left" "$@" > "$output/$name.part" 2> "$output/$name.err" || code=$?
    ((code != 124 && code != 130)) || exit 75
    if ((code > 1)) || [ ! -s "$output/$name.part" ]; then  # 1 with a report: a check that does not hold is a finding
        tail -5 "$output/$name.err" >&2
        return "$((code ? code : 1))"
    fi
    mv "$output/$name.part" "$output/$name.txt"
}

[ -n "${SKIP_TESTS:-}" ] || part tests python -m pytest -m gpu -q -p no:cacheprovider "$(dirname "$0")/../tests"
part certify fspad-bench certify --decoder all --quick --device "$device"
for shape in $shapes; do
    name=${shape#random:}
    part "kernels-${name//:/-}" fspad-bench profile --kernels --target "$shape" --device "$device" \
        --prefixes "${PREFIXES:-1024,4096,16384,32768}" --nodes "${NODES:-1,8,32,64}" --picture "$output/kernels-${name//:/-}.png"
    part "steps-${name//:/-}" fspad-bench profile --target "$shape" --device "$device"
done
part identity fspad-bench run --decoder fspad,eagle,prompt_lookup --task all "${measured[@]}" --limit 4 \
    --dtype float32 --temperature 0,1 --output "$output/float32-identity"
part speed fspad-bench run --decoder fspad,eagle,prompt_lookup,fspad_bench.integrations.transformers_generate:StockGenerate \
    --task all "${measured[@]}" --limit 10 --dtype bfloat16 --output "$output/bfloat16-greedy"
part speed-sampled fspad-bench run --decoder fspad,eagle,prompt_lookup --task all "${measured[@]}" --limit 10 \
    --dtype bfloat16 --temperature 1 --output "$output/bfloat16-sampled"
