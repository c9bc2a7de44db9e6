"""A row's verdict, from audits made by hand."""

import pytest

from fspad_bench.benchmark.record import Audit
from fspad_bench.benchmark.verdict import (
    ENOUGH_PROMPTS,
    FLOAT32_BOUND,
    differing_prompts,
    verdict,
    worse_than_vanilla,
)

ERROR = 1e-4


def audit(regret=0.0, own=0.0, error=ERROR, sample="one", key="k", turn=0):
    return Audit(key, sample, turn, "r", 3, [0.0, 0.0, 0.0, regret], [0.0, 0.0, 0.0, own], error)


def judge(*audits, divergences=None, tokens=10_000, pooled=None, dtype="bfloat16"):
    count = len(audits) if divergences is None else divergences
    return verdict(count, tokens, audits, audits if pooled is None else pooled, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_equal_outputs_are_exact_whatever_was_audited_before(dtype):
    assert judge(dtype=dtype) == "exact"
    assert judge(audit(9.0), divergences=0, dtype=dtype) == "exact"


def test_an_output_that_could_not_be_rescored_is_unverified():
    assert judge(divergences=1) == "unverified"
    assert judge(audit(), divergences=2) == "unverified"


@pytest.mark.parametrize(
    ("regret", "expected"),
    [(0.0, "tie"), (2 * ERROR, "tie"), (2.001 * ERROR, "lossy"), (5.0, "lossy")],
)
def test_a_regret_may_reach_twice_the_margin_error(regret, expected):
    assert judge(audit(regret)) == expected


def test_one_large_regret_among_many_is_lossy():
    good = [audit(sample=str(i)) for i in range(50)]
    assert judge(*good) == "tie"
    assert judge(*good, audit(0.1)) == "lossy"


def test_without_rounding_there_is_no_excuse():
    assert judge(audit(1e-12, error=0.0)) == "lossy"
    assert judge(audit(0.0, error=0.0)) == "tie"


NAN = float("nan")


@pytest.mark.parametrize(
    "odd", [audit(NAN), audit(float("inf")), audit(9.0, error=NAN), audit(9.0, error=float("inf"))]
)
def test_a_target_that_overflows_explains_nothing(odd):
    assert judge(odd) == "unverified"
    assert judge(audit(), odd) == "unverified"
    assert judge(audit(9.0), pooled=[audit(9.0), odd]) == "lossy"
    assert judge(audit(9.0), odd) == "lossy"
    many = [audit(sample=str(i)) for i in range(ENOUGH_PROMPTS)]
    assert judge(*many, pooled=[*many, odd]) == "tie"


def test_rounding_elsewhere_is_no_excuse():
    """A prompt's own error counts, or the median; one prompt's large error excuses no other."""
    usual = [audit(sample=str(i)) for i in range(5)]
    wild = audit(error=1e-2, sample="wild")
    assert judge(audit(1.9e-2), pooled=[audit(1.9e-2), *usual, wild]) == "lossy"
    assert judge(audit(1.9e-2, error=1e-2), pooled=usual) == "tie"
    short = audit(1.9 * ERROR, error=0.0, sample="short")
    assert judge(short) == "lossy"
    assert judge(short, pooled=[short, *usual]) == "tie"


def test_float32_has_a_bound_of_its_own():
    wide = audit(2 * FLOAT32_BOUND, error=1e-2)
    assert judge(wide, dtype="bfloat16") == "tie"
    assert judge(wide, dtype="float32") == "lossy"
    assert judge(audit(FLOAT32_BOUND, error=1e-2), dtype="float32") == "tie"


@pytest.mark.parametrize(
    ("divergences", "tokens", "expected"),
    [
        (1, 10, "tie"),
        (1, 5000, "tie"),
        (2, 9_999, "lossy"),
        (2, 10_000, "tie"),
        (3, 10_000, "lossy"),
    ],
)
def test_float32_allows_one_tie_in_5000_tokens(divergences, tokens, expected):
    audits = [audit(sample=str(i)) for i in range(divergences)]
    assert judge(*audits, tokens=tokens, dtype="float32") == expected
    assert judge(*audits, tokens=tokens, dtype="bfloat16") == "tie"


def test_a_rule_that_takes_any_near_top_token_is_lossy_once_enough_prompts_show_it():
    greedy = [audit(ERROR, sample=str(i)) for i in range(ENOUGH_PROMPTS)]
    assert judge(*greedy[:-1]) == "tie"
    assert judge(*greedy) == "lossy"
    fair = [audit(ERROR * (i % 2), ERROR * ((i + 1) % 2), sample=str(i)) for i in range(40)]
    assert judge(*fair) == "tie"
    better = [audit(0.0, ERROR, sample=str(i)) for i in range(40)]
    assert judge(*better) == "tie"


def test_the_evidence_is_pooled_over_rows_but_counted_by_prompt():
    rows = [audit(ERROR, sample=str(i), key=key) for key in "abc" for i in range(4)]
    assert judge(*rows[:4], pooled=rows) == "lossy"
    turns = [
        audit(ERROR, sample=str(i), turn=turn)
        for turn in range(2)
        for i in range(ENOUGH_PROMPTS - 1)
    ]
    assert judge(*turns) == "tie"


def test_worse_than_vanilla_weighs_means_not_lengths():
    long = [1e-5] * 100
    short = [1e-5]
    audits = [Audit("k", str(i), 0, "r", 0, short, long, ERROR) for i in range(20)]
    assert not worse_than_vanilla(audits)
    assert not worse_than_vanilla([])


def test_a_prompt_counts_once_whatever_its_turns():
    turns = [audit(sample=name, turn=turn) for name in "ab" for turn in range(2)]
    assert differing_prompts([*turns, audit(sample="a", key="another task")]) == 3
