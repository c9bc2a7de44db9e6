"""Decoders of strangers in a run: what one returns or changes is its own error, and its alone."""

import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import LENGTH, LOOKUP, Foreign, plan_of, row_of, run

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.decoders.vanilla import Vanilla

pytestmark = pytest.mark.usefixtures("one_target")
ME = "test_run_border"


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """Let labels find the decoders of this file."""
    monkeypatch.setitem(sys.modules, ME, sys.modules[__name__])


class Numpy(Foreign):
    """An engine whose numbers are numpy's."""

    def generate(self, prompt, sampler, limit):
        generation = super().generate(prompt, sampler, limit)
        return replace(
            generation,
            tokens=np.array(generation.tokens),
            forwards=np.int64(LENGTH - 1),
            committed=list(np.ones(LENGTH - 1, dtype=np.int32)),
            decode_seconds=np.float32(0.001),
        )


class Threads(Vanilla):
    def begin(self, context, scores):
        torch.set_num_threads(2)


class Restless(Vanilla):
    """A decoder that says something else each time it is asked for its settings."""

    def __init__(self, target):
        self.count = itertools.count()

    def settings(self):
        return {"asked": next(self.count), "threads": torch.get_num_threads()}


class Extends(Foreign):
    def generate(self, prompt, sampler, limit):
        generation = super().generate(prompt, sampler, limit)
        prompt.extend(generation.tokens)
        return generation


class Colder(Vanilla):
    """A decoder that makes its sampler greedy."""

    def begin(self, context, scores):
        object.__setattr__(context.sampler, "temperature", 0.0)


class Wanders(Vanilla):
    def begin(self, context, scores):
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")


class Odd(Foreign):
    """An engine whose answer has something odd."""

    def __init__(self, target, *, what: str):
        super().__init__(target)
        self.what = what

    def generate(self, prompt, sampler, limit):
        generation = super().generate(prompt, sampler, limit)
        tokens = generation.tokens
        match self.what:
            case "nothing":
                return None
            case "text":
                return replace(generation, tokens="abcdef")
            case "fractions":
                return replace(generation, tokens=[float(token) for token in tokens])
            case "beyond":
                return replace(generation, tokens=[97, *tokens[1:]])
            case "negative":
                return replace(generation, tokens=[-1, *tokens[1:]])
            case "nan":
                return replace(generation, decode_seconds=float("nan"))
            case "no counts":
                return replace(generation, committed=None)
            case _:
                raise SystemExit(0)


@pytest.fixture(autouse=True)
def same_machine_afterwards():
    threads = torch.get_num_threads()
    folder = os.getcwd()
    yield
    torch.set_num_threads(threads)
    os.chdir(folder)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["Numpy", "Threads", "Restless", "Extends", "Colder"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_record_is_readable_and_every_decoder_has_one_row(data, tmp_path, name, temperature):
    label = f"{ME}:{name}"
    plan = plan_of(data, label, LOOKUP, temperatures=[temperature])
    path, records = run(plan, tmp_path / "out")
    assert Records.read(path).damaged == []
    table = rows(records)
    assert sorted(row["decoder"] for row in table) == sorted(["vanilla", label, LOOKUP])
    assert [row["samples"] for row in table] == [5, 5, 5]
    assert (row_of(records, "vanilla")["errors"], row_of(records, LOOKUP)["errors"]) == (0, 0)
    assert row_of(records, LOOKUP)["verdict"] == "exact"
    is_own_fault = name == "Colder" and temperature
    assert row_of(records, label)["verdict"] == ("lossy" if is_own_fault else "exact")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "what", ["nothing", "text", "fractions", "beyond", "negative", "nan", "no counts", "exit"]
)
def test_an_odd_answer_is_the_error_of_its_decoder_alone(data, tmp_path, what):
    label = f"{ME}:Odd"
    plan = plan_of(data, label, LOOKUP, options={label: {"what": what}}, limit=1)
    path, records = run(plan, tmp_path / "out")
    assert Records.read(path).damaged == []
    assert row_of(records, label)["errors"] == 1
    assert (row_of(records, "vanilla")["errors"], row_of(records, LOOKUP)["verdict"]) == (
        0,
        "exact",
    )


def test_a_decoder_that_changes_the_folder_does_not_move_the_record(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, records = run(plan_of(data, f"{ME}:Wanders", limit=2), Path("out"))
    assert records.complete
    assert path.parent == tmp_path / "out"
