"""Fixtures of a short run on five questions."""

import json
import os
import secrets
from itertools import count
from types import SimpleNamespace

import pytest
from runs import QUESTIONS, write

from fspad_bench.benchmark import runner
from fspad_bench.benchmark.guards import state
from fspad_bench.decoders.build import Decoder
from fspad_bench.util import provenance


@pytest.fixture
def one_target(monkeypatch, tiny):
    """Make runs fast: one tiny target for all, a short warm-up, no git, no waiting for the disk.

    The guard that asks prompts again at the end asks one.
    """
    monkeypatch.setattr(runner, "load_target", lambda name, *, device, dtype: tiny)
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 2)
    monkeypatch.setattr(state, "ASKED", 1)
    monkeypatch.setattr(provenance, "_commit", dict)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def data(tmp_path):
    """Return a file of five questions; `Raises` fails on the fourth."""
    return write(tmp_path, QUESTIONS)


@pytest.fixture
def calls(monkeypatch):
    """Return the list of all generations, in order: label, prompt, temperature, stream.

    The guard that asks prompts again at the end asks none.
    """
    generations = []
    real = Decoder.generate

    def generate(self, target, sampler, prompt, limit):
        generations.append(
            SimpleNamespace(
                label=self.label, prompt=prompt, t=sampler.temperature, stream=sampler.stream
            )
        )
        return real(self, target, sampler, prompt, limit)

    monkeypatch.setattr(Decoder, "generate", generate)
    monkeypatch.setattr(state, "ASKED", 0)
    return generations


@pytest.fixture
def path(tmp_path):
    """Return the path of a record whose folder does not exist yet."""
    return tmp_path / "new" / "folder" / "run.jsonl"


@pytest.fixture(name="write")
def write_rows(tmp_path):
    """Return `write(rows)`, which writes a file of rows; a row that is text is written as it is."""

    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        lines = [
            row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows
        ]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def counted_rounds(monkeypatch):
    """Let the names of rounds, which decide the order of decoders, be the same in every run."""
    counted = map("{:08x}".format, count())
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(counted))
