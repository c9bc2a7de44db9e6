"""Baselines are read with clear errors, and their expectations judged by a run's row."""

import json

import pytest
import yaml

from fspad_bench.benchmark import runner
from fspad_bench.cli import main as cli
from fspad_bench.lossless.promises import Expectation, read_baseline, shipped_baselines
from fspad_bench.util import provenance
from fspad_bench.util.errors import BenchError
from fspad_bench.util.registry import DECODERS, names

GOOD = Expectation("fspad", "tiny", "gsm8k", 2.0)
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


def test_every_decoder_that_drafts_has_an_expectation_on_tiny():
    expectations = [entry for path in shipped_baselines() for entry in read_baseline(path)]
    decoders = {entry.decoder for entry in expectations if entry.target == "tiny"}
    assert decoders == {
        name for name in names(DECODERS) if name != "vanilla" and not name.startswith("acme")
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decoder: [", "cannot read"),
        ("- a list", "is not a baseline"),
        ("promises: []", "is not a baseline"),
        ("decoder: fspad\npromises: 3", "`promises` is a list, not 3"),
        (
            "decoder: a\npromises: [{target: tiny, task: nq, tokens_per_step: 2, options: 3}]",
            "options are a mapping",
        ),
        ("decoder: fspad\npromises: [3]", "an expectation is a mapping, not 3"),
        (
            "decoder: fspad\npromises: [{target: tiny, task: nq, tokens_per_stop: 2}]",
            "no field 'tokens_per_stop'",
        ),
        ("decoder: fspad\npromises: [{target: tiny, task: nq}]", "lacks 'tokens_per_step'"),
        (
            "decoder: fspad\npromises: [{target: tiny, task: nq, tokens_per_step: many}]",
            "'tokens_per_step' is 'many'",
        ),
    ],
)
def test_a_baseline_that_is_wrong_is_one_clear_error(text, message, tmp_path):
    path = tmp_path / "fspad.yaml"
    path.write_text(text)
    with pytest.raises(BenchError, match=message) as caught:
        read_baseline(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_baseline_that_is_not_there(tmp_path):
    with pytest.raises(BenchError, match="cannot read"):
        read_baseline(tmp_path / "none.yaml")


@pytest.fixture
def own(tmp_path):
    """`own(bound)`: the path of a baseline with one expectation."""

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
def test_the_exit_code_says_whether_it_holds(own, bound, code, capsys):
    assert cli.main(["check", own(bound), "--format", "json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["certified"] == (code == 0)
    assert [check["verdict"] for check in report["checks"]] == [
        "PASS",
        "PASS" if code == 0 else "FAIL",
    ]


def test_the_others_are_checked_where_one_cannot_be_run(own, tmp_path, capsys):
    entry = {"target": "tiny", "task": "gsm9k", "tokens_per_step": 1}
    (tmp_path / "wrong.yaml").write_text(json.dumps({"decoder": "fspad", "promises": [entry]}))
    assert cli.main(["check", str(tmp_path / "wrong.yaml"), own(0.9), "--format", "json"]) == 2
    out, err = capsys.readouterr()
    checks = json.loads(out)["checks"]
    assert [check["verdict"] for check in checks] == ["FAIL", "PASS", "PASS"]
    assert "gsm9k" in checks[0]["figure"]
    assert "1 of 2 expectations could not be run" in err
    assert "did you mean 'gsm8k'" in err


def test_a_decoder_without_a_baseline_is_bad_input(capsys):
    assert cli.main(["check", "--decoder", "fspad,eagel"]) == 2
    err = capsys.readouterr().err
    assert "no baseline defines 'eagel'" in err
    assert "did you mean 'eagle'" in err


def test_nothing_to_check_is_bad_input(capsys):
    assert cli.main(["check", "--target", "nobody"]) == 2
    assert "no baseline matches these filters" in capsys.readouterr().err


@pytest.mark.wide
def test_the_shipped_baselines_on_tiny_hold(tiny, capsys, monkeypatch):
    monkeypatch.setattr(runner, "load_target", lambda name, *, device, dtype: tiny)
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 2)
    monkeypatch.setattr(provenance, "_commit", dict)
    assert cli.main(["check", "--target", "tiny"]) == 0, capsys.readouterr().out


def test_every_shipped_expectation_finds_a_loss_of_a_tenth():
    """But hybrid's, whose trees the machine sizes."""
    expectations = [entry for path in shipped_baselines() for entry in read_baseline(path)]
    for entry in expectations:
        assert entry.measured is not None, f"{entry.subject}: run `fspad-bench check --update`"
        assert entry.tokens_per_step <= entry.measured
        most = 0.4 if entry.decoder == "hybrid" else 0.1
        assert entry.measured - entry.tokens_per_step < most, entry.subject


GOOD_ENTRY = {"target": "tiny", "task": "nq", "tokens_per_step": 2}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("limit", 0, "'limit' is 0"),
        ("limit", 1.7, "'limit' is 1.7"),
        ("limit", True, "'limit' is True"),
        ("steps", [3, -1], "'steps' is \[3, -1\]"),
        ("steps", [3, 1.5], "'steps' is \[3, 1.5\]"),
        ("steps", 3, "'steps' is 3"),
        ("limit", float("inf"), "'limit' is inf"),
        ("measured", -1, "'measured' is -1"),
        ("max_new_tokens", 0, "'max_new_tokens' is 0"),
        ("max_new_tokens", 10**12, "'max_new_tokens' is 1000000000000"),
        ("temperature", -1, "'temperature' is -1"),
        ("temperature", None, "'temperature' is None"),
        ("tokens_per_step", float("nan"), "'tokens_per_step' is nan"),
        ("tokens_per_step", 10**400, "'tokens_per_step' is 1000"),
        ("tokens_per_step", "2", "'tokens_per_step' is '2'"),
        ("target", 5, "'target' is 5"),
        ("target", ["tiny"], r"'target' is \['tiny'\]"),
        ("task", None, "'task' is None"),
        ("task", " ", "'task' is empty"),
        ("options", {3: 4}, "options are a mapping of names"),
        ("options", None, "options are a mapping of names"),
    ],
)
def test_a_value_that_no_run_could_have_is_named(name, value, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"decoder": "fspad", "promises": [GOOD_ENTRY | {name: value}]}))
    with pytest.raises(BenchError, match=message) as caught:
        read_baseline(path)
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 250
    assert caught.value.hint


def test_an_expectation_may_not_have_been_measured_yet(tmp_path):
    path = tmp_path / "mine.yaml"
    promises = [GOOD_ENTRY | {"measured": None}]
    path.write_text(yaml.safe_dump({"decoder": "fspad", "promises": promises}))
    assert [entry.measured for entry in read_baseline(path)] == [None]


def test_a_generation_that_failed_is_named():
    row = {"verdict": "unverified", "errors": 2, "tokens_per_step": None}
    identity, steps = GOOD.judge(row | {"error": "RuntimeError: no draft"})
    assert identity.figure == "unverified; 2 generations failed: RuntimeError: no draft"
    assert (identity.verdict, steps.verdict) == ("FAIL", "FAIL")
