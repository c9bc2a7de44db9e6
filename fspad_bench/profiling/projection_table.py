"""Tables of projections, as text, Markdown or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fspad_bench.profiling.golden import Curve
from fspad_bench.profiling.projection import Projection
from fspad_bench.util.grid import grid

HEADER = ["decoder", "task", "T", "tokens/step", "recorded", "projected"]
ERROR = ["measured", "error"]
NOTES = (
    "recorded: the speedup over vanilla in the record",
    "projected: of the same steps, each charged at the other costs",
)
ERROR_NOTE = "error: projected over the speedup measured at those costs"


def projection_table(projections: Sequence[Projection], style: str) -> str:
    """Return the projections in a style: `text`, `markdown` or `json`."""
    if style == "json":
        return json.dumps({"projections": [_facts(p) for p in projections]}, indent=2)
    compared = any(p.measured is not None for p in projections)
    body = []
    for p in projections:
        line = [p.shown, p.place.task, f"{p.place.temperature:g}", _figure(p.tokens_per_step)]
        line += [_figure(p.recorded), _figure(p.projected)]
        if compared:
            line += [_figure(p.measured), "-" if p.error is None else f"{p.error:+.1%}"]
        body.append(line)
    table = grid(body, HEADER + ERROR * compared, is_markdown=style == "markdown")
    notes = [*NOTES, ERROR_NOTE] if compared else NOTES
    return "\n\n".join([table, "\n".join(notes), *_largest(projections)])


def _largest(projections: Sequence[Projection]) -> list[str]:
    """Return the line that states the largest error, where one is known."""
    known = [p for p in projections if p.error is not None]
    if not known:
        return []
    worst = max(known, key=lambda p: abs(p.error or 0.0))
    of = f"{worst.shown} on {worst.place.task}, T={worst.place.temperature:g}"
    return [f"largest error of {len(known)} rows: {worst.error:+.1%} ({of})"]


def _facts(projection: Projection) -> dict[str, Any]:
    facts = {
        **projection.place._asdict(),
        "apart": projection.apart,
        "tokens_per_step": projection.tokens_per_step,
        "recorded": projection.recorded,
        "projected": projection.projected,
        "measured": projection.measured,
        "error": projection.error,
    }
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in facts.items()}


def golden_table(speedups: Mapping[tuple[Curve, int], float], style: str) -> str:
    """Return projections of golden acceptance lengths, by curve and number of drafted tokens."""
    facts = [
        {
            "model": curve.model,
            "mode": curve.mode,
            "drafts": drafts,
            "tokens_per_step": curve.lengths[drafts],
            "projected": speedup,
        }
        for (curve, drafts), speedup in speedups.items()
    ]
    if style == "json":
        return json.dumps({"projections": facts}, indent=2)
    body = [
        [f["model"], f["mode"], f["drafts"], _figure(f["tokens_per_step"]), _figure(f["projected"])]
        for f in facts
    ]
    header = ["model", "mode", "drafts", "tokens/step", "projected"]
    return grid(body, header, is_markdown=style == "markdown")


def _figure(value: Any) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
