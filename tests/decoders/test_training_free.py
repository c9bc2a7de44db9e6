"""What holds of each decoder that drafts without a trained network, whatever it drafts."""

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.lossless.witness import Observations, Witness

DECODERS = ("aded", "aded.maker=mcts", "lookahead", "suffix", "token_recycling")  # with an option
TARGET = ScriptedTarget(6)  # of few tokens, so that guesses are often right
PROMPTS = ([0, 1, 2, 0, 1], [2], [1, 1, 0, 1, 1, 0, 1])
LIMIT = Limit(28)


def output(drafter, prompt, sampler):
    return generate(TARGET, drafter, sampler, prompt, LIMIT).tokens


def drafter_of(name, **options):
    name, *own = name.split(".")
    given = options | dict(text.split("=") for text in own)
    return build_decoder(name, TARGET, {name: given}).drafter


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_vanillas_with_drafts_accepted_refused_and_cut(name, temperature):
    seen = Observations()
    drafter = Witness(drafter_of(name), seen)
    for seed, prompt in enumerate(PROMPTS):
        sampler = Sampler(temperature, seed=seed)
        assert output(drafter, prompt, sampler) == output(Vanilla(TARGET), prompt, sampler)
    assert seen.accepted[0]
    assert sum(count for length, count in seen.accepted.items() if length)
    assert any(seen.budgets[budget] for budget in range(seen.deepest))


class InTurn(Drafter):
    """Asks one of two drafters at each step, and shows every step to both."""

    def __init__(self, *drafters):
        self.drafters = drafters

    def begin(self, context, scores):
        for drafter in self.drafters:
            drafter.begin(context, scores)

    def propose(self, context, budget):
        self.drafters = self.drafters[::-1]
        return self.drafters[0].propose(context, budget)

    def observe(self, step):
        for drafter in self.drafters:
            drafter.observe(step)


@pytest.mark.parametrize("other", DECODERS)
@pytest.mark.parametrize("name", DECODERS)
def test_steps_of_other_drafters_are_learned_from(name, other):
    sampler = Sampler(0.7, seed=4)
    drafter = InTurn(drafter_of(name), drafter_of(other))
    assert output(drafter, PROMPTS[0], sampler) == output(Vanilla(TARGET), PROMPTS[0], sampler)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("scope", ["prompt", "run"])
@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_vanillas_in_any_order_of_prompts(name, scope):
    sampler = Sampler(1.0, seed=3)
    expected = [output(Vanilla(TARGET), prompt, sampler) for prompt in PROMPTS]
    for order in ([0, 1, 2], [2, 0, 1], [1, 1, 2]):
        drafter = drafter_of(name, scope=scope)
        assert drafter.scope == scope
        for number in order:
            assert output(drafter, PROMPTS[number], sampler) == expected[number]


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_alone_decides_the_drafts_unless_the_run_is_learned_from(name):
    """The steps of a prompt are the same whatever came before it."""
    drafter = drafter_of(name)
    sampler = Sampler(1.0, seed=3)
    first = generate(TARGET, drafter, sampler, PROMPTS[0], LIMIT)
    output(drafter, PROMPTS[2], sampler)
    again = generate(TARGET, drafter, sampler, PROMPTS[0], LIMIT)
    assert (again.committed, again.drafted) == (first.committed, first.drafted)
