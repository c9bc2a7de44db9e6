"""Tables of cells, as text, Markdown or LaTeX: the one door to the library that lays them out.

- A cell is one line, its control characters escaped.
- In Markdown a `|` in a cell is escaped, which would begin another cell, and so is the backslash
  that escapes it.
- In LaTeX the library escapes its special characters. A line that begins with `[` or `*` gets an
  empty group in front: both would be arguments of the line break before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

from fspad_bench.util.terminal import visible

TEXT = "simple"
MARKDOWN = "pipe"
LATEX = "latex_booktabs"
ARGUMENT_OF_BREAK = re.compile(r"^( *)([\[*])", re.M)


def grid(
    body: Sequence[Sequence[object]],
    header: Sequence[str],
    *,
    is_markdown: bool = False,
    sides: Sequence[str] | None = None,
    side: str = "left",
) -> str:
    """Return a table. `sides` align its columns one by one, `side` all that have no entry there."""

    def cell(value: object) -> str:
        text = visible(str(value))
        return text.replace("\\", r"\\").replace("|", r"\|") if is_markdown else text

    return tabulate(
        [[cell(value) for value in line] for line in body],
        [cell(name) for name in header],
        tablefmt=MARKDOWN if is_markdown else TEXT,
        colalign=sides,
        stralign=side,
        disable_numparse=True,
    )


def booktabs(
    body: Sequence[Sequence[object]], header: Sequence[str], sides: Sequence[str] | None = None
) -> str:
    """Return a complete LaTeX `tabular` with the rules of the package booktabs."""
    table = tabulate(
        [[visible(str(value)) for value in line] for line in body],
        [visible(name) for name in header],
        tablefmt=LATEX,
        colalign=sides,
        disable_numparse=True,
    )
    return ARGUMENT_OF_BREAK.sub(r"\1{}\2", table)
