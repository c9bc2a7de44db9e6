"""Sessions against plain transformers in float64.

Trees level by level, skipped sublayers, captured states, sharing.
"""

import random
from itertools import pairwise

import pytest
import torch
from doubles import ARCHITECTURES, VOCABULARY, random_model, random_tree, skip_sublayers

from fspad_bench.core.protocols import ALL, LayerPlan
from fspad_bench.core.tree import Tree
from fspad_bench.engine import gpu
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.engine.target import ContextError, TransformersTarget
from fspad_bench.util.errors import BenchError

TOLERANCE = 1e-9
LAYERS = 5
PROMPT = [5, 9, 1, 30, 30, 2, 17]
PLANS = {
    "one attention": LayerPlan(frozenset({2})),
    "one MLP": LayerPlan(skip_mlp=frozenset({1})),
    "the first layer": LayerPlan(frozenset({0}), frozenset({0})),
    "the last layer": LayerPlan(frozenset({LAYERS - 1}), frozenset({LAYERS - 1})),
    "attentions side by side": LayerPlan(frozenset({1, 2, 3}), frozenset({3})),
    "MLPs alone": LayerPlan(frozenset(range(LAYERS))),
    "attentions alone": LayerPlan(skip_mlp=frozenset(range(LAYERS))),
    "nothing at all": LayerPlan(frozenset(range(LAYERS)), frozenset(range(LAYERS))),
}


def deep_model(name, dtype=torch.float64):
    return random_model(name, dtype, num_hidden_layers=LAYERS)


def target_of(name, dtype=torch.float64):
    return TransformersTarget(deep_model(name, dtype), None)


def stock_features(model, tokens, **options):
    """The stock model's hidden states after the final norm, `[N, d]`."""
    with torch.inference_mode():
        out = model.base_model(input_ids=torch.tensor([tokens]), use_cache=False, **options)
    return out.last_hidden_state[0] if not options else out


def path_of(tree, node):
    return [tree.tokens[i] for i in range(len(tree)) if tree.ancestry[node] >> i & 1]


