"""The verb `sweep`: cells in this process, in place of processes of their own."""

import pytest

from fspad_bench.benchmark import processes
from fspad_bench.benchmark.runner import Runner
from fspad_bench.benchmark.sweep import Outcome, Resources
from fspad_bench.cli.main import main

SWEEP = "sweep --target tiny --data bundled --limit 1 --max-new-tokens 4 --no-aa --task gsm8k"


@pytest.fixture
def swept(quick_runs, monkeypatch, tmp_path, capsys):
    """`swept(decoders, failing)`: exit code, output, messages; `failing` maps a decoder to its exit
    code. `swept.ran` holds the decoders of the cells that ran.
    """

    def swept(decoders, failing=()):
        swept.ran = []

        def perform(cell, folder, environment=None, started=None):
            decoder = cell.plan.decoders[-1]
            swept.ran.append(decoder)
            if decoder in failing:
                return Outcome(cell, failing[decoder], "error: out of order")
            Runner(cell.plan, folder).run()
            return Outcome(cell, 0)

        monkeypatch.setattr(processes, "perform", perform)
        words = [*SWEEP.split(), "--decoder", decoders, "--output", str(tmp_path / "out")]
        code = main(words)
        return code, *capsys.readouterr()

    return swept


def test_the_table_holds_every_cell_and_a_second_call_measures_nothing(swept):
    code, out, _ = swept("prompt_lookup,suffix")
    assert code == 0
    assert swept.ran == ["prompt_lookup", "suffix"]
    assert {"vanilla", "prompt_lookup", "suffix"} <= set(out.split())
    again = swept("prompt_lookup,suffix")
    assert swept.ran == []
    assert again[:2] == (code, out)


def test_a_cell_that_fails_is_told_and_the_rest_is_measured(swept):
    code, out, err = swept("prompt_lookup,suffix", {"suffix": 2})
    assert code == 1
    assert "prompt_lookup" in out
    assert "suffix" not in out
    assert "failed: suffix on gsm8k of tiny: exit code 2\n  error: out of order" in err
    assert swept("prompt_lookup,suffix")[0] == 0
    assert swept.ran == ["suffix"]


def test_a_cell_that_is_killed_for_good_is_told(swept):
    code, _, err = swept("prompt_lookup,suffix", {"suffix": -9})
    assert code == 1
    assert swept.ran == ["prompt_lookup", *["suffix"] * 3]
    assert "failed: suffix on gsm8k of tiny: killed by signal 9" in err


def test_a_sweep_that_measured_nothing_is_an_error(swept):
    code, out, err = swept("suffix", {"suffix": 2})
    assert code == 2
    assert out == ""
    assert "error: no cell of 1 was measured" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--decoder suffix --on nowhere", "unknown executor 'nowhere'"),
        ("--decoder suffix --set partition", "--set partition is not NAME=VALUE"),
        ("--decoder suffix,eagel", "unknown decoder 'eagel'"),
        ("--decoder suffix -D suffix.dept=3", "suffix has no option 'dept'"),
        ("--decoder suffix --target tiny,tinny", "unknown target 'tinny'"),
        ("", "the following arguments are required: --decoder"),
    ],
)
def test_bad_input(capsys, words, message):
    assert main([*SWEEP.split(), *words.split()]) == 2
    assert message in capsys.readouterr().err.splitlines()[0]  # no cell has been tried


def test_the_help_says_how_many_cells_run_at_once(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "cells at once (default: what fits; 1 on processes without --gpus)" in said
    assert processes.Processes(Resources(), tmp_path).workers == 1
