"""The scripts for a lent GPU, in small on the CPU: bounded parts, kept failures, resumption."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from parts import SMALL, TRACEBACK, summary, wait_for
from served import Served

from fspad_bench.benchmark import runner
from fspad_bench.profiling import timing

pytestmark = pytest.mark.wide

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "path",
    [
        "baselines/parts.sh",
        "baselines/heads/train.sh",
        "results/gpu.sh",
        "results/variants.sh",
        "results/trees.sh",
        "results/served.sh",
    ],
)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", str(CHECKOUT / path)], check=True)


def test_a_failing_part_stops_no_other_and_its_traceback_is_kept(script, stub, tmp_path):
    """Exit code 1 without a traceback is a finding; every other failure is repeated."""
    output = tmp_path / "out"
    settings = {"PYTHON": stub, "OUTPUT": str(output), "STUB_run": TRACEBACK}
    done = script("results/gpu.sh", **settings, STUB_pytest="exit 3", STUB_certify="exit 1")
    assert done.returncode == 1, done.stderr
    states = summary(output)
    assert states["kernels"] == (3, "failed")
    assert states["speed-tiny"] == (1, "failed")
    assert states["certify"] == (1, "finding")
    assert states["costs-tiny@1"] == (0, "done")
    assert "ValueError: kept" in (output / "speed-tiny.log").read_text()
    calls = len((tmp_path / "calls").read_text().splitlines())
    again = script("results/gpu.sh", PYTHON=stub, OUTPUT=str(output))
    assert again.returncode == 0, again.stderr
    assert {state for _, state in summary(output).values()} == {"done", "finding"}
    new = (tmp_path / "calls").read_text().splitlines()[calls:]
    assert {line.split()[1] for line in new} == {"-q", "run"}  # pytest and runs alone


def test_a_part_that_hangs_is_cut_off_and_the_budget_ends_the_call(script, stub, tmp_path):
    output = tmp_path / "out"
    settings = {"PYTHON": stub, "OUTPUT": str(output)}
    words = ["forwards-tiny@1", "certify"]
    done = script("results/gpu.sh", *words, **settings, BUDGET="3", STUB_profile="exec sleep 60")
    assert done.returncode == 1
    assert summary(output) == {"forwards-tiny@1": (124, "timeout")}
    none = script("results/gpu.sh", *words, **settings, BUDGET="0")
    assert none.returncode == 75
    done = script("results/gpu.sh", *words, **settings)
    assert done.returncode == 0, done.stderr
    assert list(summary(output)) == ["forwards-tiny@1", "certify"]
    order = [line.split("\t")[0] for line in (output / "summary.tsv").read_text().splitlines()]
    assert order == ["forwards-tiny@1", "certify", "forwards-tiny@1"]  # what failed comes last


def test_a_module_that_is_missing_is_a_failure(script, stub, tmp_path):
    """It may be there in a later call; a check that does not hold would not."""
    missing = "echo '/usr/bin/python3: No module named pytest' >&2; exit 1"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out")}
    assert script("results/gpu.sh", "kernels", **settings, STUB_pytest=missing).returncode == 1
    assert summary(tmp_path / "out") == {"kernels": (1, "failed")}
    assert script("results/gpu.sh", "kernels", **settings).returncode == 0
    assert summary(tmp_path / "out") == {"kernels": (0, "done")}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_part_and_then_the_script(start_script, stub, tmp_path, number, code):
    """The script alone gets it, as of a batch system; the part cleans up before it ends."""
    body = """
    for name in INT TERM HUP; do
        trap "sleep 0.3; echo $name > ended; kill $(jobs -p); exit 3" $name
    done
    sleep 60 &
    echo $$ > pid
    wait"""
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "STUB_certify": body}
    process = start_script("results/gpu.sh", "certify", "machine", **settings)
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    process.send_signal(number)
    assert process.wait(30) == code
    assert (tmp_path / "ended").read_text().strip() == number.name.removeprefix("SIG")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "out" / "summary.tsv").exists()


def test_the_limit_interrupts_as_ctrl_c_does(script, stub, tmp_path):
    """Though a shell lets what it starts in the background ignore that."""
    body = f"""exec {sys.executable} -c "
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    print('interrupted')
" """
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "STUB_certify": body}
    assert script("results/gpu.sh", "certify", **settings, BUDGET="3").returncode == 1
    assert summary(tmp_path / "out") == {"certify": (124, "timeout")}
    assert "interrupted" in (tmp_path / "out" / "certify.log").read_text()


def test_done_parts_are_repeated_on_request(script, stub, tmp_path):
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out")}
    for changes in ({}, {}, {"AGAIN": "1"}):
        assert script("results/gpu.sh", "certify", **settings, **changes).returncode == 0
    assert len((tmp_path / "out" / "summary.tsv").read_text().splitlines()) == 2


