"""A small data set of the tiny target's own conversations."""

import pytest

from fspad_bench.distill import conversations
from fspad_bench.distill.writer import distill_own


@pytest.fixture(scope="session")
def shorten():
    """`shorten(patch)`: short questions, answers and texts, as long as the patch is in force."""
    kinds = {name: kind._replace(length=20) for name, kind in conversations.KINDS.items()}

    def shorten(patch):
        patch.setattr(conversations, "QUESTION_LENGTH", 12)
        patch.setattr(conversations, "TEXT_LENGTH", 24)
        patch.setattr(conversations, "SHORTEST_TEXT", 1)
        patch.setattr(conversations, "SHORTEST_MATERIAL", 1)
        patch.setattr(conversations, "KINDS", kinds)

    return shorten


@pytest.fixture
def short(monkeypatch, shorten):
    shorten(monkeypatch)


@pytest.fixture
def write(tiny, short):
    def write(folder, tokens=500, **changes):
        settings = {"tokens": tokens, "seed": 3, "slots": 8, "shard": 8}
        return distill_own(tiny, folder, **settings | changes)

    return write
