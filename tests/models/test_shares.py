"""Targets whose weights are shared among processes that were started for them."""

import os
import signal

import pytest
import torch
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor
from transformers import GPTNeoXConfig, LlamaConfig

from fspad_bench.benchmark.evidence import distributions
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.build import build_decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models import shares
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import CONFIG, tiny_model
from fspad_bench.util import machine
from fspad_bench.util.errors import BenchError, TargetLost
from fspad_bench.util.registry import DECODERS, names

SKIP_LAYERS = {"swift", "gsd", "draft_model"}  # unless they are given a draft model
TWO = "cpu:0+cpu:1"  # a rehearsal: two processes on one processor


@pytest.fixture(scope="module")
def one():
    return load_target("tiny")


@pytest.fixture(scope="module")
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
        tree = Tree([5, 6, 7, 8, 9], [-1, 0, 0, 1, 2])
        scores = []
        for target in (one, two):
            with target.session(40, capture=(0, 1, 2)) as session:
                found = [session.prefill([1, 2, 3]), session.score(tree)]
                session.commit([0, 2, 4])
                scores.append([*found, session.score(Tree.root(11))])
        for ours, expected in zip(scores[1], scores[0], strict=True):
            torch.testing.assert_close(ours.logits, expected.logits, atol=1e-9, rtol=0)
            torch.testing.assert_close(ours.features, expected.features, atol=1e-9, rtol=0)

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

    def test_are_one_target_a_process(self, two):
        with pytest.raises(BenchError, match="part of a group already"):
            load_target("tiny", device=TWO)


@pytest.mark.wide
def test_a_process_that_is_killed_loses_the_target(two):
    """It comes last: the module's target is gone afterwards."""
    (process,) = two.team.processes
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(TargetLost, match="ended"), two.session(40) as session:
        session.prefill([1, 2, 3])
    two.team.close()
    assert machine._seconds_of(process.pid) == 0.0
    again = load_target("tiny", device=TWO)
    again.team.close()


def saved(tmp_path, **changes):
    tiny_model(LlamaConfig(**CONFIG.to_dict() | changes)).save_pretrained(tmp_path)
    return str(tmp_path)


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


def test_a_process_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shares.sys, "executable", "/bin/false")
    with pytest.raises(BenchError, match="did not start"):
        shares.start(saved(tmp_path), ["cpu:0", "cpu:1"], torch.float64)


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
