"""Pairs of doubles, plans for them, and answers by hand, for tests of the certification."""

from fspad_bench.serving.certify.certify import certify
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.certify.plan import Plan, Sampling
from fspad_bench.serving.double.service import Direct, Double, Settings

PROMPTS = ((11, 5), (3, 5))
DEPTH_EXTRA = '{"num_speculative_tokens": N}'


class Through:
    """A server that is another one, but for what a test overrides."""

    def __init__(self, engine):
        self.engine = engine
        self.name = engine.name
        self.facts = engine.facts
        self.drafts = engine.drafts

    def ask_all(self, asks, concurrency):
        return self.engine.ask_all(asks, concurrency)


def pair(fault=None, **settings):
    """Return the double with speculation, and without."""
    salt = settings.get("salt", 0)
    plain = Double(Settings(depth=0, salt=0 if salt == 9 else salt))
    return Direct(Double(Settings(fault=fault, **settings))), Direct(plain)


def plan(*sampling, **sizes):
    sizes = {"prompts": PROMPTS, "depths": (4,), "rounds": 2, "max_tokens": 6} | sizes
    return Plan(
        sampling=tuple(map(Sampling.parse, sampling)),
        depth_extra=DEPTH_EXTRA if sizes["depths"] else "",
        **({"concurrency": (1,), "logprobs": 20} | sizes),
    )


def checks(engines, of, path=None, scorer=None):
    (part,) = certify(*engines, of, path, scorer)
    return part.checks


def by_name(found):
    """Return the checks of one cell by name."""
    assert len({check.subject for check in found}) == 1
    return {check.name: check for check in found}


def answer(tokens, finish="length", *, likely=-0.1, rival=None, gap=1.0, drafted=1):
    """Return an answer; the alternative at each position is `rival`, less likely by `gap`."""
    top = None
    if rival is not None:
        top = tuple({token: likely, rival: likely - gap, 99: -9.0} for token in tokens)
    return Observation(tuple(tokens), finish, (likely,) * len(tokens), top, drafted, 0)
