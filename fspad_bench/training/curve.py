"""The learning curve of a training run: `curve.csv`, a line per checkpoint, and its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from fspad_bench.util.paths import replacing, write_atomically

Row = dict[str, float | int | None]


def append_row(table: Path, row: Row) -> None:
    """Add a line to the curve, after the lines of earlier steps, and draw the picture anew."""
    figures = {
        name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()
    }
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerows(_earlier_rows(table, row, int(row["step"] or 0)))
    writer.writerow(figures)
    write_atomically(table, text.getvalue())
    draw(table, table.with_suffix(".png"))


def _earlier_rows(table: Path, columns: Iterable[str], step: int) -> list[dict[str, str]]:
    """Read the lines before `step`; those torn or of other columns are dropped."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    complete = [row for row in rows if list(row) == list(columns) and None not in row.values()]
    return [row for row in complete if row["step"].isdecimal() and int(row["step"]) < step]


def draw(table: Path, picture: Path) -> None:
    """Plot the curve against the tokens seen: losses, agreement, tokens per step."""
    from matplotlib.figure import Figure

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = {
        "loss": ("logit_loss", "train_logit_loss", "feature_loss", "train_feature_loss"),
        "top-1 agreement": ("agreement", "train_agreement", "vocabulary_ceiling"),
        "tokens/step, greedy": ("tokens_per_step",),
    }
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            if name not in rows[0]:
                continue
            style = "--" if name.startswith("train_") else "-"
            # tokens per step are empty where no prompt fits the context
            values = [float(row[name] or "nan") for row in rows]
            axes.plot(tokens, values, style, marker=".", label=name.replace("_", " "))
        axes.set_title(title)
        axes.set_xlabel("million tokens seen")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with replacing(picture) as part:
        figure.savefig(part, dpi=110, format="png")
