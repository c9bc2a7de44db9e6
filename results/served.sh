#!/usr/bin/env bash
# Certify the engines that run on this machine, and the double with each of its faults.
#
#   results/served.sh [PART ...]      # all parts, or some of: double faults transformers llama
#
# - OUTPUT (fspad-results/served) gets a report a part. PYTHON: the interpreter.
# - MODEL: a folder of a transformers model (transformers), GGUF: its weights for llama.cpp, whose
#   LLAMA_SERVER (llama-server) must be on the path. A part whose engine is not there is skipped.
# - CERTIFY: more flags of `fspad-bench certify --served`, such as "--quick --concurrency 1,8".
set -euo pipefail
output=${OUTPUT:-fspad-results/served}
python=${PYTHON:-python}
read -r -a more <<< "${CERTIFY:-}"
mkdir -p "$output"
servers=()
trap 'for server in "${servers[@]}"; do kill "$server" 2> /dev/null || true; done' EXIT

serve() {  # serve PORT COMMAND...: starts a server and waits until it lists its models
    local port=$1
    shift
    "$@" > "$output/server-$port.log" 2>&1 &
    servers+=($!)
    for _ in $(seq 600); do
        if "$python" -c "import httpx2; httpx2.get('http://127.0.0.1:$port/v1/models').raise_for_status()" \
            2> /dev/null; then
            return
        fi
        if ! kill -0 $! 2> /dev/null; then
            break
        fi
        sleep 0.2
    done
    echo "no server on port $port: see $output/server-$port.log" >&2
    return 1
}

stop() {
    kill "${servers[@]}" 2> /dev/null || true
    wait "${servers[@]}" 2> /dev/null || true
    servers=()
}

certify() {  # certify NAME FLAGS...: keeps the report, prints its exit code
    local name=$1 code=0
    shift
    rm -f "$output/$name.jsonl"
    "$python" -m fspad_bench certify --output "$output/$name.jsonl" "${more[@]}" "$@" \
        > "$output/$name.txt" 2> "$output/$name.err" || code=$?
    printf '%s: exit code %d\n' "$name" "$code" | tee -a "$output/summary.txt"
}

numbers() {  # prompts of the double's model
    printf '{"tokens": [3, 4, 5]}\n{"tokens": [7, 9]}\n{"tokens": [11, 2, 6]}\n' > "$output/numbers.jsonl"
}

double() {
    numbers
    serve 8461 "$python" -m fspad_bench.serving.double --port 8461
    certify double --served http://127.0.0.1:8461 --plain-extra '{"speculative": false}' \
        --prompts "$output/numbers.jsonl"
    stop
}

faults() {
    local fault
    numbers
    for fault in bonus-without-temperature recovery-noise-reused one-hot-residual filter-order \
        short-rollback ignored-sampling shorter-outputs cached-answers; do
        serve 8462 "$python" -m fspad_bench.serving.double --port 8462 --fault "$fault"
        certify "fault-$fault" --served http://127.0.0.1:8462 --prompts "$output/numbers.jsonl" \
            --plain-extra '{"speculative": false}' \
            --depths 3,5 --depth-extra '{"num_speculative_tokens": N}'
        stop
    done
}

transformers() {
    if [ -z "${MODEL:-}" ] || ! "$python" -c "import fastapi, openai, uvicorn" 2> /dev/null; then
        echo "transformers: skipped, it needs MODEL and transformers[serving]"
        return
    fi
    serve 8463 "$python" -c "from transformers.cli.transformers import main; main()" \
        serve "$MODEL" --host 127.0.0.1 --port 8463 --device cpu --dtype float32
    certify transformers --served http://127.0.0.1:8463 --tokenizer "$MODEL" --concurrency 1 \
        --served-extra '{"generation_config": {"prompt_lookup_num_tokens": 4}}'
    stop
}

llama() {
    local engine=${LLAMA_SERVER:-llama-server} kind flags
    if [ -z "${GGUF:-}" ] || [ -z "${MODEL:-}" ] || ! command -v "$engine" > /dev/null; then
        echo "llama: skipped, it needs GGUF, MODEL (for its tokenizer) and llama-server"
        return
    fi
    for kind in draft-simple ngram-simple; do
        flags=(--spec-type "$kind")
        case $kind in
            draft-simple) flags+=(--spec-draft-model "$GGUF" --spec-draft-n-max 4) ;;
            ngram-simple) flags+=(--spec-ngram-simple-size-n 2 --spec-ngram-simple-size-m 4) ;;
        esac
        serve 8464 "$engine" -m "$GGUF" --host 127.0.0.1 --port 8464 --parallel 4 --no-webui
        serve 8465 "$engine" -m "$GGUF" --host 127.0.0.1 --port 8465 --parallel 4 --no-webui \
            "${flags[@]}"
        certify "llama-$kind" --served http://127.0.0.1:8465 --plain http://127.0.0.1:8464 \
            --tokenizer "$MODEL"
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
