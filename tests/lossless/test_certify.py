"""Certification from end to end: exit codes, the report, and that a lossy decoder is told apart."""

import json
import random
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
import torch

from fspad_bench.cli import certify as certify_verb
from fspad_bench.cli import main as cli
from fspad_bench.core import sampling
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, Accepted, match
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.engine import gpu
from fspad_bench.engine.penalties import CountPenalty
from fspad_bench.lossless import certify, identity, proofs, report, trial_target
from fspad_bench.lossless.checks import Check, Part
from fspad_bench.lossless.engines import described, wide_target
from fspad_bench.lossless.trial_target import Engines
from fspad_bench.util.errors import BenchError

ME = __name__


class Hasty(PromptLookup):
    """Takes a child that the target did not choose when it is likely enough: typical acceptance."""

    def rule(tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        for child in tree.offspring[path[-1]]:
            if sampler.distribution(logits[path[-1]])[tree.tokens[child]] > 0.05:
                return Accepted([*path, child], sampler.next(logits[child], position + len(path)))
        return Accepted(path, bonus)


class Broken:
    def __init__(self, target):
        pass

    def begin(self, context, scores):
        raise ZeroDivisionError("no such thing")

    propose = observe = begin


class Chosen(PromptLookup):
    """Prompt lookup, verified by the rule of its option."""

    def __init__(self, target, *, verify="match"):
        super().__init__(target)
        self.rule = RULES[verify]


class Prepares(PromptLookup):
    """Prompt lookup that needs what `prepare` makes."""

    def prepare(self, target, known=None):
        self.most = 8
        return super().prepare(target, known)

    def candidates(self, context, budget):
        return super().candidates(context, min(budget, self.most))


class Stumbles(PromptLookup):
    """Raises where its option says, in a way that no `except Exception` stops where it exits."""

    def __init__(self, target, *, where="exit"):
        super().__init__(target)
        self.where = where

    def settings(self):
        if self.where == "settings":
            raise KeyError("depth")
        return {}

    def propose(self, context, budget):
        if self.where == "exit":
            raise SystemExit(0)
        if self.where == "tokens":
            return Tree.chain(context.tokens[-1], [10**9])
        return Tree.chain(context.tokens[-1], [1] * 500)


def certified(*arguments, decoders_alone=False, mutations=certify.MUTATIONS[-1:]):
    """Return the exit code of a small certification and what it prints.

    The engines have tests of their own, and so have the foundations, the rules and the mistakes.
    """
    effort = replace(certify.QUICK, draws=10_000, drafts=("ranked",), distance=0.3, repeats=1)
    half = identity.PAIRWISE[:25]  # every two levels meet once
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(certify, "QUICK", effort)
        patch.setattr(certify, "_engines", lambda *_: [])
        patch.setattr(certify, "MUTATIONS", mutations)
        if decoders_alone:
            for part in ("_foundations", "_rules", "_mutations"):
                patch.setattr(certify, part, lambda *_: [])
        patch.setattr(certify, "GREEDY_TOKENS", 8)
        patch.setattr(identity, "LENGTHS", [1, 2, 7, 16, 33])
        patch.setattr(identity, "PAIRWISE", half)
        patch.setattr(trial_target, "TOKENS", 8)
        code = cli.main(["certify", "--quick", *arguments])
    return code, out.getvalue()


def run(capsys, *arguments):
    code = cli.main(["certify", "--quick", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def lossless():
    return certified(
        "--decoder", f"prompt_lookup,vanilla,{ME}:Chosen", "-D", f"{ME}:Chosen.verify=rejection"
    )


@pytest.fixture(scope="module")
def spoiled():
    """The exit code and the JSON document of two decoders that fail, and of one that does not."""
    labels = f"{ME}:Hasty,{ME}:Broken,prompt_lookup"
    code, out = certified("--decoder", labels, "--format", "json", decoders_alone=True)
    return code, json.loads(out)


@pytest.mark.wide
def test_lossless_decoders_are_certified(lossless):
    code, out = lossless
    assert code == 0
    assert "all hold" in out.splitlines()[-2]
    assert out.splitlines()[-1].startswith("certified: prompt_lookup, vanilla")
    matrix = out.partition("\n\n")[0]
    assert "prompt_lookup" in matrix.splitlines()[0]
    assert matrix.splitlines()[2].split() == ["identity", "PASS", "PASS", "PASS"]


@pytest.mark.wide
def test_options_reach_the_decoder(lossless):
    """Under `match` all cells would be compared, not the greedy ones alone."""
    _, out = lossless
    figures = [line for line in out.splitlines() if "greedy ones: the rest by distribution" in line]
    assert len(figures) == 1
    assert "Chosen" in figures[0]


def test_a_lossy_decoder_is_not(spoiled):
    code, document = spoiled
    checks = [check for check in document["checks"] if check["subject"] == f"{ME}:Hasty"]
    assert (code, document["certified"]) == (1, False)
    # a rule of its own: identity is asked of its greedy texts only
    assert {check["name"] for check in checks if check["verdict"] == "FAIL"} == {
        "exact distribution",
        "every depth",
    }


def test_a_decoder_that_raises_fails_and_the_others_go_on(spoiled):
    code, document = spoiled
    checks = document["checks"]
    broken = {c["name"]: c for c in checks if c["subject"] == f"{ME}:Broken"}
    assert code == 1
    assert (broken["identity"]["verdict"], broken["identity"]["figure"]) == (
        "FAIL",
        "ZeroDivisionError: no such thing",
    )
    assert {c["verdict"] for c in checks if c["subject"] == "prompt_lookup"} == {"PASS"}
    failed = {c["subject"] for c in checks if c["verdict"] == "FAIL"}
    assert failed == {f"{ME}:Hasty", f"{ME}:Broken"}


def test_a_decoder_that_needs_prepare_and_vanilla_by_another_name_are_certified():
    label = f"{ME}:Prepares"
    labels = f"{label},base=vanilla"
    code, out = certified("--decoder", labels, "--format", "json", decoders_alone=True)
    verdicts = {(c["subject"], c["name"]): c["verdict"] for c in json.loads(out)["checks"]}
    assert code == 0, verdicts
    for name in ("identity", "non-vacuity", "exact distribution", "G-test", "PIT"):
        assert verdicts[label, name] == "PASS"
    for name in ("identity", "exact distribution", "G-test", "PIT"):
        assert verdicts["base=vanilla", name] == "PASS"


def test_only_what_runs_is_spoiled_where_kernels_do(monkeypatch):
    """Nothing calls the compiled step there; of the loop on a device the faults must still show."""
    monkeypatch.setenv(gpu.VARIABLE, "reference")
    for part in ("_foundations", "_rules", "decoder_checks"):
        monkeypatch.setattr(certify, part, lambda *_: [])
    about = [m for m in certify.MUTATIONS if m.compiled or "device" in m.name]
    assert len(about) == 4
    code, out = certified("--decoder", "vanilla", "--format", "json", mutations=about)
    assert code == 0, out
    checks = {check["name"] for check in json.loads(out)["checks"]}
    assert {m.name for m in about if m.name in checks} == {m.name for m in about if not m.compiled}


def test_the_engines_are_looked_at_once_whatever_the_number_of_decoders(tiny, monkeypatch):
    engines = SimpleNamespace(engines=Engines(tiny))
    run = []
    monkeypatch.setattr(certify, "TrialTarget", lambda tiny: engines)
    monkeypatch.setattr(certify, "_run", lambda unit, progress: run.append(unit) or [])
    for part in ("_foundations", "_rules", "_mutations"):
        monkeypatch.setattr(certify, part, lambda *_: [])
    monkeypatch.setattr(identity, "PAIRWISE", identity.PAIRWISE[:1])
    labels = ["vanilla", "prompt_lookup", "fspad"]
    certify.certify(labels, {}, tiny, tiny, certify.QUICK)
    looked_at = [(unit.name, unit.subject) for unit in run if unit.subject not in labels]
    names = ("paths", "engine", "ties")
    subjects = [described(target) for target in engines.engines.targets]
    assert looked_at == [(name, subject) for subject in subjects for name in names]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decoder", "fspda"], "unknown decoder 'fspda'"),
        (["--decoder", "fspad", "-D", "fspad.verify=rejekt"], "unknown verification 'rejekt'"),
        (
            ["--decoder", "fspad@rejection", "-D", "fspad.drafting=coupled"],
            "makes no use of coupled",
        ),
        (["--decoder", "fspad", "-D", "fspad.drafting=random"], "unknown drafting 'random'"),
        (["--decoder", "fspad", "-D", "eagle.depth=3"], "no decoder 'eagle'"),
        (["--decoder", "vanilla", "--target", "smollm3"], "smollm3"),
        (["--decoder", "vanilla", "--thorough"], "not allowed with"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("where", "figure"),
    [
        ("exit", "SystemExit: 0"),
        ("tokens", "token 1000000000 is outside the target's vocabulary of "),
        ("size", "a tree of 501 nodes is too large"),
    ],
)
def test_a_decoder_that_breaks_off_fails_its_checks_in_words(
    tiny, capsys, monkeypatch, where, figure
):
    monkeypatch.setattr(identity, "PAIRWISE", identity.PAIRWISE[:6])
    options = {f"{ME}:Stumbles": {"where": where}}
    effort = replace(certify.QUICK, repeats=1, tokens=4)
    units = [*certify.decoder_checks([f"{ME}:Stumbles"], options, tiny, tiny, effort)]
    known = {unit.name: certify._guarded(unit) for unit in units if unit.name != "G-test"}
    for name in ("identity", "exact distribution", "PIT"):
        (check,) = known[name]
        assert (check.name, check.verdict) == (name, "FAIL")
        assert check.figure.startswith(figure)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert ("test_certify.py:" in err) == (where == "exit")


def test_a_decoder_that_no_run_could_name_is_refused(capsys):
    label = f"{ME}:Stumbles"
    code, out, err = run(capsys, "--decoder", label, "-D", f"{label}.where=settings")
    assert (code, out) == (2, "")
    assert f"error: {label}: settings() raised KeyError: 'depth' (" in err


def test_proofs_hold(tiny):
    checks = [
        *proofs.check_sampler(200_000),
        proofs.check_greedy(tiny, [[1, 2, 3], [40, 41, 42, 43]], 24),
    ]
    assert {check.verdict for check in checks} == {"PASS"}


def test_proofs_see_a_wrong_noise(monkeypatch):
    gumbel = sampling.gumbel
    monkeypatch.setattr(sampling, "gumbel", lambda h: gumbel(h) * 0.98)
    assert proofs.check_sampler(1_000_000)[1].verdict == "FAIL"


def test_proofs_see_a_wrong_cut(monkeypatch):
    monkeypatch.setattr(Sampler, "_nucleus", lambda self, best, total: len(best))
    assert proofs.check_sampler(10_000)[2].verdict == "FAIL"


def test_greedy_must_be_generates(tiny, monkeypatch):
    monkeypatch.setattr(Sampler, "next", lambda self, logits, position: int(logits.argmin()))
    assert proofs.check_greedy(tiny, [[1, 2, 3]], 8).verdict == "FAIL"


def test_greedy_in_bfloat16_may_part_at_near_ties_alone(monkeypatch):
    target = wide_target(torch.bfloat16)
    dice = random.Random(2)
    prompts = [[dice.randrange(96) for _ in range(20)] for _ in range(4)]
    check = proofs.check_greedy(target, prompts, 48)
    assert (check.verdict, " ties" in check.figure) == ("PASS", True)
    monkeypatch.setattr(Sampler, "next", lambda self, logits, position: int(logits.argmin()))
    check = proofs.check_greedy(target, prompts, 8)
    assert (check.verdict, " ties" in check.figure) == ("FAIL", False)


def test_greedy_under_penalties_must_be_generates(tiny, monkeypatch):
    prompts = [[40, 41, 42] * 3]
    assert proofs.check_greedy(tiny, prompts, 24, proofs.PENALTIES).verdict == "PASS"
    monkeypatch.setattr(Sampler, "adjust", lambda self, logits, text, prompt_length: logits)
    assert proofs.check_greedy(tiny, prompts, 24, proofs.PENALTIES).verdict == "FAIL"


def sampler_of(*words):
    arguments = cli.parser().parse_args(["certify", "--decoder", "fspad", *words])
    return certify_verb._sampler(arguments)


def test_the_flags_of_penalties_hold_for_every_cell(tiny):
    like = sampler_of(
        *("--repetition-penalty", "1.2", "--presence-penalty", "0.5", "--min-p", "0.1"),
        *("--frequency-penalty", "0.25", "--no-repeat-ngram-size", "3"),
    )
    repetition, ngrams, counts = like.processors
    assert repetition.penalty == 1.2
    assert ngrams.ngram_size == 3
    assert counts == CountPenalty(0.5, 0.25)
    plain = identity.cells(tiny)
    cells = identity.cells(tiny, like=like)
    expected = [replace(c.sampler, min_p=0.1, processors=like.processors) for c in plain]
    assert [cell.sampler for cell in cells] == expected
    assert identity.cells(tiny, like=sampler_of()) == plain


def test_an_engine_of_its_own_is_refused_under_penalties_at_once(tiny):
    label = "fspad_bench.integrations.transformers_generate:StockGenerate"
    like = sampler_of("--presence-penalty", "1")
    with pytest.raises(BenchError, match="an engine of its own"):
        next(certify.decoder_checks([label], {}, tiny, tiny, certify.QUICK, like))


@pytest.mark.parametrize(
    ("verdict", "certified"), [("PASS", True), ("-", True), ("FAIL", False), ("VACUOUS", False)]
)
def test_one_bad_check_spoils_the_whole(verdict, certified):
    parts = [
        Part("rules", [Check("a", "x", "PASS", "0")]),
        Part(report.DECODERS, [Check("b", "y", verdict, "1", "2")]),
    ]
    assert report.passed(parts) == certified
    assert json.loads(report.render(parts, "json"))["certified"] == certified
    assert ("all hold" in report.render(parts, "text")) == certified
