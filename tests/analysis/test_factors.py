"""The factors of a speedup: exact, and equal to what paper says."""

import math
import random
from dataclasses import replace

import pytest
from by_hand import FAST, sample
from small import DRAFTED, OTHER, PLAIN, before_schema_4

from fspad_bench.analysis.factors import chain, log_mean
from fspad_bench.analysis.shares import step_times
from fspad_bench.benchmark.speeds import Pair, speedup

PAIR = Pair(PLAIN, DRAFTED)


def test_parts_share_the_time_by_the_seconds_that_they_add():
    """A step twice as long: the draft adds 60 of the 100 ms, the forward and the rest 20 each."""
    product = chain([PAIR])
    assert product.speedup == pytest.approx(4 / 3)
    assert product.factors == pytest.approx(
        {
            "tokens": 8 / 3,
            "draft": 2**-0.6,
            "forward": 2**-0.2,
            "verification": 2**-0.1,
            "rest": 2**-0.1,
        }
    )


def test_a_perfect_draft_commits_every_level_and_a_free_one_takes_no_time():
    product = chain([PAIR])
    assert product.perfect_draft == pytest.approx(4 / 3 * (3 + 3 + 5) / 8)
    assert product.free_draft == pytest.approx((0.8 / 9) / (0.42 / 9))


def test_old_records_leave_verification_in_the_rest():
    product = chain([Pair(PLAIN, before_schema_4(DRAFTED))])
    assert product.factors["rest"] == pytest.approx(2**-0.2)
    assert "verification" not in product.factors
    assert product.perfect_draft is None
    assert product.free_draft == pytest.approx(0.8 / 0.42)


@pytest.mark.parametrize("unknown", [{"draft_seconds": None}, {"score_seconds": 0.0}])
@pytest.mark.parametrize("side", [0, 1])
def test_parts_that_one_side_does_not_time_are_one_factor(unknown, side):
    """Records before 2026-11-23 hold 0 for a time that is not known."""
    sides = list(PAIR)
    sides[side] = replace(sides[side], **unknown)
    product = chain([Pair(*sides)])
    assert product.factors == pytest.approx({"tokens": 8 / 3, "step": 0.5})


def drawn(dice, key_sample):
    """A generation of random size and times."""
    committed = [dice.randint(1, 5) for _ in range(dice.randint(1, 9))]
    seconds = dice.uniform(0.1, 3)
    parts = sorted(dice.uniform(0, seconds) for _ in range(3))
    return replace(
        key_sample,
        sample=str(dice.random()),
        tokens=[0] * (1 + sum(committed)),
        committed=committed,
        forwards=len(committed) + dice.randint(0, 2),
        decode_seconds=seconds,
        draft_seconds=parts[0],
        score_seconds=parts[1] - parts[0],
        verify_seconds=parts[2] - parts[1],
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_product_is_the_tables_speedup(seed):
    """Outputs of other lengths, and forwards beyond steps."""
    dice = random.Random(seed)
    pairs = [Pair(drawn(dice, PLAIN), drawn(dice, DRAFTED)) for _ in range(4)]
    product = chain(pairs)
    measured = speedup(pairs, prefill=False).value
    assert math.prod(product.factors.values()) == pytest.approx(measured, rel=1e-12)
    assert product.speedup == pytest.approx(measured, rel=1e-12)


def test_decoders_are_compared_as_with_vanilla():
    """A step of 200 ms against one of 100: the draft adds 40 ms, the forward 30."""
    product = chain([Pair(OTHER, DRAFTED)])
    assert product.factors["tokens"] == pytest.approx((8 / 3) / 2)
    assert product.factors["draft"] == pytest.approx(2**-0.4)
    assert product.factors["forward"] == pytest.approx(2**-0.3)
    assert product.speedup == pytest.approx(0.4 / 0.6)


def test_equal_sides_have_factors_of_one():
    assert set(chain([Pair(PLAIN, PLAIN)]).factors.values()) == {1}


def test_the_logarithmic_mean():
    assert log_mean(2, 1) == pytest.approx(1 / math.log(2))
    assert log_mean(1, 2) == pytest.approx(1 / math.log(2))
    assert log_mean(3, 3) == 3
    assert log_mean(3, 3 * (1 + 1e-8)) == pytest.approx(3)


def test_nothing_is_known_without_steps_or_times():
    foreign = sample(FAST, "a", 9, 0.0)
    assert chain([]) is None
    assert chain([Pair(PLAIN, foreign)]) is None
    assert step_times([foreign]) is None


def test_a_step_is_the_mean_over_forwards():
    step = step_times([DRAFTED])
    assert (step.steps, step.tokens, step.nodes) == (3, pytest.approx(8 / 3), 1 + 14 / 3)
    assert step.seconds == pytest.approx(0.2)
    assert step.parts == pytest.approx(
        {"draft": 0.06, "forward": 0.1, "verification": 0.02, "rest": 0.02}
    )
    assert step.share("draft") == pytest.approx(0.3)
