"""Fixtures of the command line: a run that works, and the form of every error."""

import pytest

from fspad_bench.cli.main import main


@pytest.fixture(autouse=True)
def quick(quick_runs):
    pass


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
