"""Sweeps: the grid of cells, executors, and cells that are killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fspad_bench.benchmark import processes, sweep
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.processes import Processes
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.sweep import Cell, Outcome, Resources
from fspad_bench.integrations.ray_executor import RayExecutor
from fspad_bench.util.errors import BenchError

PLAN = Plan(
    decoders=["vanilla", "prompt_lookup", "mine=suffix"],
    tasks=["gsm8k", "nq"],
    target="tiny",
    options={"mine": {"budget": "3"}, "prompt_lookup": {"n": "2"}},
    data="bundled",
    limit=1,
    max_new_tokens=4,
    aa=False,
)


def test_there_is_a_cell_for_each_decoder_task_and_target():
    grid = sweep.cells(PLAN, ["tiny", "smollm2-135m"], cpus=3)
    assert [(c.plan.decoders, c.plan.tasks, c.plan.target) for c in grid] == [
        (["vanilla", decoder], [task], target)
        for target in ("tiny", "smollm2-135m")
        for task in ("gsm8k", "nq")
        for decoder in ("prompt_lookup", "mine=suffix")
    ]
    assert len({cell.name for cell in grid}) == len(grid)
    assert {cell.plan.threads for cell in grid} == {3}
    assert grid[0].plan.options == {"prompt_lookup": {"n": "2"}}
    assert grid[1].plan.options == {"mine": {"budget": "3"}}


def test_vanilla_alone_is_a_cell():
    (cell,) = sweep.cells(replace(PLAN, decoders=["vanilla"], tasks=["nq"], threads=1), ["tiny"], 2)
    assert cell.plan.decoders == ["vanilla"]
    assert cell.plan.threads == 1


def test_other_settings_are_another_cell():
    assert Cell(PLAN).name != Cell(replace(PLAN, seed=1)).name
    assert Plan(**json.loads(Cell(PLAN).json)) == PLAN


@pytest.fixture
def ends(monkeypatch):
    """`ends(*codes)`: cells end with these exit codes, one after another; returns the calls."""

    def ends(*codes):
        calls = []
        left = list(codes)

        def perform(cell, folder, environment=None, started=None):
            calls.append((cell, folder, environment))
            return Outcome(cell, left.pop(0))

        monkeypatch.setattr(processes, "perform", perform)
        return calls

    return ends


@pytest.mark.parametrize("code", [-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGHUP])
def test_a_cell_that_was_killed_is_tried_again(ends, tmp_path, code):
    calls = ends(code, 0)
    (outcome,) = Processes(Resources(retries=2), tmp_path).run([Cell(PLAN)])
    assert outcome.code == 0
    assert [folder for _, folder, _ in calls] == [tmp_path / Cell(PLAN).name] * 2


def test_a_worker_that_dies_for_good_is_an_outcome(ends, tmp_path):
    ends(-9, -9, -9, 0)
    others = [Cell(PLAN), Cell(replace(PLAN, seed=1))]
    first, second = Processes(Resources(retries=2), tmp_path).run(others)
    assert (first.code, first.died, first.measured) == (-9, True, False)
    assert second.measured


def test_bad_input_is_not_tried_again(ends, tmp_path):
    calls = ends(2, 0)
    (outcome,) = Processes(Resources(retries=2), tmp_path).run([Cell(PLAN)])
    assert (outcome.code, len(calls)) == (2, 1)


def test_an_interrupted_sweep_ends_its_cells_and_starts_no_more(monkeypatch, tmp_path):
    names = [tmp_path / name for name in ("first", "second", "third")]
    left = list(names)
    wait = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(60)"
    begun = []

    def perform(cell, folder, environment, started):
        flag = left.pop(0)
        process = subprocess.Popen([sys.executable, "-S", "-c", wait, flag], text=True)
        begun.append(process)
        started(process)
        return Outcome(cell, process.wait())

    def interrupted(waiting):
        while not all(flag.exists() for flag in names[:2]):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "perform", perform)
    monkeypatch.setattr(processes, "as_completed", interrupted)
    executor = Processes(Resources(workers=2, retries=2), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        list(executor.run([Cell(replace(PLAN, seed=seed)) for seed in range(3)]))
    assert [process.returncode for process in begun] == [-signal.SIGTERM] * 2


def test_a_cell_ends_with_whoever_waits_for_it(monkeypatch, tmp_path):
    begun = []

    def interrupted(process):
        begun.append(process)
        monkeypatch.setattr(process, "communicate", _interrupt)

    def _interrupt(text):
        raise KeyboardInterrupt

    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sweep.sys, "executable", str(sleeper))
    with pytest.raises(KeyboardInterrupt):
        sweep.perform(Cell(PLAN), tmp_path, started=interrupted)
    assert begun[0].returncode == -signal.SIGTERM


def test_an_interrupted_sweep_cancels_its_jobs(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    executor = sweep.executor("slurm")(Resources(settings={"cluster": "local"}), tmp_path)
    executor.executor = SimpleNamespace(batch=nullcontext)
    cancelled = []
    done = SimpleNamespace(done=lambda: True, result=lambda: Outcome(Cell(PLAN), 0))
    going = SimpleNamespace(done=lambda: False, cancel=lambda: cancelled.append("going"))
    jobs = [done, going]
    monkeypatch.setattr(executor, "_submit", lambda cell: jobs.pop(0))
    outcomes = executor.run([Cell(PLAN), Cell(replace(PLAN, seed=1))])
    assert next(outcomes).code == 0
    outcomes.close()
    assert cancelled == ["going"]


def places_of(calls):
    """The GPUs of each cell that ran."""
    return {environment["CUDA_VISIBLE_DEVICES"] for *_, environment in calls}


def test_each_cell_has_gpus_of_its_own(ends, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    calls = ends(0, 0, 0)
    executor = Processes(Resources(gpus=2), tmp_path)
    assert executor.workers == 2
    list(executor.run([Cell(replace(PLAN, seed=seed)) for seed in range(3)]))
    assert places_of(calls) <= {"0,1", "2,3"}
    with pytest.raises(BenchError, match="asks for 6 GPUs, and this process may use 5"):
        Processes(Resources(gpus=6), tmp_path)


@pytest.mark.parametrize(
    ("mask", "visible", "expected"),
    [
        ("2,3", 2, ["2", "3"]),
        ("GPU-8932f937, GPU-ab12", 2, ["GPU-8932f937", "GPU-ab12"]),
        ("5,-1,6", 1, ["5"]),  # CUDA reads no further than a name that it does not know
    ],
)
def test_cells_run_on_the_gpus_that_the_user_chose(monkeypatch, tmp_path, mask, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    executor = Processes(Resources(gpus=1), tmp_path)
    assert executor.workers == len(expected)
    assert [executor.places.get_nowait() for _ in expected] == expected


def test_a_finished_cell_is_known_by_its_plan_and_its_end(tmp_path):
    cell = Cell(PLAN)
    path = tmp_path / cell.name / "record.jsonl"
    path.parent.mkdir()
    run = json.dumps({"kind": "run", "schema": 4, "plan": asdict(PLAN)})
    end = json.dumps({"kind": "end", "status": "complete"})
    assert not sweep.is_finished(cell, tmp_path)
    path.write_text(f"{run}\n")
    assert not sweep.is_finished(cell, tmp_path)
    path.write_text(f"{run}\n{end}\n")
    assert sweep.is_finished(cell, tmp_path)
    (path.parent / "abandoned.jsonl").write_text(f"{run}\n")
    (path.parent / "tried-later.jsonl").write_text(f"{run}\n")
    assert sweep.record_of(cell, tmp_path) == path
    path.write_text(f"not a record\n{end}\n")
    assert not sweep.is_finished(cell, tmp_path)


def test_an_unknown_executor_gets_the_near_match():
    with pytest.raises(BenchError, match="unknown executor 'rai'") as caught:
        sweep.executor("rai")
    assert "did you mean 'ray'?" in caught.value.hint


# real processes


KILLER = """
import os, signal
from pathlib import Path
from fspad_bench import Drafter, Tree

