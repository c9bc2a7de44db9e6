"""Figures that others published, with their circumstances: apart from all that is measured here.

They are in `baselines/`, under `published`, and share no table with a measured row: targets,
machines and baselines are others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fspad_bench.decoders.about import baseline
from fspad_bench.decoders.label import Label


class Published(NamedTuple):
    """A figure in its source's words, and what it was measured on and against."""

    decoder: str
    figure: str
    target: str
    hardware: str
    baseline: str
    source: str


def published(labels: Iterable[str]) -> list[Published]:
    """Return what is published of the suite's decoders among these labels, in their order."""
    decoders = dict.fromkeys(Label.of(label).decoder for label in labels)
    return [
        Published(decoder, **{name: str(value) for name, value in entry.items()})
        for decoder in decoders
        if decoder.isidentifier()
        for entry in baseline(decoder).get("published", [])
    ]
