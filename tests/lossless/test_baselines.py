"""Expectations share runs, find losses, and are written anew from what was measured."""

import json
from xml.etree import ElementTree

import pytest
import yaml

from fspad_bench.benchmark import runner
from fspad_bench.cli import main as cli
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.lossless import baseline_runs
from fspad_bench.lossless.baseline_runs import grouped
from fspad_bench.lossless.baselines import STEPS, checks_of
from fspad_bench.lossless.promises import Expectation, read_baseline, shipped_baselines

ENTRY = {"target": "tiny", "task": "gsm8k", "limit": 3, "max_new_tokens": 40, "tokens_per_step": 1}


@pytest.fixture(autouse=True)
def quick(quick_runs):
    pass


@pytest.fixture
def baseline(tmp_path):
    """`baseline(*entries, decoder)`: the path of a file with a comment."""

    def baseline(*entries, decoder="prompt_lookup"):
        path = tmp_path / f"{decoder}.yaml"
        text = yaml.safe_dump({"decoder": decoder, "promises": [ENTRY | e for e in entries]})
        path.write_text(f"# ours\n{text}")
        return path

    return baseline


@pytest.fixture
def runs(monkeypatch):
    """The decoders of each run."""
    decoders = []
    real = runner.Runner

    def counted(plan, output, *, timed):
        assert (timed, plan.aa, plan.repeats) == (False, False, 1)
        decoders.append(plan.decoders)
        return real(plan, output, timed=timed)

    monkeypatch.setattr(runner, "Runner", counted)
    return decoders


def cripple(monkeypatch, steps):
    """Let prompt lookup propose nothing in one of so many steps."""
    real = PromptLookup.propose
    asked = []

    def propose(self, context, budget):
        asked.append(1)
        tree = real(self, context, budget)
        return tree if len(asked) % steps else Tree.chain(context.tokens[-1], [])

    monkeypatch.setattr(PromptLookup, "propose", propose)


def test_a_loss_of_a_tenth_is_found_and_an_unchanged_decoder_passes(baseline, monkeypatch, capsys):
    path = baseline({"options": {"tree": "fixed"}})
    assert cli.main(["check", "--update", str(path)]) == 0
    written = read_baseline(path)[0]
    assert written.measured > 1.5
    assert cli.main(["check", str(path)]) == 0
    capsys.readouterr()
    cripple(monkeypatch, 5)
    assert cli.main(["check", str(path), "--format", "json"]) == 1
    identity, rate, steps = json.loads(capsys.readouterr().out)["checks"]
    assert identity["verdict"] == "PASS"
    assert rate["verdict"] == "FAIL"
    assert 0.05 < written.measured - float(rate["figure"]) < 0.15
    assert steps["verdict"] == "FAIL"
    assert steps["figure"] == "more steps in 3 of 3 outputs"


