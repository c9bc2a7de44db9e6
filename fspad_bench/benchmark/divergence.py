"""Where and how outputs diverge from vanilla's, as text to read.

It needs the texts, which a record holds after `run --log-samples`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fspad_bench.benchmark.record import VANILLA, Audit, Key, Records, Sample
from fspad_bench.benchmark.stats import agreement
from fspad_bench.util.terminal import visible

# characters shown before and after the divergence
SHARED = 48
OWN = 64


def divergences(records: Records) -> Iterator[str]:
    """Yield a few lines for every generation whose text is recorded and whose tokens are not
    vanilla's.
    """
    keys = records.keys
    partners = {
        (sample.place, keys[sample.key].setting): sample
        for sample in records.samples
        if keys[sample.key].decoder == VANILLA
    }
    audits = {(audit.key, audit.place): audit for audit in records.audits}
    for sample in records.samples:
        key = keys[sample.key]
        vanilla = partners.get((sample.place, key.setting))
        if vanilla is None or not key.identical or sample.tokens == vanilla.tokens:
            continue
        if sample.text or vanilla.text:
            yield _shown(key, vanilla, sample, audits.get((sample.key, sample.place)))


def _shown(key: Key, vanilla: Sample, decoder: Sample, audit: Audit | None) -> str:
    where = f"{key.decoder}, {key.task} {decoder.sample}, turn {decoder.turn + 1}"
    same = agreement(vanilla.tokens, decoder.tokens)
    after = f"diverges after {same} of {len(vanilla.tokens)} tokens"
    shared = agreement(vanilla.text, decoder.text)
    start = max(0, shared - SHARED)
    before = ("..." if start else "") + vanilla.text[start:shared]
    width = max(len(VANILLA), len(key.decoder))
    lines = [
        f"{where}, T={key.temperature:g}: {after}{_regrets(audit)}",
        f"  {'both':{width}}  {before}",
    ]
    for name, text in ((VANILLA, vanilla.text), (key.decoder, decoder.text)):
        own = text[shared : shared + OWN]
        lines.append(f"  {name:{width}}  {own or '(ends)'}")
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
