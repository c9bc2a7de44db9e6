"""Whether a served engine answers a prompt alone as it does in company, asked from outside.

- Greedy prompts are asked one at a time, then again, then several at once, and in any other way
  that the caller names: another draft depth, say.
- Compared are tokens (the text, where a server tells no tokens) and the log-probabilities of those
  that both answers share, where it tells them.
- Asked again alone, an engine that differs does not repeat itself; the other lines say little then.
- How a server batches what it is sent at once is its own affair: a line shows a difference, or none
  that these prompts brought about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fspad_bench.benchmark.stats import agreement
from fspad_bench.serving.engine import Ask, Engine, Reply
from fspad_bench.util.grid import grid

CONCURRENCIES = (2, 4, 8, 16)
MAX_TOKENS = 64
HEAD = ("asked", "prompts", "other answers", "first at token", "log-probability gap", "drafted")


@dataclass(frozen=True)
class Served:
    """A way of asking, and what it changed.

    `different`: prompts with another answer. `first`: the earliest token at which one differs, None
    where the server tells no tokens or none differs. `gap`: the largest difference of a
    log-probability, None where there are none. `drafted`: draft tokens, None where not told.
    """

    way: str
    prompts: int
    different: int
    first: int | None
    gap: float | None
    drafted: int | None

    @property
    def same(self) -> bool:
        return not self.different and not self.gap


def ask_in_company(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    *,
    concurrencies: Sequence[int] = CONCURRENCIES,
    others: Mapping[str, Mapping[str, object]] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[Served]:
    """Ask greedy prompts alone and in other ways.

    `others`: by its name, what each further way adds to a request, asked one at a time.
    """
    asks = [Ask(prompt, max_tokens, logprobs=1) for prompt in prompts]
    alone = engine.ask_all(asks, 1)
    findings = [_compared("alone, again", alone, engine.ask_all(asks, 1))]
    for count in concurrencies:
        crowd = [asks[i % len(asks)] for i in range(max(count, len(asks)))]
        replies = engine.ask_all(crowd, count)
        expected = [alone[i % len(asks)] for i in range(len(crowd))]
        findings.append(_compared(f"{count} at once", expected, replies))
    for name, extra in (others or {}).items():
        other = [replace(ask, extra=extra) for ask in asks]
        findings.append(_compared(name, alone, engine.ask_all(other, 1)))
    return findings


def _compared(way: str, alone: Sequence[Reply], replies: Sequence[Reply]) -> Served:
    pairs = list(zip(alone, replies, strict=True))
    different = [pair for pair in pairs if _answer(pair[0]) != _answer(pair[1])]
    places = [agreement(a.tokens, b.tokens) for a, b in different if _knows_tokens(a, b)]
    gaps = [gap for pair in pairs if (gap := _gap(*pair)) is not None]
    drafted = [reply.drafted for reply in replies if reply.drafted is not None]
    return Served(
        way,
        len(pairs),
        len(different),
        min(places, default=None),
        max(gaps, default=None),
        sum(drafted) if drafted else None,
    )


def _knows_tokens(*replies: Reply) -> bool:
    return all(reply.tokens_known for reply in replies)


def _answer(reply: Reply) -> tuple[object, ...]:
    return (reply.tokens if reply.tokens_known else reply.text, reply.finish)


def _gap(alone: Reply, reply: Reply) -> float | None:
    """Return the largest difference of log-probabilities before the answers part."""
    if alone.chosen is None or reply.chosen is None or not _knows_tokens(alone, reply):
        return None
    shared = agreement(alone.tokens, reply.tokens)
    pairs = zip(alone.chosen[:shared], reply.chosen[:shared], strict=True)
    return max((abs(ours - other) for ours, other in pairs), default=0.0)


def kept(findings: Sequence[Served]) -> bool:
    """Return whether every answer was the same in every company."""
    return all(finding.same for finding in findings)


def render(findings: Sequence[Served]) -> str:
    """Return a line for each way of asking."""
    lines = [
        [
            finding.way,
            finding.prompts,
            finding.different,
            "" if finding.first is None else finding.first,
            "" if finding.gap is None else f"{finding.gap:.2g}",
            "" if finding.drafted is None else finding.drafted,
        ]
        for finding in findings
    ]
    return grid(lines, HEAD)
