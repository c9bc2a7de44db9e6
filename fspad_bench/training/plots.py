"""Pictures of what tables say."""

from __future__ import annotations

import csv
from pathlib import Path


def learning_curve(table: Path, picture: Path) -> None:
    """The columns of a training's curve.csv against the tokens seen: losses, agreement, tokens a step."""
    from matplotlib.figure import Figure

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = {
        "loss": ("logit_loss", "train_logit_loss", "feature_loss", "train_feature_loss"),
        "top-1 agreement": ("agreement", "train_agreement", "vocabulary_ceiling"),
        "tokens a step, greedy": ("tokens_per_step",),
    }
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            if name in rows[0]:
                style = "--" if name.startswith("train_") else "-"
                values = [
                    float(row[name] or "nan") for row in rows
                ]  # tokens a step: none where no probe fits
                axes.plot(tokens, values, style, marker=".", label=name.replace("_", " "))
        axes.set_title(title)
        axes.set_xlabel("million tokens seen")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(picture, dpi=110)
