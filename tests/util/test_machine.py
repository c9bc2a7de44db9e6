"""The machine: its description, its cores, and the load of other processes."""

import subprocess
import sys

import pytest

from fspad_bench.util import machine


def test_a_gpu_is_part_of_the_machine():
    assert machine.describe("NVIDIA H200") == f"NVIDIA H200, {machine.describe()}"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("flags\t\t: fpu avx avx2 fma", "AMD EPYC, avx2, 2 cores"),
        ("flags\t\t: avx2 avx512f avx512_bf16", "AMD EPYC, avx512_bf16, 2 cores"),
        ("flags\t\t: avx2 avx512f", "AMD EPYC, avx512f, 2 cores"),
        ("Features\t: fp asimd", "AMD EPYC, asimd, 2 cores"),
        ("flags\t\t: fpu", "AMD EPYC, 2 cores"),
    ],
)
def test_processors_of_one_name_differ_by_their_instructions(monkeypatch, tmp_path, flags, name):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    machine.CPU_INFO.write_text(f"model name\t: AMD EPYC\n{flags}\n")
    assert machine.describe() == name


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
def test_a_containers_quota_bounds_the_cores(monkeypatch, tmp_path, quota, count):
    monkeypatch.setattr(
        machine.os, "sched_getaffinity", lambda process: set(range(8)), raising=False
    )
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    assert machine.cores() == 8
    machine.QUOTA.write_text(f"{quota}\n")
    assert machine.cores() == count


def test_load_counts_other_processes_and_not_this_one(monkeypatch):
    clock = {"wall": 0.0, "busy": 100.0, "own": 5.0}
    monkeypatch.setattr(machine, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: clock["own"])
    load = machine.Load()
    clock.update(wall=10.0, busy=118.0, own=15.0)
    assert load.others() == pytest.approx(0.8)
    clock.update(busy=109.0)
    assert load.others() == 0.0


def test_what_a_helper_uses_meanwhile_is_no_other_load(monkeypatch):
    clock = {"wall": 0.0, "busy": 100.0, 7: 30.0, 8: 2.0}
    monkeypatch.setattr(machine, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(machine, "process_time", lambda: 0.0)
    monkeypatch.setattr(machine, "_seconds_of", clock.get)
    monkeypatch.setattr(machine, "_helpers", {8})
    helped = machine.Load([7, 8])
    alone = machine.Load()
    clock.update({"wall": 10.0, "busy": 112.0, 7: 37.0, 8: 5.0})
    assert helped.others() == pytest.approx(0.2)  # a helper of all is not counted twice
    assert alone.others() == pytest.approx(0.9)


def test_own_seconds_are_processor_time():
    before = machine._own_seconds()
    sum(range(2_000_000))
    assert machine._own_seconds() > before


@pytest.mark.parametrize("stat", ["", "cpu\n", "cpu 1 2 3\n", "nonsense and more of it here\n"])
def test_an_unreadable_proc_stat_is_no_load(monkeypatch, tmp_path, stat):
    monkeypatch.setattr(machine, "CPU_TIMES", tmp_path / "stat")
    assert machine._busy_seconds() == 0.0
    machine.CPU_TIMES.write_text(stat)
    assert machine._busy_seconds() == 0.0


def test_the_machine_and_records_need_no_module_of_unix():
    """On Windows neither `fcntl` nor `resource` exists."""
    program = (
        "import sys\n"
        "sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "from fspad_bench.util import machine\n"
        "machine.Load().others()\n"
        "import filelock\n"
        "del sys.modules['fcntl']\n"
        "from fspad_bench.benchmark import record\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_processes_that_work_for_this_one_count_as_its_own():
    code = "import sys; print(sum(range(10**7)), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as helper:
        helper.stdout.readline()
        before = machine._own_seconds()
        machine.count_as_own(helper.pid)
        assert machine._own_seconds() > before + 0.05
        machine.forget(helper.pid)
        assert machine._own_seconds() < before + 0.05
        helper.stdin.close()
    assert machine._seconds_of(helper.pid) == 0.0
