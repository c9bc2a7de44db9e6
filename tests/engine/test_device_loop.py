"""The loop on the device says, round for round, what the loop on the host says, and asks the host nothing meanwhile."""

import gc
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.build import build
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.registry import DECODERS, names
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.policy import FixedSize
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.device_loop import Replay, repeated
from fspad_bench.engine.gpu.tensors import Law
from fspad_bench.lossless import identity
from fspad_bench.models.load import load_target

CPU = torch.device("cpu")
PROMPTS = [[40, 41, 42] * 3, list(range(20, 50)), [7]]
LAWS = [Sampler(), Sampler(1.0, seed=4), Sampler(0.8, top_k=30, top_p=0.9, seed=5)]
GROWING = [name for name in names(DECODERS) if name in ("vanilla", "eagle", "fspad")]


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    return load_target("tiny")


@pytest.mark.parametrize("length", [1, 2, 15, 40])
@pytest.mark.parametrize("sampler", LAWS, ids=["greedy", "T=1", "cut"])
@pytest.mark.parametrize("decoder", GROWING)
def test_device_and_host_agree_round_for_round(target, decoder, sampler, length):
    method = build(decoder, target, {} if decoder == "vanilla" else {decoder: {"tree": "fixed"}})
    for prompt in PROMPTS:
        limit = Limit(length, target.stop_ids)
        found, wanted = (
            method.loop.generate(sampler, prompt, limit),
            generate(target, method.decoder, sampler, prompt, limit),
        )
        assert found.tokens == wanted.tokens
        assert found.committed == wanted.committed
        assert found.forwards == wanted.forwards == len(found.committed)


@pytest.mark.parametrize(
    "shape",
    [
        {"nodes": "2", "depth": "1", "top_k": "1"},
        {"nodes": "8", "depth": "4", "top_k": "1"},
        {"nodes": "60", "depth": "3", "top_k": "5"},
        {"nodes": "60", "depth": "6", "top_k": "10"},
        {"nodes": "100", "depth": "2", "top_k": "6"},
        {"nodes": "8", "depth": "7", "top_k": "2"},
        {"nodes": "16", "depth": "3", "drafting": "ranked"},
    ],
    ids=lambda shape: "-".join(shape.values()),
)
def test_trees_of_any_shape(target, shape):
    method = build("fspad", target, {"fspad": shape})
    for sampler in LAWS:
        limit = Limit(30)
        found = method.loop.generate(sampler, PROMPTS[0], limit)
        wanted = generate(target, method.decoder, sampler, PROMPTS[0], limit)
        assert (found.tokens, found.committed[:-1]) == (wanted.tokens, wanted.committed[:-1])
        assert found.drafted[0] == wanted.drafted[0]


@pytest.mark.parametrize("decoder", GROWING)
def test_certification_holds_the_device_to_identity(target, decoder, monkeypatch):
    def found():
        checks = identity.check(lambda: build(decoder, target, {}), target, grid, vanilla)
        return {check.name: check.verdict for check in checks if "device" in check.name}

    grid = identity.cells(target)[:6]
    vanilla = identity.reference(target, grid)
    assert found() == {"identity, device": "PASS", "cache, device": "PASS"}
    compact = target.kernels.compact
    late = target.kernels._replace(
        compact=lambda rows, length, walk: compact(rows, length + 1, walk)
    )
    monkeypatch.setattr(target, "kernels", late)
    if decoder != "vanilla":  # whose rows never move
        assert "FAIL" in found().values()


def test_a_longer_prompt_needs_another_cache(target):
    method = build("fspad", target, {})
    for prompt in (PROMPTS[0], list(range(90)) * 8, PROMPTS[0]):
        limit = Limit(12, target.stop_ids)
        assert (
            method.loop.generate(LAWS[1], prompt, limit).tokens
            == generate(target, method.decoder, LAWS[1], prompt, limit).tokens
        )


