"""Certification of doubles from end to end: faults, the right engine, and what interrupts it."""

import json
import random
from dataclasses import replace

import pytest
from cells import PROMPTS, Through, by_name, checks, pair, plan
from test_same_model import Silent

from fspad_bench.lossless.checks import ELSEWHERE, FAIL, INCONCLUSIVE, PASS, SERVED_CELLS, Part
from fspad_bench.lossless.report import render
from fspad_bench.serving.certify.certify import LISTED, Certification
from fspad_bench.serving.double.generation import FAULTS
from fspad_bench.serving.double.service import Direct, Double, Settings
from fspad_bench.util.errors import BenchError

ONE = {"prompts": ((11, 5),), "depths": (1,), "max_tokens": 2, "each": 64, "stop_early": True}
QUICK = {
    "filter-order": ("top_k=6,top_p=0.9", ONE | {"prompts": PROMPTS, "rounds": 32}),
    "one-hot-residual": ("temperature=0.7", ONE | {"rounds": 48}),
    "shorter-outputs": ("temperature=1", {"max_tokens": 10, "rounds": 20, "stop_early": True}),
    "cached-answers": ("temperature=1", {"max_tokens": 6, "rounds": 6}),
}
ELSEWHERE_TESTED = {
    "short-rollback",  # in test_greedy
    "ignored-sampling",  # in test_parameters
    "bonus-without-temperature",  # in test_parameters
    "recovery-noise-reused",  # nightly
}


def findings(fault, sampling, sizes):
    found = by_name(checks(pair(fault, noise=2.0), plan(sampling, **sizes)))
    return {name: check for name, check in found.items() if check.verdict == FAIL}


def test_every_fault_has_its_checks():
    assert LISTED.keys() == FAULTS.keys() == QUICK.keys() | ELSEWHERE_TESTED


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fault", QUICK)
def test_a_fault_is_found_by_a_check_listed_for_it(fault):
    found = findings(fault, *QUICK[fault])
    (name, *_) = [name for name in LISTED[fault] if name in found]
    assert "answers a side" in found[name].figure


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("fault", "sampling", "sizes"),
    [
        ("recovery-noise-reused", "temperature=0.7", ONE | {"rounds": 128}),
        (
            "bonus-without-temperature",
            "temperature=0.7",
            {"depths": (1,), "max_tokens": 4, "each": 64, "rounds": 64},
        ),
    ],
)
def test_a_small_fault_is_found_by_a_test_of_the_distribution(fault, sampling, sizes):
    found = findings(fault, sampling, sizes)
    assert set(LISTED[fault]) & found.keys() - {"parameters"}


CELLS = ("greedy", "temperature=0.7", "top_k=6,top_p=0.9", "presence=0.5,frequency=0.5")


def right(seed, *cells, **sizes):
    """Certify a right engine of weights and draft of its own."""
    engines = pair(salt=seed + 20, noise=1 + seed % 3)
    dice = random.Random(seed)
    prompts = tuple((dice.randrange(1, 24), dice.randrange(1, 24)) for _ in range(2))
    sizes = {"max_tokens": 8, "rounds": 12, "prompts": prompts, "seed": 10_000 * seed} | sizes
    return checks(engines, plan(*cells, depths=(1 + seed % 5,), **sizes))


def test_a_right_engine_passes():
    assert [check for check in right(0, *CELLS[:2]) if not check.holds] == []


@pytest.mark.nightly
def test_a_right_engine_passes_50_of_50_runs():
    """A family-wise error of 1% lets half a run fail."""
    bad = [check for seed in range(50) for check in right(seed, *CELLS) if not check.holds]
    assert bad == []


def test_the_family_wise_error_is_split_over_cells_and_tests():
    of = plan("greedy", "temperature=1", "top_k=3", depths=(1, 2, 3), error=0.02)
    certification = Certification(type("", (), {"plan": of})(), None)
    assert certification.alpha == pytest.approx(0.02 / (6 * 7 + 3))


class Dying(Through):
    """A server that ends after so many requests."""

    def __init__(self, engine, after):
        super().__init__(engine)
        self.left = after
        self.asked = 0

    def ask_all(self, asks, concurrency):
        self.left -= len(asks)
        if self.left < 0:
            raise BenchError("double: no answer")
        self.asked += len(asks)
        return self.engine.ask_all(asks, concurrency)


