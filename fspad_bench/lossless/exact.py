"""The exact output distribution of the production loop on a scripted target.

It must equal the product of the target's own distributions.

Three tokens, trees of depth 2 and outputs of depth + 2 tokens: small enough to enumerate every
decision, large enough for a refusal at every node, a bonus token after a whole path, and a second
step. There is no sampling error, hence no power to state: a total variation above 1e-10 is a bug.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Drafter, Limit, Target, as_engine
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES
from fspad_bench.decoders.border import DecoderError
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.penalties import Penalties
from fspad_bench.lossless.checks import ELSEWHERE, VACUOUS, Check, worst_of
from fspad_bench.lossless.oracle import (
    DecisionTreeTooLarge,
    Distribution,
    Oracle,
    distance,
    explore,
)
from fspad_bench.lossless.scripted import ScriptedDrafter, ScriptedTarget
from fspad_bench.lossless.witness import Observations, Witness
from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import described

NAME = "exact distribution"
VOCABULARY = 3
SALTS = (0, 1)
PROMPT = (0, 1, 0, 1)
LENGTH = 4
BOUND = 1e-10
TINY_SAMPLER = Sampler(1.3, top_k=2)
TINY_PROMPTS = ([20, 3, 77], [41, 90, 41, 90, 41])
SAMPLERS = {
    "greedy": Sampler(0.0),
    "T=0.6": Sampler(0.6),
    "T=1": Sampler(1.0),
    "T=1.5 top-p=0.9": Sampler(1.5, top_p=0.9),
    "T=1.2 top-k=2": Sampler(1.2, top_k=2),
    "T=0.6 penalties": Sampler(0.6, min_p=0.1, processors=Penalties(1.3, 0.4, 0.3).processors),
}
DRAFTS: dict[str, dict[str, Any]] = {
    "ranked": {"drawn": False},
    "drawn": {"drawn": True},
    "drawn wide": {"drawn": True, "widths": (2, 2)},
    "drawn, own vocabulary": {"drawn": True, "vocabulary": (2, 0)},
}
# A scripted target has no weights, no tokenizer and no name. A decoder that needs more than the
# loop does raises one of these when it is constructed or prepared there. Any other exception is a
# failure of the decoder, and so is any exception while decoding.
NEEDS_MORE = (AttributeError, TypeError, BenchError)
LACKING = re.compile(r"'ScriptedTarget' object has no attribute '(\w+)'")


def product_distribution(target: ScriptedTarget, sampler: Sampler, length: int) -> Distribution:
    """Return the distribution of `length` tokens from the target alone: no loop, no drafter."""
    outputs: Distribution = {(): 1.0}
    for _ in range(length):
        longer: Distribution = {}
        for output, weight in outputs.items():
            text = [*PROMPT, *output]
            logits = target.logits(text)
            if sampler.processors:
                logits = sampler.adjust(logits, torch.tensor(text), len(PROMPT))
            probabilities = sampler.distribution(logits).tolist()
            for token, p in enumerate(probabilities):
                if p:
                    longer[(*output, token)] = weight * p
        outputs = longer
    return outputs


def loop_distribution(
    target: Target,
    drafter: Drafter,
    sampler: Sampler,
    *,
    prompt: Iterable[int] = PROMPT,
    length: int = LENGTH,
) -> Distribution:
    """Return the distribution of the production loop, all decisions of both sides enumerated."""
    limit = Limit(length)
    tokens = list(prompt)

    def play(oracle: Oracle) -> tuple[int, ...]:
        return tuple(generate(target, drafter, oracle, tokens, limit).tokens)

    return explore(sampler, play)


class Merged(Witness):
    """A witness of a `ScriptedDrafter`, under which what follows equal states is explored once.

    Such a drafter keeps nothing, nor does a rule. The next steps depend on the committed tokens, as
    the context has them and as the session's cache has them, and on the budget.
    """

    def __init__(
        self, drafter: Drafter, observations: Observations, target: ScriptedTarget
    ) -> None:
        super().__init__(drafter, observations, draws=False)
        self.target = target

    def propose(self, context: Context, budget: int) -> Tree:
        session = self.target.sessions[-1]
        state = (tuple(context.tokens), tuple(session.tokens), tuple(session.pending), budget)
        if isinstance(context.sampler, Oracle):
            context.sampler.reach(state)
        return super().propose(context, budget)


def watched(drafter: Drafter, target: ScriptedTarget, observations: Observations) -> Witness:
    """Return the drafter under observation; equal states are merged where it keeps none."""
    if type(drafter) is ScriptedDrafter:
        return Merged(drafter, observations, target)
    return Witness(drafter, observations, draws=False)


def largest_distance(
    make: Callable[[ScriptedTarget], Drafter],
    samplers: Iterable[str],
    observations: Observations,
    salts: Iterable[int] = SALTS,
) -> float:
    """Return the largest total variation between loop and target over samplers and scripts."""
    largest = 0.0
    for salt in salts:
        target = ScriptedTarget(VOCABULARY, salt)
        for name in samplers:
            drafter = watched(make(target), target, observations)
            loop = loop_distribution(target, drafter, SAMPLERS[name])
            product = product_distribution(target, SAMPLERS[name], LENGTH)
            largest = worst_of([largest, distance(loop, product)])
    return largest


def largest_distance_on_tiny(
    make: Callable[[Target], Drafter], tiny: Target, observations: Observations
) -> float:
    """Return the largest total variation from vanilla over prompts of the tiny target.

    Vanilla itself is proved on scripts. Top-k 2 leaves two tokens to choose from at every position,
    so that all decisions can be enumerated.
    """
    largest = 0.0
    for prompt in TINY_PROMPTS:
        drafters: list[Drafter] = [
            Witness(make(tiny), observations, draws=False),
            Vanilla(tiny),
        ]
        loop, vanilla = (
            loop_distribution(tiny, drafter, TINY_SAMPLER, prompt=prompt, length=LENGTH + 1)
            for drafter in drafters
        )
        largest = worst_of([largest, distance(loop, vanilla)])
    return largest


def reason_it_needs_more(make: Callable[[ScriptedTarget], object]) -> str:
    """Return why a decoder cannot be built on a scripted target, an empty text where it can.

    Raises any exception that says something else about the decoder.
    """
    try:
        make(ScriptedTarget(VOCABULARY))
    except NEEDS_MORE as error:
        own = error.__cause__ if isinstance(error, DecoderError) else error
        if not isinstance(own, NEEDS_MORE):
            raise
        lacking = LACKING.search(str(own))
        return f"it reads a target's {lacking[1]}" if lacking else described(own)
    return ""


def check_decoder(label: str, make: Callable[[Any], Any], tiny: Target) -> Check:
    """Check a decoder in our loop on scripted targets, or on the tiny one where it needs more."""
    try:
        decoder = make(tiny)
    except BenchError as error:
        figure = f"not available on tiny ({error.message}): identity and PIT"
        return Check(NAME, label, ELSEWHERE, figure)
    if as_engine(decoder):
        figure = "an engine of its own has no decisions to enumerate: PIT"
        return Check(NAME, label, ELSEWHERE, figure)
    reason = reason_it_needs_more(make)
    if reason:
        scope = f"of two tokens each on tiny (on a script: {reason})"
        return _checked(label, lambda seen: largest_distance_on_tiny(make, tiny, seen), scope)
    scope = f"over {len(SAMPLERS)} samplers"
    drafts = not isinstance(decoder, Vanilla)
    return _checked(label, lambda seen: largest_distance(make, SAMPLERS, seen), scope, drafts)


def check_rules(
    drafts: Iterable[str] = DRAFTS, salts: Iterable[int] = SALTS, rules: Iterable[str] = RULES
) -> list[Check]:
    """Check every rule of verification with every kind of children."""
    return [_check_rule(rule, draft, salts) for rule in rules for draft in drafts]


def _check_rule(rule: str, draft: str, salts: Iterable[int]) -> Check:
    make = scripted(rule, draft)
    scope = f"over {len(SAMPLERS)} samplers"
    return _checked(
        f"{rule}, {draft}", lambda seen: largest_distance(make, SAMPLERS, seen, salts), scope
    )


def scripted(rule: str, draft: str) -> Callable[[ScriptedTarget], ScriptedDrafter]:
    """Return the constructor of a scripted drafter with this rule and these children."""
    return lambda target: ScriptedDrafter(target, verify=rule, **DRAFTS[draft])


def _checked(
    subject: str, measure: Callable[[Observations], float], scope: str, drafts: bool = True
) -> Check:
    """Compare a measured distance with BOUND.

    A subject that `drafts` must have been both right and wrong, or the check is vacuous.
    """
    observations = Observations()
    try:
        figure = measure(observations)
    except DecisionTreeTooLarge as error:
        return Check(NAME, subject, ELSEWHERE, f"{error}: held to PIT")
    if drafts and not (observations.accepted[0] and observations.whole):
        return Check(NAME, subject, VACUOUS, "no draft was ever right, or ever wrong")
    return Check.of(NAME, subject, figure <= BOUND, f"TV {figure:.1e} {scope}", f"{BOUND:.0e}")
