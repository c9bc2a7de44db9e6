"""Random targets have the shape they name, run, and enter no table."""

import pytest
import torch

from fspad_bench.cli import main as cli
from fspad_bench.core.tree import Tree
from fspad_bench.errors import BenchError
from fspad_bench.models import random_weights as shapes
from fspad_bench.models.random_weights import random_target, shape
from fspad_bench.profiling import steps as profiling


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "small", (64, 96, 5, 4, 2, 300, 1024))


def test_a_shape_is_that_of_the_model_it_names():
    config = shape("random:llama3-8b")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * config.intermediate_size
    assert config.num_hidden_layers * layer + 2 * 4096 * config.vocab_size == pytest.approx(
        8.03e9, rel=0.01
    )
    assert shape("random:llama3-70b:8").num_hidden_layers == 8
    assert shape("smollm2-135m").num_key_value_heads == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random:llama4", "unknown shape 'llama4'"),
        ("random:llama3-8b:x", "no number"),
        ("random:vicuna-7b:0", "'0'"),
    ],
)
def test_a_name_that_means_nothing_is_said(name, said):
    with pytest.raises(BenchError, match=said):
        shape(name)


def test_it_scores_trees_and_its_weights_are_the_same_again(small):
    scores = []
    for _ in range(2):
        target = random_target("random:small:2")
        target.prefill([1, 2, 3], 4)
        scores.append(target.score(Tree.chain(4, [5, 6])).logits)
    assert scores[0].shape == (3, 300)
    assert scores[0].isfinite().all()
    assert scores[0].std() > 0
    assert torch.equal(*scores)


def test_profile_times_its_forwards_alone(small, monkeypatch, capsys):
    monkeypatch.setattr(profiling, "NODES", (1, 2))
    monkeypatch.setattr(profiling, "LENGTHS", (16, 32))
    monkeypatch.setattr(profiling, "COPIED", 1 << 20)
    assert cli.main(["profile", "--target", "random:small:2"]) == 0
    out = capsys.readouterr().out
    assert "c(n) / c(1)" in out
    assert "tokens a step" not in out


def test_no_table_takes_it(capsys, tmp_path):
    words = [
        "run",
        "--target",
        "random:llama3-8b",
        "--decoder",
        "vanilla",
        "--task",
        "gsm8k",
        "--output",
        str(tmp_path),
    ]
    assert cli.main(words) == 2
    assert "has random weights" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
