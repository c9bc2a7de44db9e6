"""What a machine says of itself, and of what else it was doing."""

import pytest

from fspad_bench.util import machine


def test_the_machine_says_what_it_is():
    about = machine.provenance()
    assert about["machine"] == machine.describe()
    assert "cores" in about["machine"]
    assert {"torch", "transformers", "numpy"} <= about["packages"].keys()


def test_a_gpu_is_part_of_the_machine():
    assert machine.describe("NVIDIA H200") == f"NVIDIA H200, {machine.describe()}"


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_a_container_may_use_what_its_quota_says(monkeypatch, tmp_path, quota, count):
    monkeypatch.setattr(
        machine.os, "sched_getaffinity", lambda process: set(range(8)), raising=False
    )
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    assert machine.cores() == 8
    machine.QUOTA.write_text(f"{quota}\n")
    assert machine.cores() == count


def test_load_counts_others_and_not_ourselves(monkeypatch):
    clock = {"wall": 0.0, "busy": 100.0, "own": 5.0}
    monkeypatch.setattr(machine, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: clock["own"])
    load = machine.Load()
    clock.update(wall=10.0, busy=118.0, own=15.0)
    assert load.others() == pytest.approx(0.8)
    clock.update(busy=109.0)
    assert load.others() == 0.0


@pytest.mark.parametrize("stat", ["", "cpu\n", "cpu 1 2 3\n", "nonsense and more of it here\n"])
def test_a_strange_proc_stat_is_no_load(monkeypatch, stat):
    monkeypatch.setattr(machine.Path, "read_text", lambda self: stat)
    assert machine._busy_seconds() == 0.0
