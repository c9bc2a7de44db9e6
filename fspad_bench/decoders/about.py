"""What the suite's own decoders are, in a sentence, from their files in `baselines/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fspad_bench.util.paths import data_folder
from fspad_bench.util.text import yaml_value

NEEDS = ("nothing", "a trained head", "a draft model", "a table")


@dataclass(frozen=True)
class About:
    """A decoder in a line: how it drafts (`summary`), and what it `needs` beside the target, one of
    `NEEDS`.
    """

    summary: str
    needs: str

    def __str__(self) -> str:
        return self.summary if self.needs == "nothing" else f"{self.summary} ({self.needs})"


def baseline(decoder: str) -> dict[str, Any]:
    """Return a decoder's file in `baselines/`; empty where it has none."""
    path = data_folder("baselines") / f"{decoder}.yaml"
    return yaml_value(path.read_text(encoding="utf-8")) if path.exists() else {}


def about(decoder: str) -> About | None:
    """Return what a decoder of the suite is; None for those of others."""
    content = baseline(decoder)
    return About(content["summary"], content["needs"]) if content else None
