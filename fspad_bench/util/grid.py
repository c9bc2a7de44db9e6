"""Tables of cells, as text or Markdown: the one door to the library that lays them out.

- A cell is one line, its control characters escaped.
- In Markdown a `|` in a cell is escaped, which would begin another cell, and so is the backslash
  that escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from fspad_bench.util.terminal import visible

TEXT = "simple"
MARKDOWN = "pipe"


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
