"""Targets whose weights are shared among processes that were started for them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
import torch
from doubles import assert_same_scores
from safetensors import SafetensorError
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor
from transformers import GPTNeoXConfig, LlamaConfig

from fspad_bench.benchmark.evidence import distributions
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.integrations.transformers_generate import StockGenerate
from fspad_bench.lossless.checks import ELSEWHERE, PASS
from fspad_bench.lossless.engine import ONE, check_engine
from fspad_bench.lossless.proofs import check_greedy
from fspad_bench.lossless.reference import Reference
from fspad_bench.models import shares
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import CONFIG, tiny_model
from fspad_bench.util.errors import BenchError
from fspad_bench.util.registry import DECODERS, names

SKIP_LAYERS = {"swift", "gsd", "draft_model"}  # unless they are given a draft model
TWO = "cpu:0+cpu:1"  # a rehearsal: two processes on one processor


@pytest.fixture(scope="module")
def one():
    return load_target("tiny")


@pytest.fixture(scope="class")
def two():
    target = load_target("tiny", device=TWO)
    yield target
    target.team.close()


@pytest.mark.wide
class TestTwoProcesses:
    def test_say_so(self, two):
        assert str(two.placement) == TWO
        assert not two.placement.is_single
        assert two.forward_name == "stock, each layer shared among 2 devices"
        assert two.entry_bytes == load_target("tiny").entry_bytes

    def test_have_the_scores_of_one_device(self, one, two):
        assert_same_scores(two, one)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("name", names(DECODERS))
    def test_give_every_decoder_vanillas_tokens(self, one, two, name, temperature):
        sampler = Sampler(temperature=temperature)
        limit = Limit(12)
        expected = build_decoder("vanilla", one).generate(one, sampler, [3, 4, 5], limit).tokens
        if name in SKIP_LAYERS:
            with pytest.raises(BenchError, match="its stock forward, which skips no layers"):
                build_decoder(name, two)
            return
        decoder = build_decoder(name, two)
        assert decoder.generate(two, sampler, [3, 4, 5], limit).tokens == expected

    def test_audit_and_test_outputs_like_one_device(self, one, two):
        precise = two.team.precise(two.model, torch.float64)
        expected = one.team.precise(one.model, torch.float64)
        text = [3, 4, 5, 6, 7]
        ours = precise.logits(text, 2)
        torch.testing.assert_close(ours, expected.logits(text, 2), atol=1e-9, rtol=0)
        sampler = Sampler(temperature=1.0)
        rows = [list(distributions(t, text[:2], text[2:], sampler)) for t in (one, two)]
        for left, right in zip(*rows, strict=True):
            torch.testing.assert_close(left, right, atol=1e-9, rtol=0)

    def test_pass_a_certification_of_their_engine(self, two):
        checks = check_engine(Reference(two), ONE, "shared")
        assert [check.verdict for check in checks if check.verdict != PASS] == [ELSEWHERE]
        assert check_greedy(two, [[3, 4, 5]], 8).verdict == ELSEWHERE

    def test_refuse_decoders_that_need_the_model_in_one(self, two):
        with pytest.raises(BenchError, match="shared among several"):
            StockGenerate(two)

    def test_are_one_target_a_process(self, two):
        with pytest.raises(BenchError, match="part of a group already"):
            load_target("tiny", device=TWO)


COMMAND = ("run", "--decoder", "prompt_lookup", "--task", "gsm8k", "--target", "tiny")


def started(folder, *more):
    words = [
        sys.executable,
        "-m",
        "fspad_bench",
        *COMMAND,
        "--device",
        TWO,
        "--limit",
        "3",
        "--max-new-tokens",
        "24",
    ]
    words += ["--output", str(folder), *more]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def children(process):
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    )
    return [int(number) for number in found.stdout.split()]


def first_sample(folder):
    """Wait until something was measured."""
    for _ in range(600):
        if any('"kind": "sample"' in path.read_text() for path in folder.glob("*.jsonl")):
            return
        sleep(0.1)
    pytest.fail("nothing was measured")


@pytest.mark.wide
def test_a_process_that_is_killed_ends_the_run_which_goes_on_from_there(tmp_path):
    run = started(tmp_path)
    first_sample(tmp_path)
    (follower,) = children(run)
    os.kill(follower, signal.SIGKILL)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "the target is lost: a process that holds a share of it has ended" in said
    assert "same command again" in said
    assert "Traceback" not in said
    again = started(tmp_path)
    out, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "1 of 1 rows identical to vanilla, token for token" in out


@pytest.mark.wide
def test_the_others_end_with_a_leader_that_is_killed(tmp_path):
    run = started(tmp_path)
    first_sample(tmp_path)
    (follower,) = children(run)
    run.kill()
    run.communicate(timeout=60)
    for _ in range(300):
        if not Path(f"/proc/{follower}").exists():
            return
        sleep(0.1)
    pytest.fail("it waits for a leader that is gone")


def saved(tmp_path, **changes):
    tiny_model(LlamaConfig(**CONFIG.to_dict() | changes)).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("devices", "changes", "reason"),
    [
        (["cpu:0", "cpu:1", "cpu:2"], {}, "num_attention_heads is 4, which 3 devices"),
        (["cpu:0", "cpu:1"], {"num_key_value_heads": 1}, "num_key_value_heads is 1, which 2"),
        (["cpu:0", "cpu:1"], {"intermediate_size": 161}, "intermediate_size is 161, which 2"),
    ],
)
def test_weights_that_cannot_be_shared_evenly_are_refused(tmp_path, devices, changes, reason):
    with pytest.raises(BenchError, match=reason) as caught:
        shares.start(saved(tmp_path, **changes), devices, torch.float64)
    assert "another number of devices" in caught.value.hint


def test_devices_of_another_kind_are_refused(tmp_path):
    with pytest.raises(BenchError, match="shared among CUDA devices only"):
        shares.check(saved(tmp_path), ["xpu:0", "xpu:1"])


def test_a_rehearsal_is_refused_beside_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BenchError, match="this has one") as caught:
        shares.check(saved(tmp_path), ["cpu:0", "cpu:1"])
    assert "CUDA_VISIBLE_DEVICES" in caught.value.hint


def test_an_architecture_without_a_plan_is_refused():
    config = GPTNeoXConfig()
    config.base_model_tp_plan = None
    with pytest.raises(BenchError, match="no tensor parallel plan for 'gpt_neox'"):
        shares._plan_of(config)


@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_a_process_that_does_not_start_is_an_error(tmp_path, monkeypatch, delay):
    """It may end before it is told anything, or after."""
    tell = shares.Popen

    def slow(*words, **options):
        process = tell(*words, **options)
        sleep(delay)
        return process

    monkeypatch.setattr(shares.sys, "executable", "/bin/false")
    monkeypatch.setattr(shares, "Popen", slow)
    with pytest.raises(BenchError, match="did not start"):
        shares.start(saved(tmp_path), ["cpu:0", "cpu:1"], torch.float64)


@pytest.mark.wide
def test_weights_that_one_process_cannot_load_end_all(tmp_path):
    folder = saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "tokenizer.json").write_bytes(b"")
    with pytest.raises((BenchError, OSError, SafetensorError)):
        shares.start(folder, ["cpu:0", "cpu:1"], torch.float64)
    assert not torch.distributed.is_initialized()


def test_a_model_that_others_shared_out_is_refused(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = DeviceMesh("cpu", [0])
        model = tiny_model()
        layer = model.model.layers[0].mlp.up_proj
        layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight, mesh, [Shard(0)]))
        with pytest.raises(BenchError, match="started elsewhere") as caught:
            TransformersTarget(model, None)
        assert "cuda:0+cuda:1" in caught.value.hint
    finally:
        torch.distributed.destroy_process_group()
