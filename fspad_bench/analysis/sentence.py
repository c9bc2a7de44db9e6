"""One plain sentence on why a decoder is faster or slower than another."""

from __future__ import annotations

from fspad_bench.analysis.factors import Chain

LEAST = 0.002  # a change that is not worth a word
SUBJECTS = {
    "draft": "its draft makes",
    "forward": "its forwards make",
    "verification": "its verification makes",
    "rest": "the rest of its work makes",
    "step": "its work makes",
}


def sentence(decoder: str, reference: str, chain: Chain) -> str:
    """Return what each factor does, largest first, and what they come to."""
    clauses = [f"{decoder} commits {_tokens(chain.factors['tokens'])} a step than {reference}"]
    if abs(chain.factors["tokens"] - 1) < LEAST:
        clauses = [f"{decoder} commits as many tokens a step as {reference}"]
    parts = [name for name in SUBJECTS if name in chain.factors]
    for name in sorted(parts, key=lambda part: -abs(chain.factors[part] - 1)):
        longer = 1 / chain.factors[name] - 1
        if abs(longer) >= LEAST:
            clauses.append(f"{SUBJECTS[name]} a step {_length(longer)}")
    return "; ".join([*clauses, f"so it is {_speed(chain.speedup)}"]) + "."


def _tokens(factor: float) -> str:
    return f"{_percent(factor - 1)} {'more' if factor > 1 else 'fewer'} tokens"


def _length(longer: float) -> str:
    if longer >= 1:
        return f"{1 + longer:.1f} times as long"
    return f"{_percent(longer)} {'longer' if longer > 0 else 'shorter'}"


def _speed(ratio: float) -> str:
    if abs(ratio - 1) < LEAST:
        return "as fast"
    return f"{_percent(ratio - 1)} {'faster' if ratio > 1 else 'slower'}"


def _percent(change: float) -> str:
    """Return the size of a change; small ones are told so exactly that they add up."""
    return f"{abs(change):.0%}" if abs(change) >= 0.1 else f"{abs(change):.1%}"
