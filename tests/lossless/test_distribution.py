"""The statistical tests: the power they claim, the errors they detect, and no false alarm."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from fspad_bench.benchmark.uniform import ALPHA, Transformed, transform
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless import distribution
from fspad_bench.lossless.distribution import draws_needed, g_test
from fspad_bench.lossless.exact import PROMPT, product_distribution, scripted
from fspad_bench.lossless.oracle import RememberingSampler
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError

PROMPTS = [[i, i + 3, i * 2 % 90, 40] for i in range(20)]


@pytest.mark.parametrize(
    ("cells", "alpha", "noncentrality"),
    [(4, 1e-3, 37.9), (16, 1e-4, 64.3), (64, 1e-6, 121.8), (256, 1e-6, 202.8)],
)
def test_the_number_of_draws_is_that_of_the_noncentral_distribution(cells, alpha, noncentrality):
    assert draws_needed(cells, 0.05, alpha) == pytest.approx(
        noncentrality / (4 * 0.05**2), rel=2e-3
    )


def counts_of(weights, draws, seed):
    return Counter((i,) for i in random.Random(seed).choices(range(len(weights)), weights, k=draws))


def test_the_power_is_as_stated():
    """The distribution is never refused; one that is 0.05 away nearly always.

    The shift is the one for which the bound on the noncentrality is an equality.
    """
    uniform = {(i,): 1 / 16 for i in range(16)}
    shifted = [1 / 16 + (0.05 / 8 if i % 2 else -0.05 / 8) for i in range(16)]
    draws = draws_needed(16, 0.05)
    refused = sum(g_test(uniform, counts_of(shifted, draws, seed)) < ALPHA for seed in range(60))
    assert refused >= 56
    assert all(g_test(uniform, counts_of([1] * 16, draws, seed)) >= 1e-4 for seed in range(60))


def test_p_values_of_the_truth_are_uniform():
    truth = {(0,): 0.5, (1,): 0.3, (2,): 0.15, (3,): 0.05}
    weights = list(truth.values())
    p_values = [g_test(truth, counts_of(weights, 800, seed)) for seed in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_rare_cells_are_pooled_and_impossible_ones_refused():
    skewed = {(0,): 0.998, (1,): 0.001, (2,): 0.001}
    assert g_test(skewed, Counter({(0,): 998, (1,): 2})) > 0.1
    assert g_test(skewed, Counter({(0,): 999, (7,): 1})) == 0.0


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
def test_the_loops_draws_have_the_distribution(rule):
    assert distribution.check_g_test(rule, scripted(rule, "drawn"), 0.15).verdict == "PASS"


def test_earlier_draws_count_again():
    target = ScriptedTarget(distribution.VOCABULARY, distribution.SALT)
    drafter = scripted("match", "ranked")(target)
    coarse, fine = distribution.loop_p_values(target, drafter, [0.4, 0.3])
    assert coarse[1] < fine[1]
    assert [fine] == list(distribution.loop_p_values(target, drafter, [0.3]))


def test_a_decoder_that_needs_more_than_a_script_is_left_to_other_checks():
    def make(target):
        return target.tokenizer

    check = distribution.check_g_test("needy", make, 0.3)
    assert check.verdict == "-"
    assert "needs more than a script (it reads a target's tokenizer)" in check.figure


def test_an_engine_of_its_own_is_not_in_our_loop():
    class Engine:
        def __init__(self, target):
            pass

        def generate(self, prompt, sampler, limit):
            raise AssertionError

    check = distribution.check_g_test("engine", Engine, 0.3)
    assert (check.verdict, check.figure) == ("-", "an engine of its own, not in our loop: PIT")


def test_a_decoder_that_crashes_on_a_script_has_failed():
    def make(target):
        raise ZeroDivisionError("no such thing")

    with pytest.raises(ZeroDivisionError, match="no such thing"):
        distribution.check_g_test("crashing", make, 0.3)


def test_a_wrong_distribution_is_refused():
    class Warm(ScriptedTarget):
        def logits(self, prefix):
            return super().logits(prefix) * 0.75

    target = ScriptedTarget(distribution.VOCABULARY, distribution.SALT)
    truth = product_distribution(target, distribution.SAMPLER, distribution.LENGTH)
    warm = Warm(distribution.VOCABULARY, distribution.SALT)
    remembering = RememberingSampler.of(distribution.SAMPLER)
    counts = Counter()
    for i in range(900):
        sampler = remembering.streamed(f"{i}")
        generation = generate(warm, Vanilla(warm), sampler, PROMPT, Limit(distribution.LENGTH))
        counts[tuple(generation.tokens)] += 1
    assert g_test(truth, counts) < ALPHA


def test_the_transform_of_draws_is_uniform():
    p = torch.tensor([0.1, 0.5, 0.3, 0.1]).double()
    dice = Dice((3, 4), 0)
    draws = random.Random(1).choices(range(4), p.tolist(), k=2000)
    transformed = [transform(p, token, dice) for token in draws]
    assert stats.kstest(transformed, "uniform").pvalue > 1e-3


def test_the_transform_orders_by_probability():
    p = torch.tensor([0.1, 0.6, 0.3]).double()
    dice = Dice((1, 1), 0)
    assert 0 < transform(p, 1, dice) < 0.6
    assert 0.6 < transform(p, 2, dice) < 0.9
    assert 0.9 < transform(p, 0, dice) < 1
    assert transform(torch.tensor([1.0, 0.0]).double(), 1, dice) == 1.0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", [{}, {"verify": "rejection"}, {"verify": "traversal"}])
def test_pit_of_every_rule(options, tiny):
    method = build_decoder("fspad", tiny, {"fspad": options})
    assert distribution.check_pit(method, tiny, PROMPTS[:10], 32).verdict == "PASS"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_pit_refuses_another_temperature(factor, tiny):
    class Other:
        def generate(self, prompt, sampler, limit):
            other = Sampler(sampler.temperature * factor, 0, 1.0, 7, sampler.stream)
            return Generation(generate(tiny, Vanilla(tiny), other, prompt, limit).tokens, 0.0, 0.0)

    other = Decoder("other", tiny, engine=Other())
    assert distribution.check_pit(other, tiny, PROMPTS[:10], 48).verdict == "FAIL"


def test_too_few_tokens_are_vacuous(tiny):
    check = distribution.check_pit(build_decoder("vanilla", tiny, {}), tiny, PROMPTS[:1], 8)
    assert check.verdict == "VACUOUS"


def test_offsets_count_from_the_start_of_a_step(tiny):
    method = build_decoder("fspad", tiny, {"fspad": {"tree": "fixed"}})
    transformed = distribution.pit(method, tiny, PROMPTS[:3], 32)
    assert len(transformed) == 96
    assert {x.offset for x in transformed} == {0, 1, 2}


def test_an_engine_that_does_not_sample_has_its_certificate_elsewhere(tiny):
    """A drafter in our loop that raises, on the other hand, has failed."""

    class Greedy:
        def generate(self, prompt, sampler, limit):
            raise BenchError("greedy only", "run it with --temperature 0")

    check = distribution.check_pit(Decoder("stock", tiny, engine=Greedy()), tiny, PROMPTS, 48)
    assert (check.verdict, check.figure) == ("-", "the engine refuses to sample: greedy only")

    class Refuses(Vanilla):
        def begin(self, context, scores):
            raise BenchError("no", "no")

    with pytest.raises(BenchError):
        distribution.check_pit(Decoder("ours", tiny, drafter=Refuses(tiny)), tiny, PROMPTS, 48)


@pytest.mark.parametrize(
    ("dtype", "verdict"),
    [(torch.float64, "FAIL"), (torch.float32, "FAIL"), (torch.bfloat16, "PASS")],
    ids=str,
)
def test_the_far_tail_counts_where_rounding_moves_no_token_across_a_cut(
    dtype, verdict, tiny, monkeypatch
):
    dice = random.Random(1)
    edge = [*(dice.random() for _ in range(1000)), *[1.0] * 20]
    monkeypatch.setattr(distribution, "pit", lambda *_: [Transformed(u, 0) for u in edge])
    decoder = build_decoder("vanilla", tiny, {})
    target = SimpleNamespace(dtype=dtype)
    assert distribution.check_pit(decoder, target, PROMPTS, 8).verdict == verdict