def test_an_unknown_part_is_refused(script, tmp_path):
    done = script("results/gpu.sh", "kernel", OUTPUT=str(tmp_path / "out"))
    assert done.returncode == 2
    assert "no part is called kernel" in done.stderr


def test_the_model_is_joined_of_pieces(script, stub, tmp_path):
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    (pieces / "smollm2.gguf.part-ab").write_text("second")
    (pieces / "smollm2.gguf.part-aa").write_text("first ")
    settings = {"PYTHON": stub, "MODEL": str(pieces), "OUTPUT": str(tmp_path / "out")}
    done = script("results/gpu.sh", "model", **settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cache" / "pieces" / "smollm2.gguf").read_text() == "first second"
    assert "fetch --from" in (tmp_path / "calls").read_text()


def test_a_checkout_that_is_not_installed_has_its_decoders(script, tmp_path):
    """The interpreter sees no site packages, as on a machine where nothing was installed."""
    probe = (
        "from importlib.metadata import distributions as found\n"
        "print([d.name for d in found(path=['cache/site'])])"
    )
    hidden = tmp_path / "hidden-python"
    hidden.write_text(f'#!/usr/bin/env bash\nexec {sys._base_executable} -S "$@"\n')
    hidden.chmod(0o755)
    done = script("results/gpu.sh", "machine", PYTHON=str(hidden), OUTPUT="out", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True)
    assert shown.stdout.decode().strip() == "['fspad-bench']"


def test_kernels_and_decoders_run_in_small(tmp_path, monkeypatch, device):
    """The true verbs, on the CPU with Triton's kernels in the interpreter."""
    output = tmp_path / "out"
    words = ["identity-tiny", "costs-tiny@1"]
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FSPAD_KERNELS", "reference")
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 2)
    monkeypatch.setattr(timing, "CPU_COPY", 1 << 20)
    monkeypatch.setattr(timing, "CPU_TURNS", 1)
    variables = SMALL | {"DEVICE": device.type, "OUTPUT": str(output)}
    variables |= {"SLOWER": "9", "BUDGET": "2000"}
    command = ["bash", str(CHECKOUT / "results" / "gpu.sh"), *words]
    done = Served(tmp_path / "served").run(command, os.environ | variables, tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(output) == dict.fromkeys(words, (0, "done"))
    assert "rows identical to vanilla" in (output / "identity-tiny.log").read_text()
    assert "a matrix product does" in (output / "costs-tiny@1.log").read_text()
    assert len(list(output.glob("*/*.jsonl"))) == 1


def test_a_head_is_trained_on_what_there_is_when_time_is_up(script, stub, tmp_path):
    """The data set and the training are cut off; the head is ended at its last checkpoint."""
    output = tmp_path / "heads"
    head = output / "fspad-tiny-0"
    body = f"""
case "$*" in *"--epochs 3 "*) mkdir -p {head}
    printf 'step,steps\\n10,100\\n' > {head}/curve.csv; exec sleep 60;; esac
echo '{{"held_out": {{"agreement": 0.5}}}}' > {head}/head.json"""
    data = f"mkdir -p {output}/data; touch {output}/data/shard-00000.jsonl; exec sleep 60"
    settings = {"PYTHON": stub, "DATA_SECONDS": "1", "TRAIN_SECONDS": "1"}
    settings |= {"STUB_train": body, "STUB_distill": data}
    done = script("baselines/heads/train.sh", output, **settings)
    assert done.returncode == 0, done.stderr
    states = summary(output)
    assert states["data"] == (124, "timeout")
    assert states["train-fspad-tiny-0"] == (124, "timeout")
    assert states["finish-fspad-tiny-0"] == (0, "done")
    assert json.loads((head / "held_out.json").read_text()) == {"agreement": 0.5}
    epochs = [line for line in (tmp_path / "calls").read_text().splitlines() if "train" in line]
    assert "--epochs 0.36 " in epochs[-1]  # 12 of 100 steps of 3 epochs
    assert script("baselines/heads/train.sh", output, **settings).returncode == 0
    assert len(summary(output)) == 3


def test_a_slower_machine_keeps_the_moment_to_finish_a_head(script, stub, tmp_path):
    (tmp_path / "data").mkdir()
    settings = {"PYTHON": stub, "DATA": "data", "BUDGET": "400", "FINISH_SECONDS": "40"}
    settings |= {"TRAIN_SECONDS": "1000", "SLOWER": "3"}
    done = script("baselines/heads/train.sh", "heads", **settings)
    (seconds,) = re.findall(r"train-fspad-tiny-0 \(at most (\d+) s\)", done.stderr)
    assert 300 < int(seconds) <= 360


def test_data_that_failed_is_an_error(script, stub, tmp_path):
    settings = {"PYTHON": stub, "STUB_distill": "exit 2"}
    done = script("baselines/heads/train.sh", tmp_path / "heads", **settings)
    assert done.returncode == 1
    assert "there is no data yet" in done.stderr
