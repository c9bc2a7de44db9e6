"""A run that is killed 20 times at random points, with real decoders in processes of their own."""

import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from runs import ME, plan_of, write

from fspad_bench.benchmark import rows, runner
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.runner import Runner
from fspad_bench.decoders.vanilla import Vanilla

KILLS = 20
QUESTIONS = [
    ["What is 1 and 1?", "And what is it not?"],
    ["Say 9 twice, 9 and 9."],
    ["Why is it so?"],
]
DECODERS = {
    "fspad": {"tree": "auto"},
    "drawn=fspad": {"verify": "rejection", "tree": "fixed", "nodes": "6"},
    "suffix": {"scope": "run"},
    "token_recycling": {"scope": "run"},
    "hybrid": {"of": "suffix,token_recycling"},
    f"{ME}:Raises": {},
    f"{ME}:Foreign": {"edit": "other"},
    "full=test_killed:Full": {},
}
TIMES = ("speedup", "second", "time_to", "_share", "nois", "hidden_work", "peak_memory", "slower")


class Full(Vanilla):
    """A decoder that asks torch for more memory than there is, in second turns only."""

    def propose(self, context, budget):
        if context.prompt_length > 60:
            torch.empty(1 << 60, dtype=torch.uint8)
        return super().propose(context, budget)


@pytest.fixture
def start(tmp_path, heads, monkeypatch):
    """`start(output)`: run the plan in a new process, which writes to a log."""
    monkeypatch.setitem(sys.modules, "test_killed", sys.modules[__name__])
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 4)
    source = write(tmp_path, ["unused"])
    source.write_text(
        "".join(
            f'{{"id": "q{i}", "turns": {turns!r}, "answers": ["{i}"]}}\n'.replace("'", '"')
            for i, turns in enumerate(QUESTIONS)
        )
    )
    options = {label.split("=")[0]: dict(given) for label, given in DECODERS.items()}
    for name in ("fspad", "drawn"):
        options[name]["head"] = str(heads["fspad"])
    settings = {"options": options, "tasks": ["gsm8k", "nq"], "temperatures": [0.0, 1.0]}
    plan = plan_of(source, *DECODERS, max_new_tokens=16, **settings)
    context = multiprocessing.get_context("fork")

    def work(output):
        with open(output.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 2)
            sys.stderr = log
            Runner(plan, output).run()

    def start(output):
        process = context.Process(target=work, args=(output,))
        process.start()
        return process

    return start


def lines_of(output):
    return sum(path.read_bytes().count(b"\n") for path in output.glob("*.jsonl"))


def kill_after(process, output, lines, seconds, most):
    """Kill a process some seconds after it has written so many lines, and before it has `most`."""
    while process.is_alive() and lines_of(output) < lines:
        time.sleep(0.002)
    end = time.monotonic() + seconds
    while time.monotonic() < end and lines_of(output) < most:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def facts(output):
    """Return the rows without what a clock says."""
    (path,) = output.glob("*.jsonl")
    records = Records.read(path)
    assert records.complete
    assert records.damaged == []
    table = rows.rows(records)
    return [{k: v for k, v in row.items() if not any(t in k for t in TIMES)} for row in table]


def differing(table, expected):
    return [
        (row["decoder"], row["task"], row["temperature"], name, row[name], value)
        for row, known in zip(table, expected, strict=True)
        for name, value in known.items()
        if row[name] != value
    ]


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_run_killed_20_times_prints_the_uninterrupted_table(start, tmp_path):
    whole = tmp_path / "whole"
    process = start(whole)
    process.join()
    assert process.exitcode == 0
    table = facts(whole)
    total = lines_of(whole)
    errors = {row["decoder"]: row["errors"] for row in table}
    assert errors[f"{ME}:Raises"]
    assert errors["full=test_killed:Full"]
    assert any(row["pit_tokens"] for row in table)
    assert any(row["max_regret"] for row in table)

    killed = tmp_path / "killed"
    dice = random.Random(8)
    kills = 0
    while kills < KILLS:
        done = lines_of(killed)
        grown = dice.choice([0, dice.randrange(1, 2 * total // KILLS)])
        most = total - (KILLS - kills)  # each kill leaves lines to write
        seconds = dice.uniform(0, 0.2 if grown else 2)
        lines = min(done + grown, most)
        kills += kill_after(start(killed), killed, lines, seconds, most)
        print(f"kill {kills}: {done} -> {lines_of(killed)} of {total} lines")
    process = start(killed)
    process.join()
    assert process.exitcode == 0
    assert differing(facts(killed), table) == []
