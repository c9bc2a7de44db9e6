"""The scripts that train and compare heads at scale, dry-run on the tiny target."""

import json
import os
from pathlib import Path

import pytest
from served import Served, printed

pytestmark = pytest.mark.wide

CHECKOUT = Path(__file__).parent.parent
SMALL = {
    "TARGET": "tiny",
    "TOKENS": "100",
    "EPOCHS": "1",
    "ROWS": "4",
    "DECODER": "eagle wide",
    "SEEDS": "0",
    "TRAIN": "--live --device cpu --draft-vocabulary 40",
}
QUESTION = {"question_id": 1, "category": "qa", "turns": ["who wrote it"], "reference": [["42"]]}
CATEGORIES = ("qa", "rag", "translation", "summarization", "math_reasoning", "writing")
LIMIT_REACHED = 75


@pytest.fixture
def script(tmp_path, monkeypatch, quick_runs):
    """`script(path, *words, **variables)`: run a script of the checkout, small and offline."""
    served = Served(tmp_path / "served")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))

    def script(path, *words, **variables):
        command = [str(CHECKOUT / path), *map(str, words)]
        return served.run(command, os.environ | SMALL | variables, tmp_path)

    return script


@pytest.fixture
def questions(tmp_path):
    """A file with a question of every task, in Spec-Bench's form."""
    path = tmp_path / "questions.jsonl"
    with path.open("w") as file:
        for number, category in enumerate(CATEGORIES):
            row = QUESTION | {"question_id": number, "category": category}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def compared(tmp_path):
    """`compared(name)`: the output of a script of `results` for the records in `out`."""
    return lambda name: printed(CHECKOUT / "results" / name, tmp_path / "out")


@pytest.fixture
def trained(script, tmp_path):
    """The folder of the heads that the training script makes, stopped once on the way."""
    heads = tmp_path / "heads"
    assert script("baselines/heads/train.sh", heads, BUDGET="0").returncode == LIMIT_REACHED
    done = script("baselines/heads/train.sh", heads)
    assert done.returncode == 0, done.stderr
    return heads


def test_heads_are_trained_in_parts_and_then_compared(script, trained, questions, compared):
    about = sorted(trained.glob("*/head.json"))
    assert [path.parent.name for path in about] == ["eagle-tiny-0", "wide-tiny-0"]
    before = about[-1].stat().st_mtime_ns
    assert script("baselines/heads/train.sh", trained).returncode == 0
    assert about[-1].stat().st_mtime_ns == before  # not trained again
    options = ["--max-new-tokens", "4", "--format", "json", "--output", "out"]
    run = script("results/variants.sh", trained, questions, *options)
    assert run.returncode == 0, run.stderr
    table = json.loads(run.stdout)["rows"]
    names = {row["decoder"].partition("=")[0] for row in table}
    assert names == {"vanilla", "eagle-0", "wide-0"}
    assert {row["verdict"] for row in table} == {"exact"}
    assert len(table) == 3 * 6 * 2  # decoders, tasks, temperatures
    arms = compared("variants.py")
    assert arms.count("| wide ") == 2
    assert arms.count("| eagle ") == 2
    assert "over eagle" in arms


def test_trees_of_every_size_run_beside_the_adaptive_one(script, questions, compared):
    sizes = {"DECODER": "fspad", "SIZES": "4/1 8/2"}
    options = ["--dtype", "float64", "--max-new-tokens", "6", "--output", "out"]
    run = script("results/trees.sh", questions, *options, **sizes)
    assert run.returncode == 0, run.stderr
    header, _, *lines = compared("trees.py").splitlines()
    assert "auto / best" in header
    assert len(lines) == 6
    assert all("| n4d1 " in line or "| n8d2 " in line for line in lines)
