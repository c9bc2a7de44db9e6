"""The verdict of a row: is this decoder's output the target's?

- `exact`: no output differs from vanilla's; tables add `(no drafts)` where nothing was drafted.
- `tie`: some outputs differ, and rounding at near ties explains every token of them. Two
  conditions must hold together: no regret is above its threshold, and regrets are not larger than
  vanilla's own on the whole.
- `law`: the decoder's rule is one of ours that keeps the target's distribution without promising
  identity; `certify` tests the rule.
- `unverified`: nothing here can tell, since differing outputs cannot be judged, vanilla is missing,
  or the target was changed.
- `lossy`: everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median_low
from typing import Any

from fspad_bench.benchmark.record import VANILLA, Audit
from fspad_bench.benchmark.stats import sign_flip_p
from fspad_bench.decoders.label import Label

FLOAT32_BOUND = 4e-4  # logits; no regret in float32 may be larger
FLOAT32_TIES = 5000  # tokens; float32 may diverge once in so many
ENOUGH_PROMPTS = 12  # for the second condition
SIGNIFICANCE = 1e-3


def verdict(
    divergences: int, tokens: int, audits: Sequence[Audit], pooled: Sequence[Audit], dtype: str
) -> str:
    """Return a row's verdict from its audits.

    `pooled` holds the audits of every row that rounds as this one does.
    """
    if not divergences:
        return "exact"
    known = [audit for audit in audits if _is_finite(audit)]
    errors = [audit.margin_error for audit in pooled if math.isfinite(audit.margin_error)]
    usual = median_low(errors or [0.0])
    if any(max(audit.decoder_regrets) > threshold(audit, usual, dtype) for audit in known):
        return "lossy"
    if len(known) < divergences:
        return "unverified"  # a target that overflows explains nothing
    if dtype == "float32" and divergences > max(1, tokens // FLOAT32_TIES):
        return "lossy"
    return "lossy" if worse_than_vanilla(pooled) else "tie"


def worst(verdicts: Iterable[str]) -> str:
    """Return the gravest of the verdicts of a row's repeats."""
    return max(verdicts, key=("exact", "tie", "unverified", "lossy").index)


def shown_verdict(row: Mapping[str, Any]) -> str:
    """Return a row's verdict as tables show it: `exact (no drafts)` where nothing was drafted."""
    is_vacuous = row["verdict"] == "exact" and is_without_drafts(row)
    return "exact (no drafts)" if is_vacuous else str(row["verdict"])


def is_without_drafts(row: Mapping[str, Any]) -> bool:
    """Whether a decoder is known to have drafted nothing in a whole row: equal output says nothing
    of its drafts. Vanilla and its copies draft nothing by definition.
    """
    return row["drafted"] == 0 and Label.of(row["decoder"]).decoder != VANILLA


def threshold(audit: Audit, usual: float, dtype: str) -> float:
    """Return 2 x max(margin error on this prompt, median margin error), bounded in float32.

    The median serves prompts with a short answer, of which few leads are known.
    """
    bound = FLOAT32_BOUND if dtype == "float32" else math.inf
    return min(bound, 2 * max(usual, audit.margin_error))


def differing_prompts(audits: Sequence[Audit]) -> int:
    """Return the number of prompts in the second condition, which needs `ENOUGH_PROMPTS`."""
    return len({(audit.key, audit.sample) for audit in audits})


def worse_than_vanilla(audits: Sequence[Audit]) -> bool:
    """Return whether the decoder's tokens regret more than vanilla's own, on the mean of prompts.

    This exposes a rule that takes any token near the top. Audits of a target that overflows tell
    nothing.
    """
    prompts: dict[tuple[str, str], list[float]] = {}
    for audit in audits:
        excess = fmean(audit.decoder_regrets) - fmean(audit.vanilla_regrets)
        if not math.isfinite(excess):
            continue
        prompts.setdefault((audit.key, audit.sample), []).append(excess)
    differences = [fmean(turns) for turns in prompts.values()]
    return len(differences) >= ENOUGH_PROMPTS and sign_flip_p(differences) < SIGNIFICANCE


def _is_finite(audit: Audit) -> bool:
    return all(map(math.isfinite, (audit.margin_error, *audit.decoder_regrets)))