def assert_close(actual, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


class TestTrees:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_level_by_level_equals_at_once(self, name):
        """In any cut into levels, and equal to the stock forward of each path."""
        dice = random.Random(name)
        tree = random_tree(dice, 24, VOCABULARY, reach=6)
        target = target_of(name)
        with target.session(64) as session:
            session.prefill(PROMPT)
            whole = session.score(tree)
            session.rollback()
            for _ in range(3):
                cuts = sorted({0, len(tree), *dice.sample(range(1, len(tree)), 4)})
                parts = [
                    session.extend(tree.tokens[a:b], tree.parents[a:b]) for a, b in pairwise(cuts)
                ]
                assert_close(torch.cat([part.logits for part in parts]), whole.logits)
                assert_close(torch.cat([part.features for part in parts]), whole.features)
                session.rollback()
        model = deep_model(name)
        for node in (0, 7, 23):
            expected = stock_features(model, PROMPT + path_of(tree, node))[-1]
            assert_close(whole.features[node], expected)

    @pytest.mark.parametrize("kernels", ["reference", "triton"])
    def test_kernels_too(self, kernels, monkeypatch):
        monkeypatch.setenv(gpu.VARIABLE, kernels)
        tree = Tree([3, 4, 5, 6, 7, 8], [-1, 0, 0, 1, 2, 3])
        with target_of("llama", torch.float32).session(32) as session:
            session.prefill(PROMPT)
            whole = session.score(tree)
            session.rollback()
            levels = [
                session.extend(tree.tokens[a:b], tree.parents[a:b])
                for a, b in ((0, 1), (1, 3), (3, 5), (5, 6))
            ]
            assert_close(torch.cat([level.logits for level in levels]), whole.logits, 1e-4)

    def test_a_commit_after_levels_keeps_the_path(self):
        target = target_of("llama")
        with target.session(64) as session, target.session(64) as fresh:
            session.prefill(PROMPT)
            session.extend([3], [-1])
            session.extend([4, 5], [0, 0])
            session.extend([6, 7, 8], [2, 1, 2])
            session.commit([0, 2, 3])
            assert session.length == len(PROMPT) + 3
            assert session.pending == 0
            fresh.prefill([*PROMPT, 3, 5, 6])
            count = session.length
            kept = session.cache.entries[..., :count, :]
            assert_close(kept, fresh.cache.entries[..., :count, :])
            after = [each.score(Tree.chain(9, [10])).logits for each in (session, fresh)]
            assert_close(*after)

    def test_several_children_of_the_last_committed_token(self):
        """Parent -1 may have many children: drafts that start beside the root."""
        with target_of("llama").session(64) as session:
            session.prefill(PROMPT)
            together = session.extend([3, 4, 5], [-1, -1, 1]).features
        for row, tail in ((0, [3]), (1, [4]), (2, [4, 5])):
            assert_close(together[row], stock_features(deep_model("llama"), PROMPT + tail)[-1])


class TestSkippedSublayers:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    @pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
    def test_they_equal_the_stock_model_with_the_identity_in_their_place(self, name, plan):
        tree = random_tree(random.Random(3), 9, VOCABULARY, reach=4)
        target = target_of(name)
        with target.session(64, layers=plan) as session:
            prefill = session.prefill(PROMPT)
            scores = session.score(tree)
        stock = skip_sublayers(deep_model(name), plan)
        assert_close(prefill.features, stock_features(stock, PROMPT))
        for node in range(len(tree)):
            expected = stock_features(stock, PROMPT + path_of(tree, node))[-1]
            assert_close(scores.features[node], expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_compiled_forward_has_the_same_bits_in_any_company(self, dtype):
        """A skipped forward is compiled too: a node gets its path's bits."""
        wide = {
            "hidden_size": 128,
            "intermediate_size": 96,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        model = random_model("llama", dtype, num_hidden_layers=LAYERS, **wide)
        target = TransformersTarget(model, None)
        plan = LayerPlan(frozenset({1, 2}), frozenset({3}))
        tree = random_tree(random.Random(5), 20, VOCABULARY, reach=5)
        with target.session(64, layers=plan) as session:
            session.prefill(PROMPT)
            whole = session.score(tree)
            for node in (3, 11, 19):
                session.rollback()
                path = path_of(tree, node)
                for depth, token in enumerate(path):
                    alone = session.extend([token], [depth - 1])
                assert torch.equal(alone.logits[0], whole.logits[node])

    def test_full_and_partial_forwards_are_counted_apart(self):
        target = target_of("llama")
        before = target.forwards, target.partial_forwards
        with target.session(32) as main:
            main.prefill(PROMPT)
            with target.session(0, layers=PLANS["one MLP"], share=main) as draft:
                draft.extend([3], [-1])
                draft.extend([4], [0])
            main.score(Tree.chain(3, [4]))
        assert target.forwards - before[0] == 2
        assert target.partial_forwards - before[1] == 2

    def test_a_layer_that_is_not_there_is_refused(self):
        with pytest.raises(ValueError, match=f"0 to {LAYERS - 1}"):
            target_of("llama").session(8, layers=LayerPlan(frozenset({LAYERS})))


class TestCapture:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_it_equals_the_hidden_states_of_transformers(self, name):
        capture = (0, 1, 3, LAYERS)
        tree = Tree([3, 4, 5, 6], [-1, 0, 0, 2])
        target = target_of(name)
        with target.session(64, capture=capture) as session:
            prefill = session.prefill(PROMPT)
            scores = session.score(tree)
        model = deep_model(name)
        assert prefill.features.shape == (len(PROMPT), len(capture) * 32)

        def expected(tokens):
            out = stock_features(model, tokens, output_hidden_states=True)
            return torch.cat([out.hidden_states[index][0] for index in capture], dim=-1)

        assert_close(prefill.features, expected(PROMPT))
        for node in range(len(tree)):
            assert_close(scores.features[node], expected(PROMPT + path_of(tree, node))[-1])
        with target.session(64) as plain:
            plain.prefill(PROMPT)
            assert_close(scores.logits, plain.score(tree).logits, 0)

    def test_the_compiled_step_does_not_overwrite_what_was_captured(self):
        wide = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 2}
        model = random_model("llama", torch.float32, num_hidden_layers=LAYERS, **wide)
        target = TransformersTarget(model, None)
        with target.session(32, capture=(1, 2)) as session:
            session.prefill(PROMPT)
            features = session.score(Tree.root(3)).features
        reference = random_model("llama", torch.float32, num_hidden_layers=LAYERS, **wide)
        out = stock_features(reference, [*PROMPT, 3], output_hidden_states=True)
        expected = torch.cat([out.hidden_states[index][0, -1:] for index in (1, 2)], dim=-1)
        assert_close(features, expected, 1e-4)

    def test_only_a_whole_forward_can_be_captured(self):
        with pytest.raises(ValueError, match="whole forward"):
            target_of("llama").session(8, layers=PLANS["one MLP"], capture=(1,))
        with pytest.raises(ValueError, match=f"0 to {LAYERS}"):
            target_of("llama").session(8, capture=(LAYERS + 1,))


class TestSharing:
    def test_it_leaves_the_targets_entries_untouched_and_its_rollback_leaves_nothing(self):
        target = target_of("llama")
        with target.session(64) as main:
            main.prefill(PROMPT)
            before = main.cache.entries[..., : main.length, :].clone()
            with target.session(0, layers=PLANS["one attention"], share=main) as draft:
                assert draft.length == main.length
                draft.extend([3, 4], [-1, 0])
                draft.extend([5], [1])
                assert (draft.pending, main.pending, main.length) == (3, 0, len(PROMPT))
                draft.rollback()
                assert torch.equal(main.cache.entries[..., : main.length, :], before)
                scores = main.score(Tree.chain(3, [4]))
                main.commit([0, 1])
                assert draft.length == main.length == len(PROMPT) + 2
        expected = stock_features(deep_model("llama"), [*PROMPT, 3, 4])[-2:]
        assert_close(scores.features, expected)

    def test_what_it_drafts_equals_a_session_of_its_own_after_the_same_prefix(self):
        """With all layers: the shared entries are the target's own."""
        target = target_of("llama")
        tree = Tree([3, 4, 5], [-1, 0, 0])
        with target.session(64) as main, target.session(64) as own:
            main.prefill(PROMPT)
            own.prefill(PROMPT)
            with target.session(0, share=main) as draft:
                assert_close(draft.score(tree).logits, own.score(tree).logits, 0)

    def test_two_writers_are_refused(self):
        target = target_of("llama")
        with target.session(64) as main, target.session(0, share=main) as draft:
            main.prefill(PROMPT)
            draft.extend([3], [-1])
            with pytest.raises(RuntimeError, match="another session has pending entries"):
                main.score(Tree.root(3))
            draft.rollback()
            main.score(Tree.root(3))
            with pytest.raises(RuntimeError, match="another session has pending entries"):
                draft.extend([3], [-1])

    def test_it_neither_prefills_nor_commits(self):
        target = target_of("llama")
        with target.session(64) as main, target.session(0, share=main) as draft:
            with pytest.raises(RuntimeError, match="extend before a prefill"):
                draft.extend([3], [-1])
            main.prefill(PROMPT)
            draft.extend([3], [-1])
            for call in (lambda: draft.prefill(PROMPT), lambda: draft.commit([0])):
                with pytest.raises(RuntimeError, match="sharing session"):
                    call()

    def test_only_a_session_of_the_same_target_is_shared(self):
        with (
            target_of("llama").session(8) as other,
            pytest.raises(ValueError, match="its own target"),
        ):
            target_of("llama").session(8, share=other)


class TestRefusals:
    @pytest.fixture
    def session(self):
        target = TransformersTarget(random_model("llama", max_position_embeddings=40), None)
        with target.session(12) as session:
            yield session

    def test_extend_before_a_prefill(self, session):
        with pytest.raises(RuntimeError, match="extend before a prefill"):
            session.score(Tree.root(1))

    def test_past_the_capacity(self, session):
        """The compiled attention writes by address: it must never be asked to."""
        session.prefill([1] * 12)
        for _ in range(LARGEST_TREE):
            session.score(Tree.root(1))
            session.commit([0])
        with pytest.raises(RuntimeError, match="do not fit a session of 140 slots"):
            session.score(Tree.root(1))
        with pytest.raises(RuntimeError, match="do not fit"):
            session.prefill([1] * 141)

    def test_past_the_context(self, session):
        with pytest.raises(ContextError, match="exceed the context of 40"):
            session.target.session(41)
        assert issubclass(ContextError, BenchError)

    def test_score_twice(self, session):
        session.prefill([1, 2])
        session.score(Tree.root(1))
        with pytest.raises(RuntimeError, match="before the last tree was committed"):
            session.score(Tree.root(1))
        session.prefill([1, 2])
        session.score(Tree.root(1))

    @pytest.mark.parametrize("path", [[1], [0, 2, 1], [0, 5], [0, 0], [2]])
    def test_a_path_that_is_none(self, session, path):
        session.prefill([1, 2])
        session.score(Tree([1, 2, 3], [-1, 0, 0]))
        with pytest.raises(ValueError, match="no path of the pending entries"):
            session.commit(path)
        session.commit([0, 2])
        assert session.length == 4

    @pytest.mark.parametrize(
        ("tokens", "parents"), [([1], [0]), ([1, 2], [-1]), ([], []), ([1], [-2])]
    )
    def test_parents_that_do_not_precede(self, session, tokens, parents):
        session.prefill([1, 2])
        with pytest.raises(ValueError, match="parent"):
            session.extend(tokens, parents)
        assert session.pending == 0

    def test_more_pending_entries_than_a_tree_may_have(self, session):
        session.prefill([1, 2])
        session.extend([1] * 100, range(-1, 99))
        with pytest.raises(BenchError, match="129 nodes is too large"):
            session.extend([1] * 29, [0] * 29)

    @pytest.mark.parametrize("tokens", [[VOCABULARY], [3, -1]])
    def test_tokens_outside_the_vocabulary(self, session, tokens):
        session.prefill([1, 2])
        with pytest.raises(BenchError, match="outside the target's vocabulary"):
            session.extend(tokens, range(-1, len(tokens) - 1))
        with pytest.raises(BenchError, match=f"vocabulary of {VOCABULARY}"):
            session.prefill(tokens)
        assert (session.length, session.pending) == (2, 0)
        session.score(Tree.chain(0, [VOCABULARY - 1]))

    def test_an_empty_prompt(self, session):
        with pytest.raises(BenchError, match="empty"):
            session.prefill([])


def test_rewind_forgets_the_end():
    target = target_of("llama")
    with target.session(64) as session:
        session.prefill([*PROMPT, 40, 41])
        session.score(Tree.root(1))
        session.rewind(len(PROMPT))
        scores = session.score(Tree.chain(3, [4]))
        with pytest.raises(ValueError, match="rewind"):
            session.rewind(len(PROMPT) + 1)
    assert_close(scores.features, stock_features(deep_model("llama"), [*PROMPT, 3, 4])[-2:])


def test_the_whole_plan_is_the_default():
    assert ALL.whole
    assert not any(plan.whole for plan in PLANS.values())
