"""What a drafter proposes on the way, and whether its tokens are vanilla's."""

from weakref import WeakKeyDictionary

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless.witness import Observations, Witness

KNOWN = WeakKeyDictionary()  # target -> question -> vanilla's tokens, which many tests ask for


def vanilla_tokens(target, sampler, prompt, limit):
    """Return vanilla's tokens, generated once for each target and question."""
    known = KNOWN.setdefault(target, {})
    question = (sampler, tuple(prompt), limit)
    if question not in known:
        known[question] = generate(target, Vanilla(target), sampler, prompt, limit).tokens
    return list(known[question])


class Recorder(Drafter):
    """Passes everything through, and keeps the text, the tree and the budget of each step.

    `more` tells what else to keep, after the tree was drafted.
    """

    def __init__(self, drafter, more=lambda drafter: ()):
        self.drafter = drafter
        self.more = more
        self.proposals = []

    def begin(self, context, scores):
        self.drafter.begin(context, scores)

    def propose(self, context, budget):
        tree = self.drafter.propose(context, budget)
        self.proposals.append((list(context.tokens), tree, budget, *self.more(self.drafter)))
        return tree


def compare_with_vanilla(target, drafter, prompts, temperature, tokens=40):
    """Hold a drafter to vanilla's tokens, with drafts accepted in full, in part and not at all, and
    a last tree cut short. Returns its generations.
    """
    seen = Observations()
    generations = []
    for seed, prompt in enumerate(prompts):
        sampler = Sampler(temperature, seed=seed)
        vanilla = vanilla_tokens(target, sampler, prompt, Limit(tokens))
        drafted = generate(target, Witness(drafter, seen), sampler, prompt, Limit(tokens))
        assert drafted.tokens == vanilla
        generations.append(drafted)
    seen.new = {}  # no stops here
    assert not seen.missing()
    return generations
