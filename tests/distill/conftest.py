"""A small data set of the tiny target's own conversations."""

import pytest

from fspad_bench.distill.writer import distill_own


@pytest.fixture
def short(monkeypatch, shorten):
    shorten(monkeypatch)


@pytest.fixture
def write(tiny, short):
    def write(folder, tokens=300, **changes):
        settings = {"tokens": tokens, "seed": 3, "slots": 8, "shard": 8}
        return distill_own(tiny, folder, **settings | changes)

    return write
