"""Where and how two texts part: what a reader wants to see of an output that is not vanilla's.

It needs the texts, which a record holds after `run --log-samples`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fspad_bench.benchmark.record import Audit, Records, Sample
from fspad_bench.benchmark.stats import agreement

VANILLA = "vanilla"
# characters shown before and after the parting
SHARED = 48
OWN = 64


def partings(records: Records) -> Iterator[str]:
    """A few lines for every generation whose text is recorded and whose tokens are not vanilla's."""
    vanilla = {
        (s.round, s.sample, s.turn, records.keys[s.key].setting): s
        for s in records.samples
        if records.keys[s.key].decoder == VANILLA
    }
    audits = {(a.key, a.round, a.sample, a.turn): a for a in records.audits}
    for made in records.samples:
        key = records.keys[made.key]
        theirs = vanilla.get((made.round, made.sample, made.turn, key.setting))
        if key.identical and theirs and (made.text or theirs.text) and made.tokens != theirs.tokens:
            about = f"{key.decoder}, {key.task} {made.sample}, turn {made.turn + 1}, T={key.temperature:g}"
            yield _shown(
                about,
                theirs,
                made,
                audits.get((made.key, made.round, made.sample, made.turn)),
                key.decoder,
            )


def _shown(about: str, theirs: Sample, made: Sample, audit: Audit | None, decoder: str) -> str:
    same = agreement(theirs.tokens, made.tokens)
    shared = agreement(theirs.text, made.text)
    start = max(0, shared - SHARED)
    width = max(len(VANILLA), len(decoder))
    lines = [f"{about}: parts after {same} of {len(theirs.tokens)} tokens{_regret(audit)}"]
    lines += [f"  {'both':{width}}  {'...' if start else ''}{_line(theirs.text[start:shared])}"]
    for name, text in ((VANILLA, theirs.text), (decoder, made.text)):
        lines.append(f"  {name:{width}}  {_line(text[shared : shared + OWN]) or '(ends)'}")
    return "\n".join(lines)


def _regret(audit: Audit | None) -> str:
    if audit is None or audit.divergence >= min(
        len(audit.decoder_regrets), len(audit.vanilla_regrets)
    ):
        return ""
    ours = audit.decoder_regrets[audit.divergence]
    theirs = audit.vanilla_regrets[audit.divergence]
    return f"; regret there {ours:.2g}, vanilla's {theirs:.2g}, its margin error {audit.margin_error:.2g}"


def _line(text: str) -> str:
    return text.replace("\n", "\\n")
