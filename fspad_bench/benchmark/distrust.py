"""What a reader must be told about a row before they trust it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fspad_bench.benchmark.guards.files import opened_files
from fspad_bench.benchmark.record import Finding
from fspad_bench.benchmark.uniform import ALPHA
from fspad_bench.benchmark.verdict import is_without_drafts

NO_DRAFTS = "it drafted nothing in the whole row, so that equal output says nothing of its drafts"


def complaints(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return guard and words of each complaint; those about files are one."""
    told = [{"guard": f.guard, "text": f.text} for f in findings if not f.files]
    files = {name for finding in findings for name in finding.files}
    return [*told, {"guard": "files", "text": opened_files(files)}] if files else told


def notes(row: dict[str, Any]) -> list[str]:
    """Return a sentence for everything that speaks against a row as it stands: what guards hold
    against it, hidden work, a decoder that drafted nothing, and an engine's claims.
    """
    texts = [finding["text"] for finding in row["findings"]]
    if row["hidden_work"]:
        texts.append(f"{row['hidden_work']}: no decode speedup is given, end to end stands")
    if is_without_drafts(row):
        texts.append(NO_DRAFTS)
    return [*texts, *_claims(row)]


def evidence(row: dict[str, Any]) -> str:
    """Return what the outputs of a row say of its distribution."""
    if row["pit_tokens"] is None:
        return "no evidence is recorded"
    if row["pit_p"] is None:
        return f"its {row['pit_tokens']} tokens are too few for evidence of their own"
    return (
        f"PIT of its own {row['pit_tokens']} tokens: p {row['pit_p']:.2g} "
        f"(bound {ALPHA:.0e}), shifts of {row['pit_shift']:.2f} would have been seen"
    )


def _claims(row: dict[str, Any]) -> list[str]:
    claims = []
    if row["claimed_tokens_per_step"] is not None:
        claims.append(f"{row['claimed_tokens_per_step']:.2f} tokens/step")
    if row["claimed_speedup"] is not None:
        claims.append(f"a decode speedup of {row['claimed_speedup']:.2f}")
    if row["claimed_acceptance"] is not None:
        claims.append(f"{row['claimed_acceptance']:.0%} of its drafts accepted")
    return [f"it claims {' and '.join(claims)}, which nothing here has measured"] if claims else []
