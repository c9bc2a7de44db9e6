"""What is kept of a reply: its tokens and what the checks need of its log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fspad_bench.serving.engine import Reply

DIGITS = 6  # of a log-probability in a report
END = -1  # stands for what ended an answer, which is no token's id
CUT = -2  # for what would have followed where the limit cut it


class Observation(NamedTuple):
    """A reply as the report file holds it.

    - `tokens` are the characters of a server that gives text alone: `is_text`, or else None.
    - `chosen` are log-probabilities of the tokens; `top` the alternatives by position. Sampled
      replies keep `u` in place of `top` (`pit`), a tenth of its size.
    - `drafted` is None where the server does not say.
    """

    tokens: tuple[int, ...]
    finish: str
    chosen: tuple[float, ...] | None = None
    top: tuple[dict[int, float], ...] | None = None
    drafted: int | None = None
    accepted: int | None = None
    u: tuple[float, ...] | None = None
    is_text: bool | None = None

    @classmethod
    def of(cls, reply: Reply) -> Observation:
        known = reply.tokens_known
        return cls(
            tokens=tuple(reply.tokens) if known else tuple(map(ord, reply.text)),
            finish=reply.finish,
            chosen=_rounded(reply.chosen) if known and reply.chosen is not None else None,
            top=tuple(map(_rounded_row, reply.top)) if known and reply.top is not None else None,
            drafted=reply.drafted,
            accepted=reply.accepted,
            is_text=None if known else True,
        )

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Observation:
        """Return an answer from its JSON."""
        chosen = line.get("chosen")
        top = line.get("top")
        u = line.get("u")
        return cls(
            tokens=tuple(line["tokens"]),
            finish=line["finish"],
            chosen=None if chosen is None else tuple(chosen),
            top=None
            if top is None
            else tuple({int(k): p for k, p in place.items()} for place in top),
            drafted=line.get("drafted"),
            accepted=line.get("accepted"),
            u=None if u is None else tuple(u),
            is_text=line.get("is_text"),
        )

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}

    @property
    def end(self) -> int:
        """The id that stands for an end, which is no token's."""
        return END if self.finish != "length" else CUT

    def choice(self, position: int) -> int:
        """Return the token at a position, or what stands for the end there."""
        return self.tokens[position] if position < len(self.tokens) else self.end

    def alternatives(self, position: int) -> dict[int, float]:
        """Return the log-probabilities known at a position, the chosen token's among them."""
        known = dict(self.top[position]) if self.top and position < len(self.top) else {}
        if self.chosen and position < len(self.chosen):
            known.setdefault(self.tokens[position], self.chosen[position])
        return known


def _rounded(logs: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(x, DIGITS) for x in logs)


def _rounded_row(row: Mapping[int, float]) -> dict[int, float]:
    return {token: round(x, DIGITS) for token, x in row.items()}
