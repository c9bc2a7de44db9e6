#!/usr/bin/env bash
# Certify the engines that run on this machine, and the double with each of its faults.
#
#   results/served.sh [PART ...]      # all parts, or some of: double faults transformers llama
#
# - OUTPUT (fspad-results/served) gets a report a part. PYTHON: the interpreter.
# - MODEL: a folder of a transformers model (transformers), GGUF: its weights for llama.cpp, whose
#   LLAMA_SERVER (llama-server) must be on the path. A part whose engine is not there is skipped.
# - DRAFT: a smaller model's weights, with which llama.cpp drafts (GGUF).
# - THREADS (1): of each server. Two servers answer at the same time.
# - transformers does not say what it drafts, so that its part ends INCONCLUSIVE at best.
# - CERTIFY: more flags of `fspad-bench certify --served`, such as "--quick --concurrency 1,8".
# - FAULTS: those of part faults (all). PORT: the first of five ports (8461).
# - Exit code 1: the double does not pass (with --quick some tests are INCONCLUSIVE), a fault of it
#   has no FAIL, or a part comes to no verdict. A finding in an engine that others wrote is a result:
#   its report and the summary tell it.
set -euo pipefail
output=${OUTPUT:-fspad-results/served}
python=${PYTHON:-python}
first=${PORT:-8461}
threads=${THREADS:-1}
read -r -a more <<< "${CERTIFY:-}"
read -r -a every_fault <<< "${FAULTS:-bonus-without-temperature recovery-noise-reused \
one-hot-residual filter-order short-rollback ignored-sampling shorter-outputs cached-answers}"
mkdir -p "$output"
wrong=0
# shellcheck source=results/servers.sh
source "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

certify() {  # certify NAME passes|fails|ends FLAGS...: keeps the report, prints its exit code
    local name=$1 expected=$2 code=0 note=""
    shift 2
    rm -f "$output/$name.jsonl"
    "$python" -m fspad_bench certify --output "$output/$name.jsonl" "${more[@]}" "$@" \
        > "$output/$name.txt" 2> "$output/$name.err" || code=$?
    if ! "$expected" "$code" "$output/$name.txt"; then
        note=", and not: it $expected (see $output/$name.txt and $output/$name.err)"
        wrong=$((wrong + 1))
    fi
    printf '%s: exit code %d%s\n' "$name" "$code" "$note" | tee -a "$output/summary.txt"
}

passes() {  # passes CODE REPORT
    [ "$1" -eq 0 ]
}

fails() {  # code 1 alone may be of a test that had too little to tell
    [ "$1" -eq 1 ] && grep -qw FAIL "$2"
}

ends() {
    [ "$1" -le 1 ]
}

numbers() {  # prompts of the double's model
    printf '{"tokens": [3, 4, 5]}\n{"tokens": [7, 9]}\n{"tokens": [11, 2, 6]}\n' > "$output/numbers.jsonl"
}

double() {
    numbers
    serve "$first" "$python" -m fspad_bench.serving.double --port "$first"
    certify double passes --served "http://127.0.0.1:$first" --plain-extra '{"speculative": false}' \
        --prompts "$output/numbers.jsonl"
    stop
}

faults() {
    local fault flags prompts noise port=$((first + 1))
    numbers
    printf '{"tokens": [11, 5]}\n' > "$output/small.jsonl"
    for fault in "${every_fault[@]}"; do
        noise=1 prompts=$output/numbers.jsonl flags=(--depths 3,5)
        if [ "$fault" = recovery-noise-reused ]; then  # so small that it takes thousands of answers
            noise=2 prompts=$output/small.jsonl
            flags=(--depths 1 --sampling temperature=0.7 --max-new-tokens 2 --rounds 1024)
            flags+=(--stop-at-finding)
        elif [ "$fault" = filter-order ]; then  # shows where both cuts remove much
            noise=2 flags=(--depths 1 --sampling top_k=6,top_p=0.9 --max-new-tokens 2 --rounds 256)
            flags+=(--stop-at-finding)
        fi
        serve "$port" "$python" -m fspad_bench.serving.double --port "$port" --fault "$fault" \
            --noise "$noise"
        certify "fault-$fault" fails --served "http://127.0.0.1:$port" --prompts "$prompts" \
            --plain-extra '{"speculative": false}' "${flags[@]}" \
            --depth-extra '{"num_speculative_tokens": N}'
        stop
    done
}

transformers() {
    if [ -z "${MODEL:-}" ] || ! "$python" -c "import fastapi, openai, uvicorn" 2> /dev/null; then
        echo "transformers: skipped, it needs MODEL and transformers[serving]"
        return
    fi
    local port=$((first + 2))
    serve "$port" env OMP_NUM_THREADS="$threads" \
        "$python" -c "from transformers.cli.transformers import main; main()" \
        serve "$MODEL" --host 127.0.0.1 --port "$port" --device cpu --dtype float32
    certify transformers ends --served "http://127.0.0.1:$port" --tokenizer "$MODEL" \
        --concurrency 1 --served-extra '{"generation_config": {"prompt_lookup_num_tokens": 4}}'
    stop
}

llama() {
    local engine=${LLAMA_SERVER:-llama-server} plain=$((first + 3)) served=$((first + 4)) kind flags
    if [ -z "${GGUF:-}" ] || [ -z "${MODEL:-}" ] || ! command -v "$engine" > /dev/null; then
        echo "llama: skipped, it needs GGUF, MODEL (for its tokenizer) and llama-server"
        return
    fi
    if [ -z "${DRAFT:-}" ]; then
        echo "llama-draft-simple: the target drafts for itself, so almost no draft is refused and" \
            "little of the refusals is tested; give DRAFT, a smaller model's weights" \
            | tee -a "$output/summary.txt"
    fi
    for kind in draft-simple ngram-simple; do
        flags=(--spec-type "$kind")
        case $kind in
            draft-simple) flags+=(--spec-draft-model "${DRAFT:-$GGUF}" --spec-draft-n-max 4) ;;
            ngram-simple) flags+=(--spec-ngram-simple-size-n 2 --spec-ngram-simple-size-m 4) ;;
        esac
        serve "$plain" "$engine" -m "$GGUF" --host 127.0.0.1 --port "$plain" --parallel 4 \
            --threads "$threads" --threads-batch "$threads" --no-webui
        serve "$served" "$engine" -m "$GGUF" --host 127.0.0.1 --port "$served" --parallel 4 \
            --threads "$threads" --threads-batch "$threads" --no-webui "${flags[@]}"
        certify "llama-$kind" ends --served "http://127.0.0.1:$served" \
            --plain "http://127.0.0.1:$plain" --tokenizer "$MODEL"
        stop
    done
}

parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then
    parts=(double faults transformers llama)
fi
: > "$output/summary.txt"
for part in "${parts[@]}"; do
    "$part"
done
if [ "$wrong" -gt 0 ]; then
    echo "$wrong of the parts ended otherwise than they should: see $output/summary.txt" >&2
    exit 1
fi
