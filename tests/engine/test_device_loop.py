"""The loop on the device equals the loop on the host step for step, and a step needs no sync."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import NotFiniteError, Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts import measure
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.policy import FixedTree
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.device_loop import DeviceLoop, repeated, runs_on_device
from fspad_bench.models.load import load_target
from fspad_bench.util.registry import DECODERS, names

CPU = torch.device("cpu")
PROMPTS = [[40, 41, 42] * 3, list(range(20, 50)), [7]]
SAMPLERS = [Sampler(), Sampler(1.0, seed=4), Sampler(0.8, top_k=30, top_p=0.9, seed=5)]
ON_DEVICE = [name for name in names(DECODERS) if name in ("vanilla", "eagle", "eagle3", "fspad")]


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    return load_target("tiny")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("length", [1, 2, 16])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "T=1", "cut"])
@pytest.mark.parametrize("decoder", ON_DEVICE)
def test_device_and_host_agree_step_for_step(target, decoder, sampler, length):
    built = build_decoder(
        decoder, target, {} if decoder == "vanilla" else {decoder: {"tree": "fixed"}}
    )
    for prompt in PROMPTS:
        limit = Limit(length, target.stop_ids)
        device = built.loop.generate(sampler, prompt, limit)
        host = generate(target, built.drafter, sampler, prompt, limit)
        assert device.tokens == host.tokens
        assert device.committed == host.committed
        assert device.forwards == host.forwards == len(device.committed)
        assert device.draft_seconds is device.score_seconds is None


@pytest.mark.sampled(3)
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
    built = build_decoder("fspad", target, {"fspad": shape})
    for sampler in SAMPLERS:
        limit = Limit(24)
        device = built.loop.generate(sampler, PROMPTS[0], limit)
        host = generate(target, built.drafter, sampler, PROMPTS[0], limit)
        assert device.tokens == host.tokens
        assert device.committed[:-1] == host.committed[:-1]
        assert device.drafted[0] == host.drafted[0]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("decoder", ON_DEVICE)
def test_certification_holds_the_device_to_identity(target, decoder, monkeypatch):
    from fspad_bench.lossless import identity

    def verdicts():
        checks = identity.check(lambda: build_decoder(decoder, target, {}), target, grid, vanilla)
        return {check.name: check.verdict for check in checks if "device" in check.name}

    monkeypatch.setattr(identity, "LENGTHS", [1, 2, 7, 16, 33])
    grid = identity.cells(target)[:5]
    vanilla = identity.reference(target, grid)
    assert verdicts() == {"identity, device": "PASS", "cache, device": "PASS"}
    compact_late(target, monkeypatch)
    if decoder != "vanilla":  # its entries never move
        assert "FAIL" in verdicts().values()


def compact_late(target, monkeypatch):
    """Let the kernels move accepted entries one slot too far."""
    compact = target.kernels.compact
    late = target.kernels._replace(
        compact=lambda entries, length, walk: compact(entries, length + 1, walk)
    )
    monkeypatch.setattr(target.attention, "kernels", late)


def test_a_wrong_compaction_changes_the_tokens(target, monkeypatch):
    limit = Limit(40, target.stop_ids)
    expected = build_decoder("fspad", target, {}).loop.generate(SAMPLERS[1], PROMPTS[0], limit)
    compact_late(target, monkeypatch)
    late = build_decoder("fspad", target, {}).loop.generate(SAMPLERS[1], PROMPTS[0], limit)
    assert late.tokens != expected.tokens


def test_a_longer_prompt_needs_another_cache(target):
    built = build_decoder("fspad", target, {})
    for prompt in (PROMPTS[0], list(range(90)) * 8, PROMPTS[0]):
        limit = Limit(12, target.stop_ids)
        assert (
            built.loop.generate(SAMPLERS[1], prompt, limit).tokens
            == generate(target, built.drafter, SAMPLERS[1], prompt, limit).tokens
        )


SYNCING = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "lift_fresh",
        "unique_dim",
    )
}


@contextmanager
def no_sync():
    """Fail where the host reads a value of the device, or makes one there: it would wait."""

    class Silent(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            assert operation.overloadpacket._qualified_op_name not in SYNCING
            return operation(*args, **(kwargs or {}))

    with Silent():
        yield


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "T=1", "cut"])
@pytest.mark.parametrize("decoder", ON_DEVICE)
def test_a_step_needs_no_sync(target, decoder, sampler):
    built = build_decoder(decoder, target, {})
    built.loop.generate(sampler, PROMPTS[0], Limit(4))
    (replay,) = built.loop.replays.values()
    with no_sync(), torch.inference_mode():
        replay()


def test_a_sync_is_noticed():
    with pytest.raises(AssertionError), no_sync():
        int(torch.ones(1).argmax())


def test_other_decoders_stay_with_the_host(target, tiny):
    assert build_decoder("prompt_lookup", target, {}).loop is None
    assert build_decoder("fspad", target, {"fspad": {"verify": "rejection"}}).loop is None
    more_entries_than_bits = {"depth": "20", "top_k": "10"}
    assert build_decoder("fspad", target, {"fspad": more_entries_than_bits}).loop is None
    assert build_decoder("fspad", tiny, {}).loop is None
    assert PromptLookup(target).device_drafter() is None


class Silent(Vanilla):
    """Inherits what vanilla has for the device, and drafts otherwise."""

    def propose(self, context, budget):
        return Tree.chain(context.tokens[-1], [5])


class Lossy(Vanilla):
    @staticmethod
    def rule(tree, logits, sampler, position):
        return match(tree, logits, sampler, position)


def test_a_decoder_that_inherits_the_loop_of_another_is_run_as_it_is(target):
    for kind in (Silent, Lossy):
        decoder = Decoder("mine", target, drafter=kind(target))
        assert decoder.drafter.device_drafter() is not None
        assert decoder.loop is None
    assert Decoder("vanilla", target, drafter=Vanilla(target)).loop is not None


def test_a_target_without_kernels_has_no_device_loop(target, tiny):
    assert runs_on_device(target)
    assert not runs_on_device(tiny)
    drafter = build_decoder("vanilla", target, {}).drafter.device_drafter()
    with pytest.raises(ValueError, match="tiny has no kernels"):
        DeviceLoop(tiny, drafter)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0, seed=2)], ids=["greedy", "T=1"])
def test_an_adaptive_tree_has_one_shape_on_a_device(target, sampler):
    built = build_decoder("fspad", target, {"fspad": {"tree": "auto", "nodes": "20"}})
    loop = built.loop
    shape = built.drafter.shape
    assert built.drafter.policies == {True: shape, False: shape}
    assert isinstance(shape, FixedTree)
    assert (loop.drafter.nodes, loop.drafter.depth) == (shape.nodes, shape.depth)
    assert built.options["captured_nodes"] == shape.nodes
    assert 2 <= shape.nodes <= 20
    limit = Limit(24, target.stop_ids)
    device = loop.generate(sampler, PROMPTS[0], limit)
    host = generate(target, built.drafter, sampler, PROMPTS[0], limit)
    assert (device.tokens, device.committed) == (host.tokens, host.committed)


def test_costs_of_captured_and_of_hosted_drafting_are_kept_apart(target, monkeypatch):
    keys = []

    def measured(target, about, measure_draft, **options):
        keys.append(about)
        return costs.TINY

    monkeypatch.setattr(costs, "measure", measured)
    for options in (
        {"tree": "auto"},
        {"tree": "auto", "verify": "rejection", "drafting": "ranked"},
    ):
        build_decoder("fspad", target, {"fspad": options}).prepare()
    captured, *hosted = keys
    assert captured["captured"]
    assert len(hosted) == 2
    assert captured not in hosted


def test_drafting_is_timed_as_it_is_replayed(target):
    drafter = build_decoder("fspad", target, {}).drafter
    ((first, level),) = measure._captured_seconds(target, drafter.draft, drafter.options, [32])
    assert 0 <= level < 20 * first < 20


def test_a_step_can_be_repeated(target, monkeypatch):
    sessions = []
    opened = target.session

    def session(*arguments, **options):
        sessions.append(opened(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(target, "session", session)
    prompt = list(range(40))
    run = repeated(target, Tree.chain(41, [42, 43, 44]), prompt)
    run()
    (repeating,) = sessions
    entries = repeating.cache.entries.clone()
    run()
    end = len(prompt) + 1
    assert torch.equal(entries[..., :end, :], repeating.cache.entries[..., :end, :])
    with target.session(48) as other:
        other.prefill(prompt)
        assert other.cache is not repeating.cache
        assert other.score(Tree.root(41)).logits.isfinite().all()
        kept = other.cache.entries[..., :end, :]
        torch.testing.assert_close(kept, entries[..., :end, :], rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ON_DEVICE)
def test_on_a_gpu_a_step_is_a_graph_without_syncs(decoder):
    target = load_target("tiny", device="cuda", dtype="float32")
    built = build_decoder(decoder, target, {})
    for sampler in SAMPLERS:
        limit = Limit(40, target.stop_ids)
        before = set(built.loop.replays)
        device = built.loop.generate(sampler, PROMPTS[0], limit)
        assert device.tokens == generate(target, built.drafter, sampler, PROMPTS[0], limit).tokens
        (kind,) = set(built.loop.replays) - before
        replay = built.loop.replays[kind]
        assert replay.graph is not None
        torch.cuda.set_sync_debug_mode("error")
        try:
            replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def damaged(target, token):
    """Return a forward after which the features of this token are not finite."""
    real = target.fused.__class__.__call__

    def forward(self, tokens, *arguments, **options):
        features, captured = real(self, tokens, *arguments, **options)
        return features.masked_fill((tokens == token)[:, None], float("nan")), captured

    return forward


@pytest.mark.sampled(3)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "T=1", "cut"])
@pytest.mark.parametrize("decoder", ON_DEVICE)
def test_logits_that_are_not_finite_end_the_generation(target, decoder, sampler, monkeypatch):
    options = {} if decoder == "vanilla" else {decoder: {"tree": "fixed"}}
    built = build_decoder(decoder, target, options)
    tokens = built.loop.generate(sampler, PROMPTS[0], Limit(15)).tokens
    broken = next(token for token in reversed(tokens[:-1]) if token not in PROMPTS[0])
    position = len(PROMPTS[0]) + tokens.index(broken) + 1
    monkeypatch.setattr(target.fused.__class__, "__call__", damaged(target, broken))
    for generation in (
        lambda limit: built.loop.generate(sampler, PROMPTS[0], limit),
        lambda limit: generate(target, built.drafter, sampler, PROMPTS[0], limit),
    ):
        with pytest.raises(NotFiniteError, match="are not finite"):
            generation(Limit(15))
        if decoder == "vanilla":  # a tree may have been accepted beyond the limit
            before = generation(Limit(position - len(PROMPTS[0])))
            assert before.tokens == tokens[: position - len(PROMPTS[0])]


def class_of_three(input_ids, scores):
    """Forbid a third of the tokens, by the last one."""
    scores[0, int(input_ids[0, -1]) % 3 :: 3] = -torch.inf
    return scores


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(processors=(class_of_three,)),
        Sampler(1.0, seed=3, processors=(class_of_three,)),
        Sampler(1.0, min_p=0.05, seed=3),
    ],
    ids=["greedy", "T=1", "min-p"],
)
def test_what_no_kernel_knows_is_run_by_the_host(target, tiny, sampler):
    limit = Limit(20)
    expected = build_decoder("vanilla", tiny).generate(tiny, sampler, PROMPTS[0], limit).tokens
    for name in ("vanilla", "fspad"):
        decoder = build_decoder(name, target)
        assert decoder.loop is not None
        generation = decoder.generate(target, sampler, PROMPTS[0], limit)
        assert generation.tokens == expected
        assert generation.score_seconds is not None  # steps of the host
        with pytest.raises(ValueError, match="on the host alone"):
            decoder.loop.generate(sampler, PROMPTS[0], limit)
