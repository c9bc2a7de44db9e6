"""Where and how outputs diverge from vanilla's, as text to read.

Texts are shown where a record holds them (`run --log-samples`). Without them a lossy row still
shows a counterexample, in token ids: of its outputs the one with the largest regret.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fspad_bench.benchmark.record import VANILLA, Audit, Key, Records, Sample
from fspad_bench.benchmark.stats import agreement
from fspad_bench.util.terminal import visible

# characters shown before and after the divergence
SHARED = 48
OWN = 64
# token ids, likewise
SHARED_IDS = 6
OWN_IDS = 8


@dataclass(frozen=True)
class Divergence:
    """An output that should be vanilla's, and vanilla's own."""

    key: Key
    vanilla: Sample
    decoder: Sample
    audit: Audit | None

    @property
    def has_text(self) -> bool:
        return bool(self.vanilla.text or self.decoder.text)

    @property
    def regret(self) -> float:
        return max(self.audit.decoder_regrets) if self.audit else 0.0

    @property
    def same(self) -> int:
        """The number of leading tokens that are vanilla's."""
        return agreement(self.vanilla.tokens, self.decoder.tokens)


def divergences(records: Records, lossy: Collection[str] = ()) -> Iterator[str]:
    """Yield a few lines for every generation whose text is recorded and whose tokens are not
    vanilla's, and for one of each `lossy` row without texts.
    """
    without_text: dict[str, list[Divergence]] = defaultdict(list)
    for own in _differing(records):
        if own.has_text:
            yield _texts(own)
        elif own.decoder.key in lossy:
            without_text[own.decoder.key].append(own)
    for group in without_text.values():
        worst = max(group, key=lambda own: own.regret)
        yield _token_ids(worst, len(group))


def _differing(records: Records) -> Iterator[Divergence]:
    keys = records.keys
    partners = {
        (sample.place, keys[sample.key].setting): sample
        for sample in records.samples
        if keys[sample.key].decoder == VANILLA and not sample.error
    }
    audits = {(audit.key, audit.place): audit for audit in records.audits}
    for sample in records.samples:
        key = keys[sample.key]
        vanilla = partners.get((sample.place, key.setting))
        if vanilla is None or not key.identical or sample.error:
            continue
        if sample.tokens != vanilla.tokens:
            yield Divergence(key, vanilla, sample, audits.get((sample.key, sample.place)))


def _texts(own: Divergence) -> str:
    vanilla = own.vanilla.text
    decoder = own.decoder.text
    shared = agreement(vanilla, decoder)
    start = max(0, shared - SHARED)
    before = ("..." if start else "") + vanilla[start:shared]
    return _shown(own, before, [text[shared : shared + OWN] for text in (vanilla, decoder)])


def _token_ids(own: Divergence, count: int) -> str:
    same = own.same
    start = max(0, same - SHARED_IDS)
    before = ("... " if start else "") + _joined(own.vanilla.tokens[start:same])
    both = (own.vanilla.tokens, own.decoder.tokens)
    shown = _shown(own, before, [_joined(tokens[same : same + OWN_IDS]) for tokens in both])
    which = "the one output that differs" if count == 1 else f"the worst of {count} that differ"
    return f"{shown}\n  ({which}, as token ids; --log-samples keeps texts)"


def _joined(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def _shown(own: Divergence, before: str, after: list[str]) -> str:
    """Return where two outputs diverge, what both begin with, and how each goes on."""
    decoder = own.key.decoder
    where = f"{decoder}, {own.key.task} {own.decoder.sample}, turn {own.decoder.turn + 1}"
    at = f"diverges after {own.same} of {len(own.vanilla.tokens)} tokens"
    width = max(len(VANILLA), len(decoder))
    lines = [
        f"{where}, T={own.key.temperature:g}: {at}{_regrets(own.audit)}",
        f"  {'both':{width}}  {before}",
    ]
    for name, text in zip((VANILLA, decoder), after, strict=True):
        lines.append(f"  {name:{width}}  {text or '(ends)'}")
    return "\n".join(map(visible, lines))


def _regrets(audit: Audit | None) -> str:
    """Return both regrets at the divergence, unless one output had ended there."""
    if audit is None:
        return ""
    at = audit.divergence
    if at >= min(len(audit.decoder_regrets), len(audit.vanilla_regrets)):
        return ""
    regrets = f"{audit.decoder_regrets[at]:.2g}, vanilla's {audit.vanilla_regrets[at]:.2g}"
    return f"; regret there {regrets}, its margin error {audit.margin_error:.2g}"
