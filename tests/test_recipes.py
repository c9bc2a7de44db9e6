"""The scripts that train and compare heads at scale, dry-run on the tiny target."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
SMALL = {
    "TARGET": "tiny", "TOKENS": "100", "EPOCHS": "1", "ROWS": "4", "ARMS": "eagle wide", "SEEDS": "0",
    "TRAIN": "--live --device cpu --draft-vocabulary 40",
}  # fmt: skip
QUESTION = {"question_id": 1, "category": "qa", "turns": ["who wrote it"], "reference": [["42"]]}
CATEGORIES = ("qa", "rag", "translation", "summarization", "math_reasoning", "writing")


@pytest.fixture
def script(tmp_path):
    def script(path, *words, **changes):
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        env |= {
            "FSPAD_BENCH_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "1",
            **SMALL,
            **changes,
        }
        words = [str(CHECKOUT / path), *map(str, words)]
        return subprocess.run(words, env=env, capture_output=True, text=True, cwd=tmp_path)

    return script


def test_what_only_a_gpu_can_show_is_dry_run_in_pieces(script, tmp_path):
    """On the CPU: the kernels in the interpreter, the decoders in small; certification and tests count as done."""
    output, questions = tmp_path / "gpu", spec_bench(tmp_path)
    output.mkdir()
    for name in ("tests", "certify"):
        (output / f"{name}.txt").write_text("done before\n")
    small = {
        "DEVICE": "cpu",
        "TARGET": "tiny",
        "SHAPES": "random:tiny:1",
        "PREFIXES": "16",
        "NODES": "2",
        "TOKENS": "4",
    }
    small |= {"TRITON_INTERPRET": "1", "FSPAD_BENCH_CACHE": str(tmp_path / "cache")}
    assert script("results/gpu.sh", output, questions, **small, LIMIT="0").returncode == 75
    done = script("results/gpu.sh", output, questions, **small)
    assert done.returncode == 0, done.stderr
    reports = {path.name: path.read_text() for path in output.glob("*.txt")}
    parts = [
        "certify",
        "identity",
        "kernels-tiny-1",
        "speed",
        "speed-sampled",
        "steps-tiny-1",
        "tests",
    ]
    assert set(reports) == {f"{part}.txt" for part in parts}
    assert reports["tests.txt"] == "done before\n"
    assert "a matrix product does" in reports["kernels-tiny-1.txt"]
    assert "c(n) / c(1)" in reports["steps-tiny-1.txt"]
    assert "rows identical to vanilla" in reports["identity.txt"]
    assert len(list(output.glob("*/*.jsonl"))) == 3


@pytest.mark.parametrize(
    ("program", "code"),
    [("exit 1", 1), ("echo a check does not hold; exit 1", 0), ("echo half a report; exit 3", 3)],
)
def test_a_part_that_crashed_is_not_done(script, tmp_path, program, code):
    """A report and exit code 1 is a finding; without a report it is a crash."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "fspad-bench").write_text(f"#!/usr/bin/env bash\necho why >&2\n{program}\n")
    (tools / "fspad-bench").chmod(0o755)
    output, settings = (
        tmp_path / "out",
        {"SKIP_TESTS": "1", "SHAPES": "tiny", "PATH": f"{tools}:{os.environ['PATH']}"},
    )
    done = script("results/gpu.sh", output, tmp_path / "questions", **settings)
    assert done.returncode == code
    assert (output / "certify.txt").exists() == (code == 0)
    assert ("why" in done.stderr) == (code != 0)
    assert (output / "certify.err").read_text() == "why\n"


def spec_bench(folder):
    """A question of every task, in Spec-Bench's form."""
    path = folder / "questions.jsonl"
    rows = [
        QUESTION | {"question_id": i, "category": category} for i, category in enumerate(CATEGORIES)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compared(name, folder):
    """What a script of `results` prints of the records in `out`."""
    words = [sys.executable, str(CHECKOUT / "results" / name), "out"]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, check=True).stdout


def test_heads_are_trained_in_pieces_and_then_compared(script, tmp_path):
    heads = tmp_path / "heads"
    assert script("baselines/heads/train.sh", heads, LIMIT="0").returncode == 75
    done = script("baselines/heads/train.sh", heads)
    assert done.returncode == 0, done.stderr
    made = sorted(path.parent.name for path in heads.glob("*/head.json"))
    assert made == ["eagle-tiny-0", "wide-tiny-0"]
    before = (heads / "wide-tiny-0" / "head.json").stat().st_mtime_ns
    assert script("baselines/heads/train.sh", heads).returncode == 0
    assert (heads / "wide-tiny-0" / "head.json").stat().st_mtime_ns == before
    run = script(
        "results/arms.sh",
        heads,
        spec_bench(tmp_path),
        "--max-new-tokens",
        "4",
        "--format",
        "json",
        "--output",
        "out",
    )
    assert run.returncode == 0, run.stderr
    table = json.loads(run.stdout)["rows"]
    names = {row["decoder"].partition("=")[0] for row in table}
    assert names == {"vanilla", "eagle-0", "wide-0"}
    assert {row["verdict"] for row in table} == {"exact"}
    assert len(table) == 3 * 6 * 2
    arms = compared("arms.py", tmp_path)
    assert arms.count("| wide ") == arms.count("| eagle ") == 2  # greedy and T = 1
    assert "over eagle" in arms


def test_trees_of_every_size_run_beside_the_one_that_is_sized(script, tmp_path):
    small = {"DECODER": "fspad", "SIZES": "4/1 8/2"}
    run = script(
        "results/trees.sh",
        spec_bench(tmp_path),
        "--dtype",
        "float64",
        "--max-new-tokens",
        "6",
        "--output",
        "out",
        **small,
    )
    assert run.returncode == 0, run.stderr
    lines = compared("trees.py", tmp_path).splitlines()
    assert len(lines) == 2 + 6
    assert all("| n4d1 " in line or "| n8d2 " in line for line in lines[2:])
    assert "auto / best" in lines[0]
