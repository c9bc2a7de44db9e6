"""Reports as pictures: acceptance by depth, where a step's time goes, the factors of speedups.

The same record gives the same bytes: no date, and ids from a fixed salt. Text stays text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fspad_bench.analysis.cases import Group
from fspad_bench.analysis.explain import Explanation, Report
from fspad_bench.analysis.tables import PARTS
from fspad_bench.util.paths import disk_errors, replacing

STYLE = {"svg.hashsalt": "fspad-bench", "svg.fonttype": "none", "font.size": 9}
Draw = Callable[[Any, Sequence[Explanation]], bool]


def draw(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Write the pictures of the reports' last task, or of all tasks where a decoder has all, and
    return them.

    Raises BenchError where the folder cannot be written.
    """
    pictures = []
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, report in enumerate(reports, 1):
            last = _last(report.group)
            shown = [e for e in report.explanations if e.case.task == last]
            prefix = f"{number}-" if len(reports) > 1 else ""
            title = f"{report.group.title} · {last}"
            for name, onto in PICTURES.items():
                path = folder / f"{prefix}{name}.svg"
                if _drawn(path, title, shown, onto):
                    pictures.append(path)
    return pictures


def _last(group: Group) -> str:
    """Return the last task of a decoder; all tasks together stand behind the single ones."""
    drawn = [case.task for case in group.cases if not (case.gap or case.is_vanilla)]
    return drawn[-1] if drawn else group.cases[-1].task


def _drawn(path: Path, title: str, shown: Sequence[Explanation], onto: Draw) -> bool:
    """Write one picture; False where there is nothing to draw."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        if not onto(axes, shown):
            return False
        axes.set_title(_plain(title), fontsize=8)
        axes.grid(alpha=0.3)
        with replacing(path) as part:
            figure.savefig(part, format="svg", metadata={"Date": None})
    return True


def _acceptance(axes: Any, shown: Sequence[Explanation]) -> bool:
    """Draw the share of offered drafts that were accepted, by depth."""
    drafting = [e for e in shown if any(depth.offered for depth in e.acceptance.depths)]
    for explanation in drafting:
        depths = [depth for depth in explanation.acceptance.depths if depth.offered]
        bound = "" if explanation.acceptance.is_exact else " (at least)"
        axes.plot(
            [depth.depth for depth in depths],
            [depth.rate for depth in depths],
            marker="o",
            label=_plain(explanation.case.decoder) + bound,
        )
    axes.set_xlabel("depth")
    axes.set_ylabel("accepted, of those offered")
    axes.set_ylim(0, 1)
    axes.locator_params(axis="x", integer=True)
    if drafting:
        axes.legend(fontsize=7)
    return bool(drafting)


def _steps(axes: Any, shown: Sequence[Explanation]) -> bool:
    """Draw the parts of a step, stacked, a bar a decoder."""
    timed = [(e.case.decoder, e.step) for e in shown if e.step and e.step.parts]
    names = [_plain(decoder) for decoder, _ in timed]
    ends = [0.0] * len(timed)
    for part in PARTS:
        widths = [1e3 * max(0.0, step.parts.get(part, 0.0)) for _, step in timed]
        axes.barh(names, widths, left=ends, label=part)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("a step, ms")
    axes.legend(fontsize=7)
    return bool(timed)


def _factors(axes: Any, shown: Sequence[Explanation]) -> bool:
    """Draw the factors of each speedup as bars of a logarithmic scale, which add up."""
    chains = [(e.case.decoder, e.chain) for e in shown if e.chain and not e.case.is_vanilla]
    known = {name for _, chain in chains for name in chain.factors}
    names = [name for name in ("tokens", *PARTS, "step") if name in known]
    width = 0.8 / max(1, len(chains))
    for number, (decoder, chain) in enumerate(chains):
        values = [*(chain.factors.get(name, 1.0) for name in names), chain.speedup]
        places = [place + width * number for place in range(len(values))]
        heights = [math.log2(value) for value in values]
        axes.bar(places, heights, width, label=_plain(decoder))
    middle = width * (len(chains) - 1) / 2
    axes.set_xticks([place + middle for place in range(len(names) + 1)], [*names, "speedup"])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("log2 of the factor")
    if chains:
        axes.legend(fontsize=7)
    return bool(chains)


def _plain(text: str) -> str:
    """Return a text that is drawn as it is: `$` would begin a formula."""
    return text.replace("$", r"\$")


PICTURES: dict[str, Draw] = {"acceptance": _acceptance, "steps": _steps, "factors": _factors}
