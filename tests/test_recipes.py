"""The scripts that train and compare heads at scale, dry-run on the tiny target."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
SMALL = {
    "TARGET": "tiny", "TOKENS": "100", "EPOCHS": "1", "ROWS": "4", "ARMS": "wide", "SEEDS": "0 1",
    "TRAIN": "--live --device cpu --draft-vocabulary 40",
}  # fmt: skip
QUESTION = {"question_id": 1, "category": "qa", "turns": ["who wrote it"], "reference": [["42"]]}
CATEGORIES = ("qa", "rag", "translation", "summarization", "math_reasoning", "writing")


@pytest.fixture
def script(tmp_path):
    def script(path, *words, **changes):
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        env |= {"FSPAD_BENCH_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", **SMALL, **changes}
        words = [str(CHECKOUT / path), *map(str, words)]
        return subprocess.run(words, env=env, capture_output=True, text=True, cwd=tmp_path)

    return script


def test_heads_are_trained_in_pieces_and_then_compared(script, tmp_path):
    heads = tmp_path / "heads"
    assert script("baselines/heads/train.sh", heads, LIMIT="0").returncode == 75
    done = script("baselines/heads/train.sh", heads)
    assert done.returncode == 0, done.stderr
    made = sorted(path.parent.name for path in heads.glob("*/head.json"))
    assert made == ["wide-tiny-0", "wide-tiny-1"]
    before = (heads / "wide-tiny-0" / "head.json").stat().st_mtime_ns
    assert script("baselines/heads/train.sh", heads).returncode == 0
    assert (heads / "wide-tiny-0" / "head.json").stat().st_mtime_ns == before
    questions = tmp_path / "questions.jsonl"
    rows = [QUESTION | {"question_id": i, "category": category} for i, category in enumerate(CATEGORIES)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = script("results/arms.sh", heads, questions, "--max-new-tokens", "4", "--format", "json", "--output", "out")
    assert run.returncode == 0, run.stderr
    table = json.loads(run.stdout)["rows"]
    names = {row["decoder"].partition("=")[0] for row in table}
    assert names == {"vanilla", "wide-0", "wide-1"}
    assert {row["verdict"] for row in table} == {"exact"}
    assert len(table) == 3 * 6 * 2
