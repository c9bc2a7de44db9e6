"""A small data set of the tiny target's own conversations."""

import pytest

from fspad_bench.distill import conversations
from fspad_bench.distill.writer import distill_own


@pytest.fixture
def short(monkeypatch):
    """Short questions, answers and texts."""
    monkeypatch.setattr(conversations, "QUESTION_LENGTH", 12)
    monkeypatch.setattr(conversations, "TEXT_LENGTH", 24)
    monkeypatch.setattr(conversations, "SHORTEST_TEXT", 1)
    monkeypatch.setattr(conversations, "SHORTEST_MATERIAL", 1)
    kinds = {name: kind._replace(length=20) for name, kind in conversations.KINDS.items()}
    monkeypatch.setattr(conversations, "KINDS", kinds)


@pytest.fixture
def write(tiny, short):
    def write(folder, tokens=1500, **changes):
        settings = {"tokens": tokens, "seed": 3, "slots": 8, "shard": 24}
        return distill_own(tiny, folder, **settings | changes)

    return write
