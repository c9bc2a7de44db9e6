"""The exact law of the production loop and rules on a scripted target, against the product of the target's own laws.

Three tokens, trees of depth 2, outputs of depth + 2 tokens: small enough to explore every decision, large enough for
a refusal at every node, a bonus token behind a whole path, and a second round. No sampling error, hence no power to
state: a total variation above 1e-10 is a bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fspad_bench.core.loop import Drafter, Limit, Target, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import RULES
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.errors import BenchError
from fspad_bench.lossless.oracle import Law, TooMany, distance, explore
from fspad_bench.lossless.report import ELSEWHERE, VACUOUS, Check
from fspad_bench.lossless.scripted import ScriptedDrafter, ScriptedTarget
from fspad_bench.lossless.witness import Sights, Witness

VOCABULARY = 3
SALTS = (0, 1)
PROMPT = (0, 1, 0, 1)
LENGTH = 4
BOUND = 1e-10
TINY_LAW = Sampler(1.3, top_k=2)
TINY_PROMPTS = ([20, 3, 77], [41, 90, 41, 90, 41])
LAWS = {
    "greedy": Sampler(0.0),
    "T=0.6": Sampler(0.6),
    "T=1": Sampler(1.0),
    "T=1.5 top-p=0.9": Sampler(1.5, top_p=0.9),
    "T=1.2 top-k=2": Sampler(1.2, top_k=2),
}
WAYS = {
    "ranked": {"drawn": False},
    "drawn": {"drawn": True},
    "drawn wide": {"drawn": True, "widths": (2, 2)},
    "drawn, own vocabulary": {"drawn": True, "vocabulary": (2, 0)},
}


def product_law(target: ScriptedTarget, sampler: Sampler, length: int) -> Law:
    """The law of `length` tokens after the prompt, straight from the target's laws: no loop, no drafter."""
    law: Law = {(): 1.0}
    for _ in range(length):
        longer: Law = {}
        for output, weight in law.items():
            for token, p in enumerate(sampler.law(target.logits([*PROMPT, *output])).tolist()):
                if p:
                    longer[(*output, token)] = weight * p
        law = longer
    return law


def loop_law(
    target: ScriptedTarget, drafter: Drafter, sampler: Sampler, length: int = LENGTH
) -> Law:
    """The law of the production loop with this drafter, every decision of either side explored."""
    limit = Limit(length)
    return explore(
        sampler, lambda oracle: tuple(generate(target, drafter, oracle, PROMPT, limit).tokens)
    )


def worst(
    make: Callable[[ScriptedTarget], Drafter],
    laws: Iterable[str],
    sights: Sights,
    salts: Iterable[int] = SALTS,
) -> float:
    """The largest total variation over laws and scripts."""
    found = 0.0
    for salt in salts:
        target = ScriptedTarget(VOCABULARY, salt)
        for name in laws:
            drafter = Witness(make(target), sights)
            law = loop_law(target, drafter, LAWS[name])
            found = max(found, distance(law, product_law(target, LAWS[name], LENGTH)))
    return found


def check_decoder(label: str, make: Callable[[Target], Drafter], tiny: Target) -> Check:
    """A decoder of our loop, on the scripted target where it can stand on any, or else on the tiny one."""
    try:
        engine = hasattr(make(tiny), "generate")
    except BenchError as error:
        return Check(
            "exact law",
            label,
            ELSEWHERE,
            f"not to be had on tiny ({error.message}): identity and PIT",
        )
    if engine:
        return Check(
            "exact law", label, ELSEWHERE, "an engine of its own has no decisions to explore: PIT"
        )
    try:
        make(ScriptedTarget(VOCABULARY))
    except Exception:  # whatever it misses: a tokenizer, weights, a name
        return _checked(
            label, lambda sights: on_tiny(make, tiny, sights), "of two tokens each on tiny"
        )
    return _checked(
        label,
        lambda sights: worst(make, LAWS, sights),
        f"over {len(LAWS)} laws",
        label == "vanilla",
    )


def on_tiny(make: Callable[[Target], Drafter], tiny: Target, sights: Sights) -> float:
    """The largest total variation from vanilla's law, itself proved on scripts, over a few prompts of the tiny target.

    Two tokens are left to choose from at every position, so that a whole tree of decisions can be explored.
    """
    found = 0.0
    limit = Limit(LENGTH + 1)
    for prompt in TINY_PROMPTS:
        law, reference = (
            explore(
                TINY_LAW,
                lambda oracle, d=d, p=prompt: tuple(generate(tiny, d, oracle, p, limit).tokens),
            )
            for d in (Witness(make(tiny), sights), Vanilla(tiny))
        )
        found = max(found, distance(law, reference))
    return found


def check_rules(ways: Iterable[str] = WAYS, salts: Iterable[int] = SALTS) -> list[Check]:
    """Every rule of verification with children of every kind; all of them must hold for all."""
    every = [(f"{rule}, {way}", scripted(rule, way)) for rule in RULES for way in ways]
    scope = f"over {len(LAWS)} laws"
    return [
        _checked(name, lambda sights, make=make: worst(make, LAWS, sights, salts), scope)
        for name, make in every
    ]


def scripted(rule: str, way: str) -> Callable[[ScriptedTarget], Drafter]:
    return lambda target: ScriptedDrafter(target, verify=rule, **WAYS[way])


def _checked(
    subject: str, measure: Callable[[Sights], float], scope: str, vanilla: bool = False
) -> Check:
    sights = Sights()
    try:
        figure = measure(sights)
    except TooMany as error:
        return Check("exact law", subject, ELSEWHERE, f"{error}: held to PIT")
    if not vanilla and not (sights.accepted[0] and sights.whole):
        return Check("exact law", subject, VACUOUS, "no draft was ever right, or ever wrong")
    return Check.of(
        "exact law", subject, figure <= BOUND, f"TV {figure:.1e} {scope}", f"{BOUND:.0e}"
    )
