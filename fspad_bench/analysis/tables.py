"""The tables of a report: a name, the columns after task and decoder, a line a case.

- A case without any figure of a table has no line in it; a table without lines is left out.
- Depths, ranks and counts end at `MOST_COLUMNS`; JSON has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fspad_bench.analysis.explain import Explanation

MOST_COLUMNS = 10
ORDINALS = ("1st", "2nd", "3rd")
PARTS = ("draft", "forward", "verification", "rest")
Explanations = Sequence[Explanation]


class Table(NamedTuple):
    name: str
    header: list[str]
    body: list[list[str]]


def tables(explanations: Explanations) -> list[Table]:
    """Return the tables of a group that have lines; vanilla has one among the steps alone."""
    own = [explanation for explanation in explanations if not explanation.case.is_vanilla]
    every = [
        _factors(own),
        _steps(explanations),
        _counted("accepted, of the drafts offered at a depth", own, _by_depth, str),
        _counted("accepted tokens by rank among their siblings", own, _by_rank, _ordinal),
        _counted("steps by committed tokens", own, _by_committed, str),
        _positions(own),
    ]
    return [table for table in every if table.body]


def _factors(explanations: Explanations) -> Table:
    chains = [(explanation, e) for explanation in explanations if (e := explanation.chain)]
    known = {name for _, product in chains for name in product.factors}
    names = [name for name in (*PARTS, "step") if name in known]
    header = ["tokens/step", *(f"× {name}" for name in names)]
    body = []
    for explanation, product in chains:
        factors = [_number(product.factors.get(name)) for name in ("tokens", *names)]
        speeds = (
            product.speedup,
            explanation.modelled,
            product.perfect_draft,
            product.free_draft,
        )
        body.append([*_case(explanation), *factors, *map(_number, speeds)])
    return Table(
        "factors of the speedup",
        [*header, "= speedup", "modelled", "perfect draft", "free draft"],
        body,
    )


def _steps(explanations: Explanations) -> Table:
    known = {name for e in explanations if e.step for name in e.step.parts}
    names = [name for name in PARTS if name in known]
    body = []
    for explanation in explanations:
        step = explanation.step
        if step is None:
            continue
        parts = [
            f"{1e3 * step.parts[name]:.2f} ({step.share(name):.0%})" if name in step.parts else "-"
            for name in names
        ]
        body.append([*_case(explanation), f"{step.nodes:.1f}", *parts, f"{1e3 * step.seconds:.2f}"])
    return Table("where a step's time goes, in ms", ["nodes", *names, "step"], body)


def _counted(
    name: str,
    explanations: Explanations,
    cells: Callable[[Explanation], list[str]],
    heading: Callable[[int], str],
) -> Table:
    """Return a table whose columns are 1, 2, 3, ... as far as any case goes."""
    lines = [(explanation, cells(explanation)) for explanation in explanations]
    columns = max((len(line) for _, line in lines), default=0)
    body = [
        [*_case(explanation), *line, *[""] * (columns - len(line))]
        for explanation, line in lines
        if line
    ]
    return Table(name, [heading(number) for number in range(1, columns + 1)], body)


def _positions(explanations: Explanations) -> Table:
    bins = {(p.first, p.last) for e in explanations for p in e.acceptance.positions}
    columns = sorted(bins)
    body = []
    for explanation in explanations:
        own = {(p.first, p.last): p.tokens_per_step for p in explanation.acceptance.positions}
        if own:
            cells = [f"{own[column]:.2f}" if column in own else "" for column in columns]
            body.append([*_case(explanation), *cells])
    header = [f"{first}-{last}" for first, last in columns]
    return Table("tokens a step by the place in the output", header, body)


def _case(explanation: Explanation) -> list[str]:
    return [explanation.case.task, explanation.case.decoder]


def _by_depth(explanation: Explanation) -> list[str]:
    mark = "" if explanation.acceptance.is_exact else "≥ "
    depths = explanation.acceptance.depths[:MOST_COLUMNS]
    return [f"{mark}{d.rate:.0%} of {d.offered}" if d.offered else "-" for d in depths]


def _by_rank(explanation: Explanation) -> list[str]:
    return _shares(explanation.acceptance.ranks or [])


def _by_committed(explanation: Explanation) -> list[str]:
    return _shares(explanation.acceptance.committed)


def _shares(counts: Sequence[int]) -> list[str]:
    total = sum(counts)
    return [f"{count / total:.1%}" for count in counts[:MOST_COLUMNS]]


def _ordinal(number: int) -> str:
    return ORDINALS[number - 1] if number <= len(ORDINALS) else f"{number}th"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
