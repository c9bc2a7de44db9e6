"""The verb `train` as users and clusters run it: killed, resumed, and on several processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from fspad_bench.cli import main as cli

SETTINGS = (
    "--decoder fspad --target tiny --device cpu --dtype float64 "
    "--draft-vocabulary 40 --batch-tokens 200 --lr 0.003"
).split()
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node 2 -m fspad_bench".split()


@pytest.fixture
def data(tmp_path):
    generator = torch.Generator().manual_seed(5)
    rows = [
        {
            "prompt": [1, 2, 3 + i % 7],
            "response": torch.randint(0, 20, (9 + i % 30,), generator=generator).tolist(),
        }
        for i in range(80)
    ]
    path = tmp_path / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(data, tmp_path):
    def command(output, *more, launcher=("-m", "fspad_bench")):
        words = [*launcher, "train", *SETTINGS, "--data", data]
        words += ["--output", tmp_path / output, *more]
        env = os.environ | {
            "FSPAD_BENCH_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return [sys.executable, *map(str, words)], env

    return command


def weights(folder):
    return load_file(folder / "head.safetensors")


def run(command):
    words, env = command
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_a_killed_training_resumes_and_a_running_one_is_left_alone(command, tmp_path):
    run(command("whole", "--epochs", "3"))
    words, env = command("killed", "--epochs", "3", "--checkpoint-every", "0")
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    curve = tmp_path / "killed" / "curve.csv"
    while not (curve.exists() and len(curve.read_text().splitlines()) > 3):
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # or it might end while the second one starts
    second = subprocess.run(words, env=env, capture_output=True, text=True)
    assert second.returncode == 2
    assert f"killed is in use by process {process.pid} on" in second.stderr
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "head.safetensors").exists()
    again = run(command("killed", "--epochs", "3"))
    assert "resuming at step" in again.stderr
    whole = weights(tmp_path / "whole")
    killed = weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_two_processes_learn_what_one_does(command, tmp_path):
    """Under torchrun, which sets the variables that `accelerate launch` sets for several GPUs."""
    run(command("one", "--epochs", "2"))
    done = run(command("two", "--epochs", "2", launcher=TORCHRUN))
    facts = [json.loads((tmp_path / name / "head.json").read_text()) for name in ("one", "two")]
    assert [head["processes"] for head in facts] == [1, 2]
    assert done.stdout.count("feature_loss:") == 1
    for name in ("feature_loss", "logit_loss"):
        one, two = (head["held_out"][name] for head in facts)
        assert two == pytest.approx(one, rel=2e-3)
    one = weights(tmp_path / "one")
    two = weights(tmp_path / "two")
    gap = max(float((one[name].float() - two[name].float()).abs().max()) for name in one)
    assert gap < 0.01


def test_own_data_and_live_features(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    words, _ = command(
        "self", "--data", "self", "--tokens", "300", "--epochs", "1", "--live", "--unroll", "2"
    )
    assert cli.main(words[3:]) == 0
    facts = json.loads((tmp_path / "self" / "head.json").read_text())
    overlap = json.loads((tmp_path / "self" / "data" / "overlap.json").read_text())
    assert facts["recipe"]["unroll"] == 2
    assert facts["conversations"] > 80
    assert facts["parameters"] > 0
    assert overlap["rows"] > 0
    assert set(overlap["prompts"]) >= {"mt_bench@bundled", "gsm8k@bundled"}
    assert "tokens_per_step:" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "features").exists()
