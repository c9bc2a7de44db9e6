"""The verb `invariance`: its table, its JSON, its verdict, and bad input."""

import json

import pytest
import torch

from fspad_bench.cli.main import main
from fspad_bench.engine.cpu import native

WIDE = "invariance --target random:smollm2-135m:1 --rows 1,3 --prefix 9 --threads 1".split()
compiled = pytest.mark.skipif(native.native() is None, reason="nothing is compiled here")


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture
def small(monkeypatch):
    """The shape of the real target with few tokens."""
    from fspad_bench.models import random_weights

    shape = (*random_weights.SHAPES["smollm2-135m"][:5], 97, 512)
    monkeypatch.setitem(random_weights.SHAPES, "smollm2-135m", shape)


@compiled
@pytest.mark.parametrize("of", ["transformers", "ours", "kernels"])
def test_the_table_tells_what_each_subject_did(of, small, capsys):
    assert main([*WIDE, "--dtype", "bfloat16", "--of", of]) == 0
    out = capsys.readouterr().out
    kept = "ours: not asked" if of == "transformers" else "ours: every row keeps its bits"
    assert kept in out
    assert ("our step" in out) == (of == "ours")
    assert ("attention, native" in out) == (of == "kernels")
    assert ("padded" in out) == (of == "transformers")


def test_a_row_that_changes_is_a_finding(small, capsys, monkeypatch):
    from fspad_bench.lossless.invariance import ours

    monkeypatch.setattr(ours.Parts, "_one_by_one", lambda self, tokens: doubled(self, tokens))
    assert main([*WIDE, "--of", "ours", "--format", "json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] is False
    finding = next(f for f in told["findings"] if f["subject"] == "our operations")
    assert (finding["operation"], finding["layer"]) == ("input norm, residual", 0)
    assert finding["ulps"] > 0
    assert finding["rows"] == finding["compared"] == 1


def doubled(parts, tokens):
    """Traces in which everything is another value."""
    company = type("Company", (), {"kind": "chain", "rows": 1, "compared": 1})
    trace = parts.together(company)
    return [{op: rows * 2 + 1 for op, rows in trace.items()} for _ in tokens]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--target random:smol", "unknown shape 'smol'"),
        ("--target tinny", "unknown target 'tinny'"),
        ("--target tiny --rows 0", "'0' is not a whole number above 0"),
        ("--target tiny --rows 200", "200 rows are too many"),
        ("--target tiny --prefix 9000", "exceed the context"),
        ("--target tiny --of theirs", "invalid choice: 'theirs'"),
        ("--target tiny --device cpu:0,cpu", "'cpu' among several devices, without a number"),
    ],
)
def test_bad_input_is_one_clear_error(refused, words, error):
    assert error in refused(["invariance", *words.split()])


@pytest.mark.gpu
def test_every_subject_runs_on_a_gpu(capsys):
    words = [*WIDE, "--device", "cuda", "--dtype", "bfloat16", "--format", "json"]
    assert main(words) in (0, 1)
    subjects = {f["subject"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert {"transformers", "our step", "our operations", "attention, triton"} <= subjects
    assert torch.cuda.is_available()