def test_update_says_what_it_changed_and_keeps_the_rest(baseline, capsys):
    fixed = {"options": {"tree": "fixed"}}
    path = baseline(fixed, {"temperature": 1.0, "target": "random:nobody"})
    before = path.read_text()
    assert cli.main(["check", "--update", "--target", "tiny", str(path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    least = read_baseline(path)[0].tokens_per_step
    assert (
        f"prompt_lookup (tree=fixed) on tiny, gsm8k, T=0: at least 1 -> {least:g}, measured "
        in line
    )
    assert "finds a loss of 0.001 tokens a step" in line
    after = path.read_text().splitlines()
    assert after[0] == "# ours"
    assert len(after) == len(before.splitlines()) + 2  # `measured` and `steps`
    assert len(read_baseline(path)[0].steps) == 3
    assert read_baseline(path)[1].tokens_per_step == 1


def test_update_leaves_what_could_not_be_measured(baseline, capsys):
    path = baseline({"options": {"ngrem": 2}})
    before = path.read_text()
    assert cli.main(["check", "--update", str(path)]) == 1
    assert "left as it was: prompt_lookup has no option 'ngrem'" in capsys.readouterr().out
    assert path.read_text() == before


def test_expectations_of_one_setting_share_a_run(baseline, runs):
    """They are of tokens and never of time: vanilla is measured once."""
    paths = [
        baseline({"options": {"ngram": 2}}, {"options": {"ngram": 3}}, {"temperature": 1.0}),
        baseline({}, decoder="suffix"),
    ]
    assert cli.main(["check", *map(str, paths)]) == 0
    names = ["prompt_lookup#0=prompt_lookup", "prompt_lookup#1=prompt_lookup", "suffix#2=suffix"]
    assert runs == [["vanilla", *names], ["vanilla", "prompt_lookup"]]


def test_one_that_is_refused_spoils_no_other(baseline, runs, capsys):
    paths = [baseline({"options": {"ngrem": 2}}), baseline({}, decoder="suffix")]
    assert cli.main(["check", *map(str, paths), "--format", "json"]) == 2
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["verdict"] for check in checks] == ["FAIL", "PASS", "PASS"]
    assert "prompt_lookup has no option 'ngrem'" in checks[0]["figure"]


def test_results_stand_in_the_order_of_the_files(baseline, capsys):
    entries = [{"temperature": t, "limit": 1} for t in (0.0, 1.0)] + [
        {"limit": 1, "options": {"ngram": 2}}
    ]
    assert cli.main(["check", str(baseline(*entries)), "--format", "junit"]) == 0
    cases = list(ElementTree.fromstring(capsys.readouterr().out.strip()).iter("testcase"))
    assert [case.get("name") for case in cases] == [
        "prompt_lookup on tiny, gsm8k, T=0",
        "prompt_lookup on tiny, gsm8k, T=1",
        "prompt_lookup (ngram=2) on tiny, gsm8k, T=0",
    ]
    assert all(float(case.get("time")) > 0 for case in cases)


TWELVE = [[2] * 6] * 12  # 144 tokens


@pytest.mark.parametrize(
    ("dtype", "written", "is_free", "verdict"),
    [
        ("float32", [6] * 12, False, "PASS"),
        ("float32", [5, *[6] * 11], False, "PASS"),  # rounding may change one output
        ("float32", [5, 5, *[7] * 10], False, "FAIL"),  # in sum they are fewer
        ("float64", [5, *[7] * 11], False, "FAIL"),
        ("bfloat16", [1] * 12, False, ""),  # any output may diverge: a check could not fail
        ("float64", [6] * 11, False, "FAIL"),  # of another number of prompts
        ("float64", [1] * 12, True, None),
        ("float64", [], False, None),
    ],
)
def test_few_outputs_take_more_steps_than_when_written(dtype, written, is_free, verdict):
    entry = Expectation("a", "tiny", "nq", 1.0, steps=written)
    row = {"verdict": "exact", "errors": 0, "tokens_per_step": 2.0, "dtype": dtype}
    checks = checks_of(baseline_runs.Outcome(entry, row, TWELVE, is_free))
    assert [check.verdict for check in checks if check.name == STEPS] == [verdict] * bool(verdict)


FED_BACK = {  # steps of the outputs where `mutants/h-logit-fed-back.patch` is applied
    "tree=fixed": [5, 5, 7, 5, 5, 5, 4, 7, 6, 5, 5, 5, 4, 4, 5, 5, 8, 5, 4, 5, 6, 7, 6, 6],
    "depth=5, nodes=16": [4, 4, 6, 4, 4, 4, 3, 7, 4, 5, 5, 5, 4, 3, 5, 4, 7, 5, 4, 3, 5, 7, 5, 5],
}


@pytest.mark.parametrize("options", FED_BACK)
def test_a_loss_that_the_sum_hides_fails_a_shipped_expectation(options):
    """Two steps of more than a hundred: one output that diverges may take as many."""
    (path,) = [path for path in shipped_baselines() if path.stem == "fspad"]
    subject = f"fspad ({options}) on smollm2-135m, mt_bench, T=0"
    (entry,) = [entry for entry in read_baseline(path) if entry.subject == subject]
    counts = FED_BACK[options]
    outputs = [[1] * (count - 1) + [12 - count] for count in counts]  # 11 tokens each
    rate = 11 * len(counts) / sum(counts)
    row = {"verdict": "exact", "errors": 0, "tokens_per_step": rate, "dtype": "float32"}
    verdicts = [check.verdict for check in checks_of(baseline_runs.Outcome(entry, row, outputs))]
    assert verdicts == ["PASS", "PASS", "FAIL"]
    same = [[1] * (count - 1) + [12 - count] for count in entry.steps]
    assert checks_of(baseline_runs.Outcome(entry, row, same))[-1].verdict == "PASS"


def test_groups_are_by_what_vanilla_is_asked():
    a = Expectation("a", "tiny", "nq", 1.0)
    b = Expectation("b", "tiny", "nq", 1.0, options={"x": 1})
    c = Expectation("a", "tiny", "nq", 1.0, limit=5)
    assert grouped([a, c, b]) == [[a, b], [c]]


def test_a_decoder_that_changes_the_target_is_run_alone(monkeypatch):
    group = [Expectation(name, "tiny", "nq", 1.0) for name in "ab"]
    sizes = []

    def measured(entries):
        sizes.append(len(entries))
        findings = [{"guard": "target"}] if entries[0].decoder == "a" else []
        return [baseline_runs.Outcome(entry, {"findings": findings}) for entry in entries]

    monkeypatch.setattr(baseline_runs, "_measured", measured)
    outcomes = baseline_runs.group_outcomes(group)
    assert sizes == [2, 1, 1]
    assert [bool(outcome.row["findings"]) for outcome in outcomes] == [True, False]