FLAG = Path({flag!r})

class KilledOnce(Drafter):
    def __init__(self, target):
        pass

    def propose(self, context, budget):
        if not FLAG.exists():
            FLAG.touch()
            if "KILL_THE_WORKER_TOO" in os.environ:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return Tree.chain(context.tokens[-1], [context.tokens[-1]] * min(2, budget))
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Two cells; the process of the first is killed once, in the middle of a generation."""
    (tmp_path / "killer.py").write_text(KILLER.format(flag=str(tmp_path / "killed")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *_paths()]))
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    plan = replace(PLAN, decoders=["killer:KilledOnce", "prompt_lookup"], options={})
    grid = sweep.cells(replace(plan, tasks=["gsm8k"], threads=1), ["tiny"], 1)
    yield grid
    assert (tmp_path / "killed").exists()


def _paths():
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def check(outcomes, grid, output):
    """Both cells are measured, and their records whole."""
    assert sorted(o.cell.name for o in outcomes) == sorted(cell.name for cell in grid)
    for outcome in outcomes:
        assert outcome.measured, outcome.words
        folder = output / outcome.cell.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in outcome.files.items():
            (folder / name).write_text(text)
    for cell in grid:
        (path,) = (output / cell.name).glob("*.jsonl")
        records = Records.read(path)
        assert records.complete
        assert not records.damaged
        assert len(records.samples) == 2
        assert sweep.is_finished(cell, output)


@pytest.mark.nightly
def test_processes_finish_a_cell_that_was_killed(grid, tmp_path):
    check(list(Processes(Resources(workers=2), tmp_path / "out").run(grid)), grid, tmp_path / "out")


@pytest.mark.nightly
def test_ray_finishes_a_cell_whose_worker_was_killed(grid, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("KILL_THE_WORKER_TOO", "1")
    executor = sweep.executor("ray")(Resources(workers=2), tmp_path / "out")
    check(list(executor.run(grid)), grid, tmp_path / "out")


@pytest.mark.nightly
def test_submitit_finishes_a_cell_that_was_killed(grid, tmp_path):
    pytest.importorskip("submitit")
    resources = Resources(settings={"cluster": "local"})
    executor = sweep.executor("slurm")(resources, tmp_path / "out")
    check(list(executor.run(grid)), grid, tmp_path / "out")


class FakeRay:
    """A cluster that runs a task at once, and counts those that are not waited for yet."""

    def __init__(self):
        self.settings = None
        self.exceptions = SimpleNamespace(RayError=OSError)
        self.most = 0
        self.waiting = []

    def is_initialized(self):
        return False

    def init(self, **settings):
        self.settings = settings

    def shutdown(self):
        pass

    def remote(self, **_):
        def task(function):
            self.function = function
            return SimpleNamespace(remote=self.start)

        return task

    def start(self, cell):
        self.waiting.append(cell)
        self.most = max(self.most, len(self.waiting))
        return cell

    def wait(self, _):
        return [self.waiting.pop(0)], self.waiting

    def get(self, cell):
        return Outcome(cell, 0, "")


@pytest.mark.parametrize("address", ["", "ray://head:10001"])
def test_workers_bound_the_cells_of_a_cluster_and_size_no_cluster_of_others(
    tmp_path, monkeypatch, address
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    executor = RayExecutor(Resources(workers=2, cpus=3), tmp_path)
    cells = list("abcde")
    assert [outcome.cell for outcome in executor.run(cells)] == cells
    assert executor.ray.most == 2
    assert executor.ray.settings.get("num_cpus") == (None if address else 6)


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_executor_whose_library_is_missing_says_what_to_install(monkeypatch, name, library):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(BenchError) as caught:
        sweep.executor(name)(Resources(), Path("out"))
    assert f"pip install 'fspad-bench[{name}]'" in caught.value.hint
