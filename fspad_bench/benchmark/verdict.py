"""The verdict of a row: is this decoder's output the target's?

`exact`: no output differs from vanilla's. `tie`: some do, and rounding at near ties explains every token of them, by
two conditions that hold together (below). `law`: the decoder's rule, one of ours, keeps the law and does not promise
identity; `certify` holds it to that. `unverified`: outputs differ and nothing here could tell why. `lossy`: the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_low

from fspad_bench.benchmark.record import Audit
from fspad_bench.benchmark.stats import sign_flip_p

FLOAT32_BOUND = 4e-4
FLOAT32_TIES = 5000
ENOUGH_PROMPTS = 12
SIGNIFICANCE = 1e-3


def verdict(
    divergences: int, tokens: int, audits: Sequence[Audit], pooled: Sequence[Audit], dtype: str
) -> str:
    """A row's verdict from its audits; `pooled` are those of every row of the same decoder and dtype.

    A regret may be twice what rounding did to vanilla's own leads on that prompt, or on the usual one where that was
    more: of a short answer few leads are known.
    """
    if not divergences:
        return "exact"
    if len(audits) < divergences:
        return "unverified"
    if not all(
        map(math.isfinite, (x for a in audits for x in (a.margin_error, *a.decoder_regrets)))
    ):
        return "unverified"  # a target that overflows explains nothing
    if dtype == "float32" and divergences > max(1, tokens // FLOAT32_TIES):
        return "lossy"
    usual = median_low(audit.margin_error for audit in pooled if math.isfinite(audit.margin_error))
    most = FLOAT32_BOUND if dtype == "float32" else math.inf
    if any(
        max(audit.decoder_regrets) > min(most, 2 * max(usual, audit.margin_error))
        for audit in audits
    ):
        return "lossy"
    return "lossy" if worse_than_vanilla(pooled) else "tie"


def differing_prompts(audits: Sequence[Audit]) -> int:
    """How many prompts speak in the second condition, which is silent below `ENOUGH_PROMPTS`."""
    return len({(audit.key, audit.sample) for audit in audits})


def worse_than_vanilla(audits: Sequence[Audit]) -> bool:
    """Whether the decoder's tokens regret more than vanilla's own: what a rule that takes any near-top token shows."""
    prompts: dict[tuple[str, str], list[float]] = {}
    for audit in audits:
        means = [sum(r) / len(r) for r in (audit.decoder_regrets, audit.vanilla_regrets)]
        prompts.setdefault((audit.key, audit.sample), []).append(means[0] - means[1])
    differences = [sum(found) / len(found) for found in prompts.values()]
    return len(differences) >= ENOUGH_PROMPTS and sign_flip_p(differences) < SIGNIFICANCE
