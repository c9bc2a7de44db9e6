"""A target: scores against token-by-token decoding and a fresh prefill; its caches and counts."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from doubles import ARCHITECTURES, VOCABULARY, random_model, random_target, random_tree

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match, rejection
from fspad_bench.engine import gpu
from fspad_bench.engine.session import LARGEST_TREE, Session
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.scripted import line_of
from fspad_bench.util.errors import BenchError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
NAMES = [*ARCHITECTURES, "not fused"]


def prefilled(target: TransformersTarget, tokens: list[int], room: int = 0) -> Session:
    session = target.session(len(tokens) + room)
    session.prefill(tokens)
    return session


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def assert_same(values: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(values, expected, rtol=0, atol=tolerance)


def one_by_one(target: TransformersTarget, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Return the logits after the last of `tokens`, each scored alone."""
    with prefilled(target, prompt, len(tokens)) as session:
        for token in tokens:
            scores = session.score(Tree.root(token))
            session.commit([0])
    return scores.logits[0]


def assert_cache_is_of(session: Session, tokens: list[int], tolerance: float = 1e-9) -> None:
    """Check that every committed entry equals that of a fresh prefill of the same tokens."""
    assert session.length == len(tokens)
    with prefilled(session.target, tokens) as fresh:
        entries = [each.cache.entries[..., : len(tokens), :] for each in (session, fresh)]
        assert_same(*entries, tolerance)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_a_tree_in_one_forward_equals_its_paths_token_by_token(name, dtype):
    target = random_target(name, dtype)
    rng = random.Random(name)
    for prefix, nodes, reach in ((1, 12, 128), (23, 30, 6)):
        prompt = random_tokens(rng, prefix)
        tree = random_tree(rng, nodes, VOCABULARY, reach=reach)
        with prefilled(target, prompt) as session:
            logits = session.score(tree).logits
        for node in rng.sample(range(nodes), 8):
            alone = one_by_one(target, prompt, [tree.tokens[i] for i in line_of(tree, node)])
            assert_same(logits[node], alone, TOLERANCE[dtype])


@pytest.mark.parametrize("kernels", ["host", "reference"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "not fused"])
def test_a_tree_in_parts_equals_the_tree_at_once(name, kernels, monkeypatch):
    """The parts hold nodes of any depths, also such that skip one, or fall."""
    monkeypatch.setenv(gpu.VARIABLE, kernels)
    target = random_target(name)
    rng = random.Random(name)
    prompt = random_tokens(rng, 9)
    for _ in range(6):
        tree = random_tree(rng, 30, VOCABULARY, reach=rng.choice([2, 5, 128]))
        cuts = [0, *sorted(rng.sample(range(1, 30), rng.randrange(1, 8))), 30]
        with prefilled(target, prompt) as session, prefilled(target, prompt) as other:
            whole = session.score(tree)
            parts = [
                other.extend(tree.tokens[start:end], tree.parents[start:end])
                for start, end in pairwise(cuts)
            ]
            assert_same(torch.cat([part.logits for part in parts]), whole.logits)
            assert_same(torch.cat([part.features for part in parts]), whole.features)
            end = len(prompt) + len(tree)
            entries = [each.cache.entries[..., :end, :] for each in (other, session)]
            assert_same(*entries)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_steps_of_score_and_commit_equal_a_fresh_prefill(name, dtype):
    target = random_target(name, dtype)
    rng = random.Random(name)
    tokens = random_tokens(random.Random(1), 9)
    session = prefilled(target, tokens, 200)
    for nodes in (1, 2, 40, 1, 128, 7):
        tree = random_tree(rng, nodes, VOCABULARY, reach=4)
        session.score(tree)
        path = line_of(tree, rng.randrange(nodes))
        session.commit(path)
        tokens = tokens + [tree.tokens[node] for node in path]
        assert_cache_is_of(session, tokens, TOLERANCE[dtype])
    fresh = prefilled(target, tokens)
    pair = [each.score(Tree.chain(3, [4, 5])) for each in (session, fresh)]
    assert_same(pair[0].logits, pair[1].logits, TOLERANCE[dtype])
    assert_same(pair[0].features, pair[1].features, TOLERANCE[dtype])


@torch.inference_mode()
def test_a_prefill_returns_the_last_logits_and_all_features(tiny):
    with tiny.session(24) as session:
        scores = session.prefill(list(range(20)))
    assert scores.logits.shape == (1, 97)
    assert scores.features.shape == (20, 64)
    assert_same(tiny.lm_head(scores.features[-1:]), scores.logits, 1e-12)
    assert not scores.logits.requires_grad


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_lm_head_maps_features_to_logits(name):
    target = random_target(name)
    with prefilled(target, [1, 2, 3]) as session:
        scores = session.score(Tree([5, 6, 7], [-1, 0, 0]))
    assert_same(target.lm_head(scores.features), scores.logits, 1e-12)
    assert scores.features.shape == (3, 32)


@pytest.mark.parametrize("name", ["llama", "not fused"])
def test_prompts_of_any_size_follow_each_other(name):
    """The cache grows when it must, and holds nothing of the prompt before."""
    target = random_target(name)
    rng = random.Random(0)
    slots = []
    for size, room in ((3, 2), (60, 30), (5, 100), (120, 80), (2, 2), (200, 1)):
        prompt = random_tokens(rng, size)
        tree = random_tree(rng, 128, VOCABULARY)
        with target.session(size + room) as session:
            first = session.prefill(prompt)
            last = session.score(tree)
            path = line_of(tree, 127)
            session.commit(path)
            assert_cache_is_of(session, prompt + [tree.tokens[node] for node in path])
            slots.append(session.cache.slots)
        other = random_target(name).session(size + room)
        assert_same(first.logits, other.prefill(prompt).logits)
        assert_same(last.logits, other.score(tree).logits)
    assert slots == sorted(slots)
    assert all(count >= size for count, size in zip(slots, (5, 90, 105, 200, 4, 201), strict=True))


