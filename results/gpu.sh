#!/usr/bin/env bash
# What only a GPU can show, in parts ordered by worth: kernels, identity, speed, costs, the rest.
#
#   results/gpu.sh [PART ...]            # all parts, or the named ones
#   BUDGET=540 PACK=$OUT results/gpu.sh  # within nine minutes; call it again for what is not done
#
# - OUTPUT (fspad-results/gpu) gets summary.tsv, a log per part and the records. baselines/parts.sh
#   has the rules of parts, of BUDGET, AGAIN, PACK, FROM, WHEELS and PYTHON.
# - TARGET: a folder or preset. Without it smollm2-135m if this machine has it, else tiny, on which
#   figures of speed mean nothing. MODEL=FOLDER: smollm2.gguf.part-*, to make smollm2-135m of.
# - QUESTIONS: a file of Spec-Bench questions; without it the bundled samples.
# - SHAPES: the random weights whose kernels and forwards are timed. LIST=1 lists the parts.
set -euo pipefail
# shellcheck source=baselines/parts.sh
source "$(dirname "${BASH_SOURCE[0]}")/../baselines/parts.sh"
device=${DEVICE:-cuda}
shapes=${SHAPES:-smollm2-135m llama3-8b}
stock=fspad_bench.integrations.transformers_generate:StockGenerate

target() {
    local model
    if [ -n "${TARGET:-}" ]; then
        echo "$TARGET"
        return
    fi
    for model in "$FSPAD_BENCH_CACHE"/smollm2-135m-*/config.json; do
        if [ -e "$model" ]; then
            echo smollm2-135m
            return
        fi
    done
    echo tiny
}

tasks() {  # without the package rouge_score cnn_dm cannot be scored
    if [ -n "${TASKS:-}" ]; then
        echo "$TASKS"
    elif has_module rouge_score; then
        echo all
    else
        echo mt_bench,gsm8k,nq,rag,wmt
    fi
}

# A part on the tiny target has a name of its own: on a real one it is still to be done.
named_for_target() {
    if [ "$(target)" = tiny ]; then
        echo "${1%-tiny}-tiny"
    else
        echo "$1"
    fi
}

generate() {  # generate NAME SECONDS DECODERS TARGET OPTION...: a run whose record lies in OUTPUT/NAME
    local name=$1 limit=$2 decoders=$3 model=$4
    shift 4
    part "$name" "$limit" "$python" -m fspad_bench run --decoder "$decoders" --target "$model" \
        --device "$device" --data "${QUESTIONS:+spec-bench=}${QUESTIONS:-bundled}" \
        --output "$output/$name" "$@"
}

pytest_in() {  # pytest_in NAME SECONDS MARKERS PATH...
    local name=$1 limit=$2 markers=$3 workers=()
    shift 3
    if has_module xdist && (($(nproc) >= 8)); then
        workers=(-n 6)
    fi
    part "$name" "$limit" "$python" -m pytest -q -p no:cacheprovider --rootdir "$checkout" \
        -c "$checkout/pyproject.toml" --tb=short --durations=5 -m "$markers" "${workers[@]}" "$@"
}

join_model() {  # the pieces may arrive in several calls: they are kept in the cache until they are whole
    local pieces=$FSPAD_BENCH_CACHE/pieces
    mkdir -p "$pieces"
    cp "$MODEL"/smollm2.gguf.part-* "$pieces/"
    cat "$pieces"/smollm2.gguf.part-* > "$pieces/smollm2.gguf"
    bench fetch --from "$pieces/smollm2.gguf"
}

run_part() {
    local shape tests=$checkout/tests
    case $1 in
        machine)
            part machine 60 bash -c 'nvidia-smi; nproc; "$0" -m pip list 2>/dev/null | grep -iE \
                "^(torch|triton|transformers|accelerate|gguf|rouge|platformdirs|pytest|tabulate|scipy) "
                exit 0' "$python" ;;
        kernels) pytest_in kernels 150 "not nightly and not real" "$tests/engine/gpu" ;;
        loop) pytest_in loop 120 "gpu" "$tests/engine/test_device_loop.py" "$tests/profiling" ;;
        identity-tiny)
            generate identity-tiny 60 fspad,eagle,prompt_lookup tiny --task mt_bench,gsm8k \
                --dtype float32 --temperature 0,1 --limit 2 --max-new-tokens "${TOKENS:-48}" ;;
        model)
            if [ -n "${MODEL:-}" ]; then
                export -f join_model bench
                export MODEL python
                part model 90 bash -euo pipefail -c join_model
            fi ;;
        speed)
            generate "$(named_for_target speed)" 150 "fspad,prompt_lookup,$stock" "$(target)" --task mt_bench,gsm8k \
                --dtype bfloat16 --limit "${LIMIT:-4}" --max-new-tokens "${TOKENS:-128}" ;;
        costs-*)
            shape=${1#costs-}
            part "$1" 150 "$python" -m fspad_bench profile --kernels --target "random:${shape/@/:}" \
                --device "$device" --prefixes "${PREFIXES:-1024,4096,16384}" \
                --nodes "${NODES:-1,8,32,64}" --picture "$output/$1.png" ;;
        forwards-*)
            shape=${1#forwards-}
            part "$1" 60 "$python" -m fspad_bench profile --target "random:${shape/@/:}" \
                --device "$device" ;;
        steps)
            part "$(named_for_target steps)" 60 "$python" -m fspad_bench profile --decoder fspad --target "$(target)" \
                --device "$device" --dtype bfloat16 --limit 2 --max-new-tokens "${TOKENS:-96}" \
                --picture "$output/steps.png" ;;
        identity)
            generate "$(named_for_target identity)" 150 fspad,eagle,prompt_lookup "$(target)" --task "$(tasks)" \
                --dtype float32 --temperature 0,1 --limit "${LIMIT:-3}" \
                --max-new-tokens "${TOKENS:-64}" ;;
        speed-sampled)
            generate "$(named_for_target speed-sampled)" 120 fspad,eagle,prompt_lookup "$(target)" \
                --task mt_bench,gsm8k --dtype bfloat16 --temperature 1 --limit "${LIMIT:-4}" \
                --max-new-tokens "${TOKENS:-128}" ;;
        speed-all)
            generate "$(named_for_target speed-all)" 240 "fspad,eagle,prompt_lookup,$stock" "$(target)" \
                --task "$(tasks)" --dtype bfloat16 --limit "${LIMIT:-10}" \
                --max-new-tokens "${TOKENS:-256}" ;;
        certify)
            part certify 150 "$python" -m fspad_bench certify --decoder vanilla,fspad --quick \
                --device "$device" ;;
        *)
            echo "no part is called $1; the parts are: ${parts[*]}" >&2
            exit 2 ;;
    esac
}

parts=(machine kernels loop identity-tiny model speed)
for shape in $shapes; do
    parts+=("costs-$shape" "forwards-$shape")
done
parts+=(steps identity speed-sampled certify speed-all costs-llama3-70b@8)
if [ -n "${LIST:-}" ]; then
    printf '%s\n' "${parts[@]}"
    exit 0
fi
named=("$@")
if ((${#named[@]} == 0)); then
    named=("${parts[@]}")
fi
begin_parts "${OUTPUT:-fspad-results/gpu}" gpu
for name in "${named[@]}"; do  # what was never tried comes before what failed in an earlier call
    if [ -z "$(state "$name" "$earlier")" ]; then
        run_part "$name"
    fi
done
for name in "${named[@]}"; do
    if [ -n "$(state "$name" "$earlier")" ]; then
        run_part "$name"
    fi
done
end_parts
