"""Random targets have the shape in their name, run, and are refused by `run`."""

import pytest
import torch

from fspad_bench.cli.main import main
from fspad_bench.core.tree import Tree
from fspad_bench.models import random_weights
from fspad_bench.models.random_weights import random_target, shape
from fspad_bench.profiling import forward, timing
from fspad_bench.util.errors import BenchError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(random_weights.SHAPES, "small", (64, 96, 5, 4, 2, 300, 1024))


def test_a_shape_is_that_of_the_model_it_names():
    config = shape("random:llama3-8b")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * config.intermediate_size
    assert config.num_hidden_layers * layer + 2 * 4096 * config.vocab_size == pytest.approx(
        8.03e9, rel=0.01
    )
    assert shape("random:llama3-70b:8").num_hidden_layers == 8
    assert shape("smollm2-135m").num_key_value_heads == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:llama4", "unknown shape 'llama4'"),
        ("random:llama3-8b:x", "'x' is not a number of layers"),
        ("random:vicuna-7b:0", "'0'"),
    ],
)
def test_an_unknown_shape_is_refused(name, message):
    with pytest.raises(BenchError, match=message):
        shape(name)


def test_its_weights_are_the_same_each_time(small):
    logits = []
    for _ in range(2):
        target = random_target("random:small:2")
        with target.session(8) as session:
            session.prefill([1, 2, 3])
            logits.append(session.score(Tree.chain(4, [5, 6])).logits)
    assert logits[0].shape == (3, 300)
    assert logits[0].isfinite().all()
    assert logits[0].std() > 0
    assert torch.equal(*logits)


def test_profile_times_only_its_forwards(small, monkeypatch, capsys):
    monkeypatch.setattr(forward, "NODES", (1, 2))
    monkeypatch.setattr(forward, "LENGTHS", (16, 32))
    monkeypatch.setattr(timing, "CPU_COPY", 1 << 20)
    assert main(["profile", "--target", "random:small:2"]) == 0
    out = capsys.readouterr().out
    assert "c(n) / c(1)" in out
    assert "tokens/step" not in out


def test_run_refuses_it(capsys, tmp_path):
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
    assert main(words) == 2
    assert "has random weights" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