def test_a_session_may_be_prefilled_again_with_any_prompt_that_fits():
    target = random_target("llama")
    rng = random.Random(2)
    session = target.session(60)
    for size in (3, 60, 1, 40, 60):
        prompt = random_tokens(rng, size)
        first = session.prefill(prompt)
        session.score(random_tree(rng, 100, VOCABULARY))  # left pending
        assert_same(first.logits, random_target("llama").session(size).prefill(prompt).logits)
    with pytest.raises(RuntimeError, match="do not fit a session"):
        session.prefill(random_tokens(rng, 60 + LARGEST_TREE + 1))


class TestCaches:
    def test_room_once_allocated_is_kept(self):
        """A graph that a device captured stays valid for every prompt that fits."""
        target = random_target("llama")
        target.reserve(200)
        entries = []
        for length in (5, 140, 3):
            with target.session(length + 60) as session:
                session.prefill(random_tokens(random.Random(1), length))
                entries.append(session.cache.entries)
        assert all(held is entries[0] for held in entries)
        with target.session(250) as session:
            assert session.cache.entries is not entries[0]

    def test_open_sessions_share_nothing(self):
        target = random_target("llama")
        with target.session(9) as first, target.session(9) as second:
            assert first.cache is not second.cache
            first.prefill([1, 2, 3])
            second.prefill([4, 5, 6, 7])
            assert first.score(Tree.root(3)).logits.equal(
                prefilled(target, [1, 2, 3]).score(Tree.root(3)).logits
            )

    def test_a_cache_is_handed_back_once(self):
        target = random_target("llama")
        session = target.session(9)
        session.close()
        session.close()
        with target.session(9) as first, target.session(9) as second:
            assert first.cache is session.cache
            assert second.cache is not session.cache

    def test_a_closed_session_cannot_write_to_anothers_cache(self):
        target = random_target("llama")
        closed = prefilled(target, [1, 2, 3])
        closed.close()
        with prefilled(target, [4, 5, 6]) as session:
            assert session.cache is closed.cache
            with pytest.raises(RuntimeError, match="the session is closed"):
                closed.prefill([7])
            with pytest.raises(RuntimeError, match="the session is closed"):
                closed.score(Tree.root(7))
            assert_cache_is_of(session, [4, 5, 6])


class TestForwards:
    def test_every_forward_is_counted(self, tiny):
        before = tiny.forwards
        partial = tiny.partial_forwards
        with tiny.session(7) as session:
            session.prefill([1, 2])
            session.score(Tree.chain(3, [4, 5]))
            session.commit([0])
            session.score(Tree.root(3))
            assert tiny.forwards == before + 3
            assert session.length == 3  # pending entries do not count
        assert tiny.partial_forwards == partial

    def test_those_of_some_layers_are_counted_apart(self, tiny):
        before = tiny.forwards, tiny.partial_forwards
        with tiny.session(7) as session:
            session.prefill([1, 2])
            sharing = tiny.session(0, layers=LayerPlan(frozenset([1])), share=session)
            with sharing:
                sharing.extend([3], [-1])
                sharing.extend([4, 5], [0, 0])
            session.score(Tree.root(3))
        assert (tiny.forwards, tiny.partial_forwards) == (before[0] + 2, before[1] + 2)

    def test_those_of_the_device_loop_too(self, tiny):
        before = tiny.forwards
        with tiny.session(7) as session:
            session.prefill([1, 2])
            session.advance(3)
            assert session.length == 5
        assert tiny.forwards == before + 2

    def test_a_refused_tree_is_no_forward(self, tiny):
        with tiny.session(7) as session:
            session.prefill([1, 2])
            before = tiny.forwards
            with pytest.raises(BenchError):
                session.score(Tree.root(97))
        assert tiny.forwards == before


def test_match_is_carried_out_by_kernels_and_other_rules_are_not(monkeypatch):
    assert random_target("llama").verifier(match) is match
    monkeypatch.setenv(gpu.VARIABLE, "reference")
    target = random_target("llama")
    assert target.verifier(match) is not match
    assert target.verifier(rejection) is rejection


@pytest.mark.parametrize(("end", "ids"), [(5, {5}), ([5, 0], {0, 5}), (0, {0}), (None, set())])
def test_stop_ids_are_those_of_the_generation_settings(end, ids):
    model = random_model("llama")
    model.generation_config.eos_token_id = end
    assert TransformersTarget(model, None).stop_ids == ids


@pytest.mark.parametrize(
    ("name", "options"), [("llama", {}), ("mistral", {}), ("llama", {"hidden_act": "gelu"})]
)
def test_a_targets_model_generates_by_itself_but_takes_no_padding(name, options):
    """What its attention would not see is refused; prompts of one length may share a batch."""
    target = random_target(name, **options)
    ids = torch.tensor([[5, 9, 1, 30], [7, 2, 2, 8]])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    given = target.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert torch.equal(given, random_model(name, **options).generate(ids, **settings))
    padded = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with pytest.raises(BenchError, match="takes no padding"):
        target.model.generate(ids, attention_mask=padded, **settings)
