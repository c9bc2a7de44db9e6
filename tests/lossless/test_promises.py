"""Promises are read with clear errors, and judged by a run's row."""

import json

import pytest

from fspad_bench.cli import main as cli
from fspad_bench.decoders.registry import DECODERS, names
from fspad_bench.errors import BenchError
from fspad_bench.lossless import promises as promise
from fspad_bench.lossless.promises import Promise

GOOD = Promise("fspad", "tiny", "gsm8k", 2.0)
ROW = {"verdict": "exact", "errors": 0, "tokens_per_step": 2.0}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["PASS", "PASS"]),
        ({"verdict": "tie"}, ["PASS", "PASS"]),
        ({"verdict": "lossy"}, ["FAIL", "PASS"]),
        ({"verdict": "law"}, ["FAIL", "PASS"]),
        ({"errors": 1}, ["FAIL", "PASS"]),
        ({"tokens_per_step": 1.99}, ["PASS", "FAIL"]),
        ({"tokens_per_step": None}, ["PASS", "FAIL"]),
    ],
)
def test_a_row_is_held_to_both(changes, verdicts):
    assert [check.verdict for check in GOOD.judge(ROW | changes)] == verdicts


def test_every_decoder_that_drafts_promises_something_on_tiny():
    found = {
        p.decoder for path in promise.shipped() for p in promise.read(path) if p.target == "tiny"
    }
    assert found == {
        name for name in names(DECODERS) if name != "vanilla" and not name.startswith("acme")
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decoder: [", "cannot read"),
        ("- a list", "is no baseline"),
        ("promises: []", "is no baseline"),
        ("decoder: fspad\npromises: 3", "promises are a list, not 3"),
        (
            "decoder: a\npromises: [{target: tiny, task: nq, tokens_per_step: 2, options: 3}]",
            "options are a mapping",
        ),
        ("decoder: fspad\npromises: [3]", "a promise is a mapping, not 3"),
        (
            "decoder: fspad\npromises: [{target: tiny, task: nq, tokens_per_stop: 2}]",
            "no field 'tokens_per_stop'",
        ),
        ("decoder: fspad\npromises: [{target: tiny, task: nq}]", "lacks 'tokens_per_step'"),
        (
            "decoder: fspad\npromises: [{target: tiny, task: nq, tokens_per_step: many}]",
            "could not convert",
        ),
    ],
)
def test_a_baseline_that_is_wrong_is_one_clear_error(text, said, tmp_path):
    path = tmp_path / "fspad.yaml"
    path.write_text(text)
    with pytest.raises(BenchError, match=said) as caught:
        promise.read(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_baseline_that_is_not_there(tmp_path):
    with pytest.raises(BenchError, match="cannot read"):
        promise.read(tmp_path / "none.yaml")


@pytest.fixture
def own(tmp_path):
    """A baseline of one's own, with a bound to choose."""

    def own(bound):
        path = tmp_path / "mine.yaml"
        entry = {
            "target": "tiny",
            "task": "nq",
            "limit": 2,
            "max_new_tokens": 12,
            "tokens_per_step": bound,
        }
        path.write_text(json.dumps({"decoder": "prompt_lookup", "promises": [entry]}))
        return str(path)

    return own


@pytest.mark.parametrize(("bound", "code"), [(0.9, 0), (9.0, 1)])
def test_the_exit_code_says_whether_it_was_kept(own, bound, code, capsys):
    assert cli.main(["check", own(bound), "--format", "json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["certified"] == (code == 0)
    assert [check["verdict"] for check in found["checks"]] == [
        "PASS",
        "PASS" if code == 0 else "FAIL",
    ]


def test_one_that_cannot_be_run_leaves_the_others_their_say(own, tmp_path, capsys):
    entry = {"target": "tiny", "task": "gsm9k", "tokens_per_step": 1}
    (tmp_path / "wrong.yaml").write_text(json.dumps({"decoder": "fspad", "promises": [entry]}))
    assert cli.main(["check", str(tmp_path / "wrong.yaml"), own(0.9), "--format", "json"]) == 2
    said = capsys.readouterr()
    checks = json.loads(said.out)["checks"]
    assert [check["verdict"] for check in checks] == ["FAIL", "PASS", "PASS"]
    assert "gsm9k" in checks[0]["figure"]
    assert "1 of 2 promises could not be put to the test" in said.err
    assert "did you mean 'gsm8k'" in said.err


def test_a_decoder_without_promises_is_bad_input(capsys):
    assert cli.main(["check", "--decoder", "fspad,eagel"]) == 2
    assert "did you mean 'eagle'" in capsys.readouterr().err


def test_nothing_to_check_is_bad_input(capsys):
    assert cli.main(["check", "--target", "nobody"]) == 2
    assert "nobody promised anything of that" in capsys.readouterr().err


def test_the_shipped_promises_on_tiny_are_kept(capsys):
    assert cli.main(["check", "--target", "tiny"]) == 0, capsys.readouterr().out
