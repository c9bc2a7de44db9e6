#!/usr/bin/env bash
# Measure llama.cpp beside vanilla in one run: another engine's speed at the same weights.
#
#   GGUF=FILE results/anchor.sh question_odd.jsonl [more options of run]
#
# - GGUF: the weights of the target, in any precision; they are given to the engine in bfloat16.
# - LLAMA_SERVER (llama-server) must be on the path. PORT (8461): where it listens.
# - THREADS (2): of the engine and of the run, which take turns. DECODER (fspad): beside vanilla.
# - OUTPUT (fspad-results/anchor) gets the record. PYTHON: the interpreter.
set -euo pipefail
questions=${1:?a file of Spec-Bench questions}
shift
output=${OUTPUT:-fspad-results/anchor}
python=${PYTHON:-python}
port=${PORT:-8461}
threads=${THREADS:-2}
here=$(dirname "${BASH_SOURCE[0]}")
scratch=$(mktemp -d)
mkdir -p "$output"
# shellcheck source=results/servers.sh
source "$here/servers.sh"
trap 'stop; rm -rf "$scratch"' EXIT

"$python" "$here/bfloat16_gguf.py" "${GGUF:?the weights of the target}" "$scratch/bfloat16.gguf"
output=$scratch serve "$port" "${LLAMA_SERVER:-llama-server}" -m "$scratch/bfloat16.gguf" \
    --host 127.0.0.1 --port "$port" --parallel 1 --ctx-size 8192 --no-webui \
    --threads "$threads" --threads-batch "$threads"
"$python" -m fspad_bench run --decoder "vanilla,${DECODER:-fspad},llama.cpp=served:http://127.0.0.1:$port" \
    --target "${TARGET:-smollm2-135m}" --task all --data "spec-bench=$questions" --limit 10 \
    --max-new-tokens 128 --dtype bfloat16 --threads "$threads" --output "$output" "$@"
