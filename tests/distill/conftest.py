"""A small data set of the tiny target's own conversations."""

import pytest

from fspad_bench.distill import conversations as talk
from fspad_bench.distill.writer import distill_free


@pytest.fixture
def short(monkeypatch):
    """Short questions and answers, and material that is short too."""
    monkeypatch.setattr(talk, "QUESTION_LENGTH", 12)
    monkeypatch.setattr(talk, "TEXT_LENGTH", 24)
    monkeypatch.setattr(talk, "SHORTEST_TEXT", 1)
    monkeypatch.setattr(talk, "SHORTEST_MATERIAL", 1)
    kinds = {name: kind._replace(length=20) for name, kind in talk.KINDS.items()}
    monkeypatch.setattr(talk, "KINDS", kinds)


@pytest.fixture
def write(tiny, short):
    def write(folder, tokens=1500, **changes):
        return distill_free(
            tiny, folder, **{"tokens": tokens, "seed": 3, "rows": 8, "shard": 24} | changes
        )

    return write
