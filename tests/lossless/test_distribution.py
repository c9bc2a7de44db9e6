"""The statistical tests: the power they claim, the errors they see, the truth they leave alone."""

import random
from collections import Counter

import pytest
import torch
from scipy import stats

from fspad_bench.core.loop import Generation, Limit, generate
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.decoders.build import Method, build
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.errors import BenchError
from fspad_bench.lossless import distribution
from fspad_bench.lossless.distribution import draws_needed, g_test
from fspad_bench.lossless.exact import scripted
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.lossless.uniform import ALPHA, transform

PROMPTS = [[i, i + 3, i * 2 % 90, 40] for i in range(20)]


@pytest.mark.parametrize(
    ("cells", "alpha", "noncentrality"),
    [(4, 1e-3, 37.9), (16, 1e-4, 64.3), (64, 1e-6, 121.8), (256, 1e-6, 202.8)],
)
def test_the_number_of_draws_is_that_of_the_noncentral_law(cells, alpha, noncentrality):
    assert draws_needed(cells, 0.05, alpha) == pytest.approx(
        noncentrality / (4 * 0.05**2), rel=2e-3
    )


def counts_of(weights, draws, seed):
    return Counter((i,) for i in random.Random(seed).choices(range(len(weights)), weights, k=draws))


def test_the_power_is_as_stated():
    """A law 0.05 away, shifted as the bound on the noncentrality has it, is refused nearly always; the law never."""
    law = {(i,): 1 / 16 for i in range(16)}
    shifted = [1 / 16 + (0.05 / 8 if i % 2 else -0.05 / 8) for i in range(16)]
    draws = draws_needed(16, 0.05)
    refused = sum(g_test(law, counts_of(shifted, draws, seed)) < ALPHA for seed in range(60))
    assert refused >= 56
    assert all(g_test(law, counts_of([1] * 16, draws, seed)) >= 1e-4 for seed in range(60))


def test_p_values_of_the_truth_are_uniform():
    law = {(0,): 0.5, (1,): 0.3, (2,): 0.15, (3,): 0.05}
    found = [g_test(law, counts_of(list(law.values()), 800, seed)) for seed in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_rare_cells_are_pooled_and_impossible_ones_refused():
    law = {(0,): 0.998, (1,): 0.001, (2,): 0.001}
    assert g_test(law, Counter({(0,): 998, (1,): 2})) > 0.1
    assert g_test(law, Counter({(0,): 999, (7,): 1})) == 0.0


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
def test_the_loops_draws_have_the_law(rule):
    assert distribution.check_law(rule, scripted(rule, "drawn"), 0.15).verdict == "PASS"


def test_a_wrong_law_is_refused():
    class Warm(ScriptedTarget):
        def logits(self, prefix):
            return super().logits(prefix) * 0.75

    target = ScriptedTarget(distribution.VOCABULARY, 5)
    law = distribution.product_law(target, distribution.SAMPLER, distribution.LENGTH)
    counts, warm = Counter(), Warm(distribution.VOCABULARY, 5)
    for i in range(1500):
        sampler = distribution.SAMPLER.streamed(f"{i}")
        counts[
            tuple(generate(warm, Vanilla(warm), sampler, distribution.PROMPT, Limit(3)).tokens)
        ] += 1
    assert g_test(law, counts) < ALPHA


def test_the_transform_of_draws_is_uniform():
    law = torch.tensor([0.1, 0.5, 0.3, 0.1]).double()
    dice, draws = Dice((3, 4), 0), random.Random(1).choices(range(4), law.tolist(), k=2000)
    assert stats.kstest([transform(law, token, dice) for token in draws], "uniform").pvalue > 1e-3


def test_the_transform_orders_by_probability():
    law = torch.tensor([0.1, 0.6, 0.3]).double()
    dice = Dice((1, 1), 0)
    assert (
        0
        < transform(law, 1, dice)
        < 0.6
        < transform(law, 2, dice)
        < 0.9
        < transform(law, 0, dice)
        < 1
    )
    assert transform(torch.tensor([1.0, 0.0]).double(), 1, dice) == 1.0


@pytest.mark.parametrize("options", [{}, {"verify": "rejection"}, {"verify": "traversal"}])
def test_pit_of_every_rule(options, tiny):
    assert (
        distribution.check_pit(build("fspad", tiny, {"fspad": options}), tiny, PROMPTS, 48).verdict
        == "PASS"
    )


@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_pit_refuses_another_temperature(factor, tiny):
    class Other:
        def generate(self, prompt, sampler, limit):
            other = Sampler(sampler.temperature * factor, 0, 1.0, 7, sampler.stream)
            return Generation(generate(tiny, Vanilla(tiny), other, prompt, limit).tokens, 0.0, 0.0)

    assert distribution.check_pit(Method("other", Other(), {}), tiny, PROMPTS, 48).verdict == "FAIL"


def test_too_few_tokens_are_vacuous(tiny):
    assert (
        distribution.check_pit(build("vanilla", tiny, {}), tiny, PROMPTS[:1], 8).verdict
        == "VACUOUS"
    )


def test_offsets_count_from_the_start_of_a_round(tiny):
    found = distribution.pit(
        build("fspad", tiny, {"fspad": {"tree": "fixed"}}), tiny, PROMPTS[:3], 32
    )
    assert len(found) == 96
    assert {x.offset for x in found} == {0, 1, 2}


def test_an_engine_that_does_not_sample_has_its_certificate_elsewhere(tiny):
    """And a decoder of ours that raises has failed."""

    class Greedy:
        def generate(self, prompt, sampler, limit):
            raise BenchError("greedy only", "run it with --temperature 0")

    found = distribution.check_pit(Method("stock", Greedy(), {}), tiny, PROMPTS, 48)
    assert (found.verdict, found.figure) == ("-", "the engine refuses to sample: greedy only")

    class Refuses(Vanilla):
        def begin(self, context, scores):
            raise BenchError("no", "no")

    with pytest.raises(BenchError):
        distribution.check_pit(Method("ours", Refuses(tiny), {}), tiny, PROMPTS, 48)