@contextmanager
def no_word_to_the_host():
    """Raises where a value would be read on the host, or made there: what a device would have to be waited for."""

    class Silent(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            assert operation.overloadpacket._qualified_op_name.removeprefix("aten::") not in {
                "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh", "unique_dim",
            }  # fmt: skip
            return operation(*args, **(kwargs or {}))

    with Silent():
        yield


@pytest.mark.parametrize("sampler", LAWS, ids=["greedy", "T=1", "cut"])
@pytest.mark.parametrize("decoder", GROWING)
def test_a_round_is_silent(target, decoder, sampler):
    method = build(decoder, target, {})
    method.loop.generate(sampler, PROMPTS[0], Limit(4))
    kind = Law.of(sampler, target.device).kind
    with no_word_to_the_host(), torch.inference_mode():
        method.loop.replays[kind]()


def test_silence_is_noticed_when_broken():
    with pytest.raises(AssertionError), no_word_to_the_host():
        int(torch.ones(1).argmax())


def test_who_has_no_grower_stays_with_the_host(target, tiny):
    assert build("prompt_lookup", target, {}).loop is None
    assert build("fspad", target, {"fspad": {"verify": "rejection"}}).loop is None
    assert (
        build("fspad", target, {"fspad": {"depth": "20", "top_k": "10"}}).loop is None
    )  # more rows than bits
    assert build("fspad", tiny, {}).loop is None
    assert not hasattr(PromptLookup(target), "grower")


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0, seed=2)], ids=["greedy", "T=1"])
def test_a_tree_sized_by_the_machine_has_one_shape_on_a_device(target, sampler):
    method = build("fspad", target, {"fspad": {"tree": "auto", "nodes": "20"}})
    size = method.decoder.sizes[True]
    assert isinstance(size, FixedSize)
    assert (method.loop.grower.nodes, method.loop.grower.depth) == (size.nodes, size.depth)
    assert 2 <= size.nodes <= 20
    limit = Limit(24, target.stop_ids)
    found, hosts = (
        method.loop.generate(sampler, PROMPTS[0], limit),
        generate(target, method.decoder, sampler, PROMPTS[0], limit),
    )
    assert (found.tokens, found.committed) == (hosts.tokens, hosts.committed)


def test_costs_of_captured_and_of_hosted_drafting_are_kept_apart(target, monkeypatch):
    asked = []
    monkeypatch.setattr(
        costs, "of", lambda target, about, measure, **_: asked.append(about) or costs.TINY
    )
    for options in (
        {"tree": "auto"},
        {"tree": "auto", "verify": "rejection", "drafting": "ranked"},
    ):
        build("fspad", target, {"fspad": options})
    assert asked[0] != asked[1]


def test_drafting_is_timed_as_it_is_replayed(target):
    decoder = build("fspad", target, {}).decoder
    ((first, level),) = decoder._replayed(target, [32])
    assert 0 <= level < 20 * first < 20


def test_a_round_can_be_repeated(target):
    prompt = list(range(40))
    run = repeated(target, Tree.chain(41, [42, 43, 44]), prompt)
    run()
    rows, length = target.cache.rows.clone(), 40
    run()
    assert torch.equal(rows[..., : length + 1, :], target.cache.rows[..., : length + 1, :])
    target.prefill(prompt, 8)
    scored = target.score(Tree.root(41))
    assert scored.logits.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", GROWING)
def test_on_a_gpu_a_round_is_a_graph_that_waits_for_nothing(decoder):
    target = load_target("tiny", device="cuda", dtype="float32")
    method = build(decoder, target, {})
    for sampler in LAWS:
        limit = Limit(40, target.stop_ids)
        found = method.loop.generate(sampler, PROMPTS[0], limit)
        assert found.tokens == generate(target, method.decoder, sampler, PROMPTS[0], limit).tokens
        replay = method.loop.replays[Law.of(sampler, target.device).kind]
        assert replay.graph is not None
        torch.cuda.set_sync_debug_mode("error")
        try:
            replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Graphs:
    """Stands for torch.cuda: a capture notes what is run in it and runs nothing."""

    def __init__(self):
        self.seen = []

    def CUDAGraph(self):
        return self

    @contextmanager
    def graph(self, _):
        self.seen.append("capture")
        yield

    def synchronize(self):
        self.seen.append("wait")

    def replay(self):
        self.seen.append("replay")


def test_a_round_is_run_then_captured_then_replayed(monkeypatch):
    graphs = Graphs()
    monkeypatch.setattr(torch, "cuda", graphs)
    replay = Replay(lambda: graphs.seen.append("work"), torch.device("cuda"))
    for _ in range(4):
        replay()
    assert graphs.seen == ["work", "wait", "capture", "work", "replay", "replay", "replay"]


def test_no_garbage_is_collected_while_a_graph_is_captured(monkeypatch):
    """The end of another graph, wherever the collector finds it, would end the capture."""
    graphs, collecting = Graphs(), []
    monkeypatch.setattr(torch, "cuda", graphs)
    replay = Replay(lambda: collecting.append(gc.isenabled()), torch.device("cuda"))
    for _ in range(3):
        replay()
    assert collecting == [True, False]
    assert gc.isenabled()

    def fails():
        raise RuntimeError("no room")

    failing = Replay(fails, torch.device("cuda"))
    failing.runs = 1
    with pytest.raises(RuntimeError, match="no room"):
        failing()
    assert gc.isenabled()
    assert failing.graph is None


def test_without_a_gpu_nothing_is_captured():
    seen = []
    replay = Replay(lambda: seen.append("work"), CPU)
    for _ in range(3):
        replay()
    assert (seen, replay.graph) == (["work"] * 3, None)
