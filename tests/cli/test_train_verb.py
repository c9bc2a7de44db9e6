"""The verb `train` as users and clusters run it: killed, resumed, and on several processes."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from fspad_bench.cli import main as cli

SETTINGS = (
    "--decoder fspad --target tiny --device cpu --dtype float64 "
    "--draft-vocabulary 40 --batch-tokens 200 --lr 0.003"
).split()
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node 2 -m fspad_bench".split()
DEADLINE = 120  # seconds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    generator = torch.Generator().manual_seed(5)
    rows = [
        {
            "prompt": [1, 2, 3 + i % 7],
            "response": torch.randint(0, 20, (9 + i % 30,), generator=generator).tolist(),
        }
        for i in range(60)
    ]
    path = tmp_path / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def words(data, tmp_path):
    """`words(output, *more)`: the command line of a training whose head goes to `output`."""

    def words(output, *more):
        return ["train", *SETTINGS, "--data", str(data), "--output", str(tmp_path / output), *more]

    return words


@pytest.fixture
def start(tmp_path):
    """`start(arguments, **variables)` runs the command in a copy of this process.

    A fork has torch imported. What it prints goes to the file `log` of the process.
    """
    processes = []

    def body(arguments, log, variables):
        os.environ.update(variables)
        AcceleratorState._reset_state(reset_partial_state=True)
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            code = cli.main(arguments)
        sys.exit(code)

    def start(arguments, **variables):
        log = tmp_path / f"log-{len(processes)}"
        context = multiprocessing.get_context("fork")
        process = context.Process(target=body, args=(arguments, log, variables))
        process.log = log
        processes.append(process)
        process.start()
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def weights(folder):
    return load_file(folder / "head.safetensors")


def test_a_killed_training_resumes_and_a_running_one_is_left_alone(words, start, tmp_path, capsys):
    assert cli.main(words("whole", "--epochs", "2")) == 0
    killed = words("killed", "--epochs", "2", "--checkpoint-every", "0")
    process = start(killed)
    curve = tmp_path / "killed" / "curve.csv"
    while not (curve.exists() and len(curve.read_text().splitlines()) > 3):
        assert process.is_alive(), "the training ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)  # or it might end while the second one starts
    capsys.readouterr()
    assert cli.main(killed) == 2
    assert f"killed is in use by process {process.pid} on" in capsys.readouterr().err
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "head.safetensors").exists()
    assert cli.main(words("killed", "--epochs", "2")) == 0
    assert "resuming at step" in capsys.readouterr().err
    whole = weights(tmp_path / "whole")
    resumed = weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def shared_by_two(arguments, start):
    """Train in two processes with the variables that torchrun and `accelerate launch` set."""
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    processes = [start(arguments, RANK=rank, LOCAL_RANK=rank, **common) for rank in ("0", "1")]
    for process in processes:
        process.join(DEADLINE)
        assert process.exitcode == 0, process.log.read_text()
    return "".join(process.log.read_text() for process in processes)


def under_torchrun(arguments, start):
    command = [sys.executable, *TORCHRUN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.wide
@pytest.mark.parametrize(
    "launch", [shared_by_two, pytest.param(under_torchrun, marks=pytest.mark.nightly)]
)
def test_two_processes_learn_what_one_does(launch, words, start, tmp_path):
    """Also of tokens that the draft vocabulary lacks, which the texts of either let join."""
    more = "--epochs 1 --unroll 3 --draft-vocabulary 5 --logit-weight 1 --warmup 3".split()
    assert cli.main(words("one", *more)) == 0
    out = launch(words("two", *more), start)
    facts = [json.loads((tmp_path / name / "head.json").read_text()) for name in ("one", "two")]
    assert [head["processes"] for head in facts] == [1, 2]
    assert out.count("feature_loss:") == 1
    for name in ("feature_loss", "logit_loss"):
        one, two = (head["held_out"][name] for head in facts)
        assert two == pytest.approx(one, rel=2e-3)
    one = weights(tmp_path / "one")
    two = weights(tmp_path / "two")
    gap = max(float((one[name].float() - two[name].float()).abs().max()) for name in one)
    assert gap < 0.01


def test_own_data_and_live_features(words, shorten, tmp_path, capsys, monkeypatch):
    shorten(monkeypatch)
    more = "--data self --tokens 300 --epochs 0.5 --live --unroll 2".split()
    assert cli.main(words("self", *more)) == 0
    facts = json.loads((tmp_path / "self" / "head.json").read_text())
    overlap = json.loads((tmp_path / "self" / "data" / "overlap.json").read_text())
    assert facts["recipe"]["unroll"] == 2
    assert facts["conversations"] > 60
    assert facts["parameters"] > 0
    assert overlap["rows"] > 0
    assert set(overlap["prompts"]) >= {"mt_bench@bundled", "gsm8k@bundled"}
    assert "tokens_per_step:" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "features").exists()
