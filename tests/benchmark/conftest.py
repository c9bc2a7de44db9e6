"""A run that takes no longer than it must, on five questions."""

import os
from types import SimpleNamespace

import pytest
from runs import write

from fspad_bench.benchmark import runner
from fspad_bench.decoders.build import Method
from fspad_bench.util import machine


@pytest.fixture
def one_target(monkeypatch, tiny):
    """The same tiny target for every run, a short warm-up, no git and no waiting for the disk: all that takes time."""
    monkeypatch.setattr(runner, "load_target", lambda name, *, device, dtype: tiny)
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 2)
    monkeypatch.setattr(machine, "_commit", dict)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def data(tmp_path):
    """Five questions; the fourth holds the character that `Raises` cannot bear."""
    return write(tmp_path, [f"What is {i} and {i}, and what is it not?" for i in (1, 2, 3, 9, 5)])


@pytest.fixture
def calls(monkeypatch):
    """What every method was asked, in order: label, prompt, temperature, stream."""
    asked, real = [], Method.generate

    def generate(self, target, sampler, prompt, limit):
        asked.append(
            SimpleNamespace(
                label=self.label, prompt=prompt, t=sampler.temperature, stream=sampler.stream
            )
        )
        return real(self, target, sampler, prompt, limit)

    monkeypatch.setattr(Method, "generate", generate)
    return asked
