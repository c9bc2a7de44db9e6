"""Fixtures of the command line: a run that works, and the form of every error."""

import os

import pytest

from fspad_bench.benchmark import runner
from fspad_bench.cli.main import main
from fspad_bench.models import load
from fspad_bench.util import provenance


@pytest.fixture(autouse=True)
def quick(request, monkeypatch, tiny):
    """Share one tiny target between runs; skip git and waiting for the disk.

    A test that names another target loads that one.
    """
    real = load.load_target

    def one_tiny(name, *, device="cpu", **options):
        if name != "tiny":
            return real(name, device=device, **options)
        load.device_named(device)
        return tiny

    monkeypatch.setattr(load, "load_target", one_tiny)
    monkeypatch.setattr(runner, "load_target", one_tiny)
    monkeypatch.setattr(provenance, "_commit", dict)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(
            f'{{"id": "q{i}", "question": "{i} and 1?", "answer": "{i + 1}"}}\n' for i in range(4)
        )
    )
    return path


@pytest.fixture
def arguments(data, tmp_path):
    """`arguments(*more)`: the words of a run that works, unless `more` overrides them."""

    def arguments(*more):
        run = "run --target tiny --task gsm8k --decoder prompt_lookup --max-new-tokens 5".split()
        return [*run, "--data", str(data), "--output", str(tmp_path / "out"), *map(str, more)]

    return arguments


@pytest.fixture
def refused(capsys, tmp_path):
    """`refused(argv)`: the two lines of the error, after a check that nothing else is printed."""

    def refused(argv):
        assert main([str(word) for word in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        lines = err.splitlines()
        assert len(lines) == 2, err
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("hint:  ")
        assert len(lines[0]) > 15
        assert len(lines[1]) > 10
        assert not (tmp_path / "out").exists()
        return err

    return refused
