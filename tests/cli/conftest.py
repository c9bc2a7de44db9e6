"""A command that works, and how a refusal looks."""

import os

import pytest

from fspad_bench.benchmark import runner
from fspad_bench.cli import main as cli
from fspad_bench.models import load
from fspad_bench.util import machine


@pytest.fixture(autouse=True)
def quick(request, monkeypatch, tiny):
    """One tiny target for all runs, no git, no waiting for the disk; a test that names another target loads it."""
    real = load.load_target

    def one_tiny(name, **options):
        return tiny if name == "tiny" else real(name, **options)

    monkeypatch.setattr(load, "load_target", one_tiny)
    monkeypatch.setattr(runner, "load_target", one_tiny)
    monkeypatch.setattr(machine, "_commit", dict)
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
    """`arguments(...)`: a run that works but for what is given here, which comes last and so wins."""

    def arguments(*more):
        run = "run --target tiny --task gsm8k --decoder prompt_lookup --max-new-tokens 5".split()
        return [*run, "--data", str(data), "--output", str(tmp_path / "out"), *map(str, more)]

    return arguments


@pytest.fixture
def refused(capsys, tmp_path):
    """`refused(argv)`: both lines of the error, which are all that is printed."""

    def refused(argv):
        assert cli.main([str(word) for word in argv]) == 2
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