def test_what_was_measured_is_kept_when_a_server_dies(tmp_path):
    of = plan("greedy", "temperature=1", rounds=2)
    path = tmp_path / "report.jsonl"
    served, plain = pair()
    with pytest.raises(BenchError, match="served: double: no answer") as error:
        checks((Dying(served, 30), plain), of, path)
    assert "resumes" in error.value.hint
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["cell"] for line in lines if line["kind"] == "checks"] == [
        "depth 4, 1 at once, greedy"
    ]
    again = Dying(served, 1000)
    resumed = checks((again, plain), of, path)
    whole = checks(pair(), of)
    assert resumed == whole
    assert again.asked == 2 + 16  # the first tokens, and the rounds that were missing


def test_nothing_passes_where_nothing_was_drafted():
    found = by_name(checks(pair(), plan("greedy", depths=(0,))))
    assert {check.verdict for check in found.values()} == {INCONCLUSIVE, PASS}
    assert found["drafts"].figure == "nothing was drafted"
    assert found["greedy identity"].verdict == INCONCLUSIVE
    assert found["plain repeats itself"].verdict == PASS  # it is of the plain server alone


class Cautious(Through):
    """A server that speculates at a low temperature alone."""

    def ask_all(self, asks, concurrency):
        off = {"num_speculative_tokens": 0}
        cold = [ask if ask.temperature <= 0.05 else replace(ask, extra=off) for ask in asks]
        return self.engine.ask_all(cold, concurrency)


def test_drafts_are_counted_in_the_answers_that_a_check_compares():
    served, plain = pair()
    found = by_name(checks((Cautious(served), plain), plan("temperature=1,top_k=6", rounds=8)))
    assert found["drafts"].figure == "nothing was drafted"
    assert {check.verdict for check in found.values()} == {INCONCLUSIVE}
    assert found["parameters"].figure.startswith("top-k: nothing was drafted")
    found = by_name(checks((Cautious(served), plain), plan("temperature=1", rounds=1)))
    assert found["parameters"].verdict == PASS  # its answers are those of a low temperature


def test_a_plain_side_that_speculates_is_refused(tmp_path):
    path = tmp_path / "report.jsonl"
    engines = Direct(Double(Settings())), Direct(Double(Settings()))
    with pytest.raises(BenchError, match="the plain side speculates: it drafted") as error:
        checks(engines, plan("greedy"), path)
    assert "switch speculation off" in error.value.hint
    assert len(path.read_text().splitlines()) == 1  # its answers are not kept


def test_a_server_without_log_probabilities_is_checked_by_the_rest():
    engines = tuple(map(Silent, pair()))
    found = by_name(checks(engines, plan("temperature=1", rounds=8)))
    assert {name for name, check in found.items() if check.verdict == ELSEWHERE} == {
        "seeded identity",
        "log-probs",
        "PIT",
    }
    assert found["tokens"].verdict == PASS


def test_the_report_has_a_line_a_cell():
    part = Part(SERVED_CELLS, checks(pair("short-rollback"), plan("greedy", depths=(4, 5))))
    lines = render([part], "text").splitlines()
    assert lines[0].split("  ")[0] == "served engine"
    assert [line.partition(", ")[0] for line in lines[2:4]] == ["depth 4", "depth 5"]
    assert json.loads(render([part], "json"))["checks"][0]["part"] == "served engine"


def test_a_plan_asks_both_sides_with_other_seeds():
    """The same seed on both sides would make answers of a matching engine dependent."""
    seeds = {"served": [], "plain": []}

    class Noting(Through):
        def __init__(self, engine, side):
            super().__init__(engine)
            self.side = side

        def ask_all(self, asks, concurrency):
            if len(asks) == 16:
                seeds[self.side] += [ask.seed for ask in asks]
            return self.engine.ask_all(asks, concurrency)

    served, plain = pair()
    checks((Noting(served, "served"), Noting(plain, "plain")), plan("temperature=1", rounds=3))
    every = seeds["served"] + seeds["plain"]
    assert len(every) == len(set(every)) == 16 * 3 * 2
