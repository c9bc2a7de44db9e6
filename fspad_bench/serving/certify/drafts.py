"""What was drafted: a check says nothing of speculation where its own answers hold none.

- The plain side must draft nothing, or both sides may be wrong alike.
- Drafts are counted in the answers that a check compares, and in no others: an engine may
  speculate at one temperature and not at another.
"""

from __future__ import annotations

from collections.abc import Sequence

from fspad_bench.lossless.checks import INCONCLUSIVE, PASS, Check
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.util.errors import BenchError

NAME = "drafts"
LEAST = 0.05  # drafted tokens, as a share of the answers' tokens


def check_drafts(subject: str, served: Sequence[Observation]) -> Check:
    """Return the check that enough was drafted in these answers."""
    reason = lacking(served)
    if reason:
        return Check(NAME, subject, INCONCLUSIVE, reason)
    drafted = _drafted(served)
    accepted = sum(answer.accepted or 0 for answer in served)
    return Check(
        NAME, subject, PASS, f"{drafted} tokens drafted, {accepted / drafted:.0%} accepted"
    )


def with_drafts(check: Check, served: Sequence[Observation]) -> Check:
    """Return a check of these answers, inconclusive where it passes and too little was drafted."""
    reason = lacking(served)
    if check.verdict != PASS or not reason:
        return check
    return check._replace(verdict=INCONCLUSIVE, figure=f"{reason}; {check.figure}")


def lacking(served: Sequence[Observation]) -> str:
    """Return why these answers do not test speculation, nothing where they do."""
    if all(answer.drafted is None for answer in served):
        return "the server does not say what it drafted"
    drafted = _drafted(served)
    tokens = sum(len(answer.tokens) for answer in served)
    if drafted <= 0:
        return "nothing was drafted"
    if drafted < LEAST * tokens:
        return f"too little was drafted: {drafted} tokens for {tokens} of answers"
    return ""


def refuse_plain_drafts(plain: Sequence[Observation]) -> None:
    """Raise BenchError where the plain side speculated."""
    drafted = _drafted(plain)
    if drafted > 0:
        raise BenchError(
            f"the plain side speculates: it drafted {drafted} tokens in {len(plain)} answers",
            "switch speculation off there (see how the server spells what --plain-extra gives), "
            "and let no other client use the server",
        )


def _drafted(answers: Sequence[Observation]) -> int:
    return sum(answer.drafted or 0 for answer in answers)
