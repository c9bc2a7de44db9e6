"""The loop: whatever a drafter says, the output is what the target says token by token.

The truth is autoregressive decoding written without the loop: over a scripted target for every skill of drafter,
over transformers' own `generate` for real models.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from doubles import (
    ARCHITECTURES,
    Clairvoyant,
    always_right,
    continuation,
    never_right,
    on_schedule,
    random_model,
    wide,
)

from fspad_bench.core.loop import Context, Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, match
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.scripted import ScriptedTarget, fingerprints
from fspad_bench.models.tiny import tiny_model

V = 7
PROMPT = [3, 1, 4, 1, 5]
LAWS = [
    Sampler(),
    Sampler(0.5),
    Sampler(1.0),
    Sampler(1.0, seed=1, stream="another"),
    Sampler(1.0, top_p=0.6),
    Sampler(0.8, top_k=3),
    Sampler(1.3, top_k=5, top_p=0.8, seed=7),
]
SHAPES = {
    "always right": always_right(5),
    "never right": never_right(V),
    "on schedule": on_schedule([0, 3, 1, 4, 0, 2], V),
    "wide": wide(4, V),
    "deeper than any budget": always_right(60),
    "wide and deep": wide(9, V),
    "silent": always_right(0),
}
LIMITS = [1, 2, 3, 4, 5, 17, 24]


def truth_of(sampler: Sampler, prompt: Sequence[int] = PROMPT) -> list[int]:
    """The prompt and more tokens than any test drafts."""
    return list(prompt) + _continued(sampler, tuple(prompt))


@cache
def _continued(sampler: Sampler, prompt: tuple[int, ...]) -> list[int]:
    return continuation(ScriptedTarget(V), sampler, prompt, 90)


def until(tokens: list[int], stop_ids: set[int]) -> list[int]:
    """Up to and with the first stop."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens) - 1)
    return tokens[: end + 1]


def assert_sound(target: ScriptedTarget, generation, prompt: list[int]) -> None:
    """What must hold of every generation: sums, counts, and a cache that holds what was said."""
    assert sum(generation.committed) == len(generation.tokens) - 1
    assert (
        len(generation.committed)
        == len(generation.drafted)
        == generation.forwards
        == target.forwards - 1
    )
    assert all(count >= 1 for count in generation.committed)
    said = prompt + generation.tokens
    shared = min(len(said), len(target.rows))
    assert target.rows[:shared] == said[:shared]
    assert len(target.rows) >= len(said) - 1
    assert (
        generation.decode_seconds >= generation.draft_seconds + generation.score_seconds > 0
        or not target.paths
    )


@pytest.mark.parametrize("sampler", LAWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
class TestIdentity:
    @pytest.mark.parametrize("limit", LIMITS)
    def test_with_the_truth(self, shape, sampler, limit):
        truth, target = truth_of(sampler), ScriptedTarget(V)
        generation = generate(
            target, Clairvoyant(truth, SHAPES[shape]), sampler, PROMPT, Limit(limit)
        )
        assert generation.tokens == truth[len(PROMPT) :][:limit]
        assert_sound(target, generation, PROMPT)

    @pytest.mark.parametrize("stop", range(V))
    def test_a_stop_is_kept_and_nothing_after_it(self, shape, sampler, stop):
        """Whichever token stops, it falls inside accepted runs, on bonus tokens, and on the first token of all."""
        truth, target = truth_of(sampler), ScriptedTarget(V)
        limit = Limit(30, frozenset([stop]))
        generation = generate(target, Clairvoyant(truth, SHAPES[shape]), sampler, PROMPT, limit)
        assert generation.tokens == until(truth[len(PROMPT) :][:30], {stop})
        assert_sound(target, generation, PROMPT)


class TestLoop:
    def test_vanilla_is_the_truth(self):
        for sampler, limit in itertools.product(LAWS, LIMITS):
            target = ScriptedTarget(V)
            generation = generate(target, Vanilla(target), sampler, PROMPT, Limit(limit))
            assert generation.tokens == truth_of(sampler)[len(PROMPT) :][:limit]
            assert generation.committed == [1] * (limit - 1)
            assert generation.drafted == [0] * (limit - 1)
            assert_sound(target, generation, PROMPT)

    def test_a_stop_inside_an_accepted_run(self):
        truth, target = truth_of(Sampler()), ScriptedTarget(V)
        said = truth[len(PROMPT) :]
        stop = next(token for i, token in enumerate(said[:6]) if i >= 2 and token not in said[:i])
        generation = generate(
            target,
            Clairvoyant(truth, always_right(8)),
            Sampler(),
            PROMPT,
            Limit(50, frozenset([stop])),
        )
        assert generation.tokens == until(said, {stop})
        assert generation.committed == [len(generation.tokens) - 1]
        assert len(target.paths[0]) > len(generation.tokens)  # the target agreed with more

    def test_a_perfect_drafter_takes_as_few_rounds_as_it_can(self):
        truth = truth_of(Sampler())
        generation = generate(
            ScriptedTarget(V), Clairvoyant(truth, always_right(4)), Sampler(), PROMPT, Limit(23)
        )
        assert generation.committed == [5, 5, 5, 5, 2]
        assert generation.drafted == [4] * 5

    def test_a_hopeless_drafter_costs_rounds_and_nothing_else(self):
        generation = generate(
            ScriptedTarget(V),
            Clairvoyant(truth_of(Sampler()), never_right(V)),
            Sampler(),
            PROMPT,
            Limit(9),
        )
        assert generation.committed == [1] * 8
        assert generation.drafted == [4] * 8

    def test_a_wide_tree_moves_rows(self):
        """Otherwise the identity above would not test the compaction of the cache."""
        target = ScriptedTarget(V)
        generate(
            target, Clairvoyant(truth_of(Sampler(1.0)), wide(4, V)), Sampler(1.0), PROMPT, Limit(24)
        )
        assert any(path[-1] > len(path) for path in target.paths)

    def test_accepted_lengths_follow_the_schedule(self):
        drafter = Clairvoyant(truth_of(Sampler(1.0)), on_schedule([0, 3, 1], V))
        generate(ScriptedTarget(V), drafter, Sampler(1.0), PROMPT, Limit(40))
        lengths = [len(accepted.path) - 1 for accepted in drafter.accepted]
        assert lengths[:9] == [0, 3, 1] * 3

    def test_the_first_token_may_end_it(self):
        truth = truth_of(Sampler())
        for limit in (Limit(1), Limit(9, frozenset([truth[len(PROMPT)]]))):
            target, drafter = ScriptedTarget(V), Clairvoyant(truth, always_right(4))
            generation = generate(target, drafter, Sampler(), PROMPT, limit)
            assert generation.tokens == truth[len(PROMPT) :][:1]
            assert (generation.forwards, generation.committed, generation.drafted) == (0, [], [])
            assert not hasattr(drafter, "prefill")  # begin was not called

    def test_a_drafter_s_own_forwards_count(self):
        class Greedy(Vanilla):
            def propose(self, context, budget):
                target.forwards += 2
                return super().propose(context, budget)

        target = ScriptedTarget(V)
        generation = generate(target, Greedy(target), Sampler(), PROMPT, Limit(5))
        assert generation.forwards == 3 * 4

    def test_what_a_drafter_is_told(self):
        """After every round: the tree, the features of its nodes, and all tokens so far but the last in the cache."""
        truth = truth_of(Sampler(1.0))
        drafter = Clairvoyant(truth, wide(3, V))
        generation = generate(ScriptedTarget(V), drafter, Sampler(1.0), PROMPT, Limit(20))
        assert drafter.prefill.features.equal(
            fingerprints([PROMPT[: i + 1] for i in range(len(PROMPT))])
        )
        position = len(PROMPT) + 1
        for step, count in zip(drafter.steps, generation.committed, strict=True):
            path = step.accepted.path
            heard = [step.tree.tokens[node] for node in path[1:]] + [step.accepted.bonus]
            assert step.context.tokens == truth[: position + count]
            assert heard[:count] == truth[position : position + count]
            prefixes = [truth[: position + i] for i in range(len(path))]
            assert step.scores.features[path].equal(fingerprints(prefixes))
            position += count

    def test_a_drafter_starts_anew_with_each_prompt(self):
        for sampler in LAWS:
            target, prompts = ScriptedTarget(V), ([1, 2, 3, 1, 2], [4, 4, 4], [1, 2, 3, 1, 2])
            reused, limit = PromptLookup(target, shortest=1), Limit(40)
            for prompt in prompts:
                again = generate(target, reused, sampler, prompt, limit)
                fresh = generate(
                    ScriptedTarget(V), PromptLookup(target, shortest=1), sampler, prompt, limit
                )
                assert again.tokens == fresh.tokens == truth_of(sampler, prompt)[len(prompt) :][:40]
                assert (again.committed, again.drafted) == (fresh.committed, fresh.drafted)

    def test_the_same_tokens_after_different_streams_differ(self):
        outputs = {
            tuple(truth_of(Sampler(1.0, seed=s, stream=t))[:17]) for s in range(4) for t in "abcd"
        }
        assert len(outputs) == 16


class TestVerify:
    LOGITS = torch.zeros(6, V).scatter_(1, torch.tensor([[2], [0], [5], [1], [6], [3]]), 1.0)

    def test_walks_where_a_child_agrees(self):
        tree = Tree([9, 0, 2, 5, 4, 5], [-1, 0, 0, 1, 2, 2])
        assert match(tree, self.LOGITS, Sampler(), 0) == Accepted([0, 2, 5], 3)

    def test_the_bonus_is_asked_at_the_last_accepted_node(self):
        assert match(Tree.root(9), self.LOGITS, Sampler(), 0) == Accepted([0], 2)
        assert match(Tree([9, 1], [-1, 0]), self.LOGITS, Sampler(), 0) == Accepted([0], 2)
        assert match(Tree([9, 2], [-1, 0]), self.LOGITS, Sampler(), 0) == Accepted([0, 1], 0)

    def test_asks_only_the_nodes_it_reaches_at_their_positions(self):
        asked = []

        class Oracle:
            def next(self, logits, position):
                asked.append((int(logits[0]), position))
                return {0: 1, 2: 2, 5: 3}[int(logits[0])]

        tree = Tree([9, 0, 1, 1, 3, 2], [-1, 0, 0, 1, 2, 2])
        rows = torch.arange(6.0)[:, None].expand(6, V)
        assert match(tree, rows, Oracle(), 40) == Accepted([0, 2, 5], 3)
        assert asked == [(0, 40), (2, 41), (5, 42)]


class TestLimit:
    def context(self, *new):
        return Context([8, 8, *new], 2)

    def test_room_leaves_a_place_for_the_bonus(self):
        assert Limit(5).room(self.context(1)) == 3
        assert Limit(5).room(self.context(1, 2, 3, 4)) == 0

    def test_reached(self):
        assert not Limit(3, frozenset([7])).reached(self.context(7, 1))
        assert Limit(3, frozenset([7])).reached(self.context(1, 7))
        assert Limit(3).reached(self.context(1, 2, 3))

    def test_a_stop_in_the_prompt_does_not_count(self):
        assert Limit(9, frozenset([8])).cut(self.context(1), [2, 3]) == [2, 3]

    @pytest.mark.parametrize(
        ("new", "kept"),
        [
            ([1, 2], [1, 2]),
            ([1, 2, 3, 4], [1, 2, 3]),
            ([1, 7, 2], [1, 7]),
            ([7, 7], [7]),
            ([1, 2, 3, 7], [1, 2, 3]),
        ],
    )
    def test_cut(self, new, kept):
        assert Limit(4, frozenset([7, 9])).cut(self.context(5), new) == kept


def stock_greedy(model, prompt: list[int], count: int, stop_ids: list[int] | None) -> list[int]:
    ids = torch.tensor([prompt])
    options = {
        "do_sample": False,
        "max_new_tokens": count,
        "eos_token_id": stop_ids,
        "pad_token_id": 0,
    }
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return out[0, len(prompt) :].tolist()


class TestRealModels:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_vanilla_greedy_on_tiny_equals_generate(self, tiny, attention):
        stock = tiny_model()
        stock.set_attn_implementation(attention)
        stopped = 0
        for text, count in (
            ("hello", 1),
            ("u:what?<|end|>a:", 2),
            ("The quick brown fox", 80),
            ("a" * 50, 61),
        ):
            prompt = tiny.tokenizer(text)["input_ids"]
            free = generate(tiny, Vanilla(tiny), Sampler(), prompt, Limit(count)).tokens
            assert free == stock_greedy(stock, prompt, count, None)
            ends = frozenset(free[count // 2 : count // 2 + 1])
            ended = generate(tiny, Vanilla(tiny), Sampler(), prompt, Limit(count, ends)).tokens
            assert ended == stock_greedy(stock, prompt, count, list(ends)) == until(free, ends)
            stopped += len(ended) < count
        assert stopped

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_vanilla_greedy_equals_generate(self, name):
        stock, target = random_model(name), TransformersTarget(random_model(name), None)
        said = []
        for prompt in ([1], [5, 6, 7] * 9, list(range(20, 50))):
            found = generate(target, Vanilla(target), Sampler(), prompt, Limit(40)).tokens
            assert found == stock_greedy(stock, prompt, 40, None)
            said += found
        assert len(set(said)) > 8

    def test_vanilla_greedy_fills_a_sliding_window_exactly(self):
        stock, target = (random_model("mistral", sliding_window=24) for _ in range(2))
        target = TransformersTarget(target, None)
        found = generate(target, Vanilla(target), Sampler(), [1, 2, 3, 4], Limit(20)).tokens
        assert found == stock_greedy(stock, [1, 2, 3, 4], 20, None)

    @pytest.mark.parametrize("sampler", LAWS, ids=str)
    @pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
    def test_a_wide_tree_changes_nothing(self, name, sampler):
        target, prompt = TransformersTarget(random_model(name), None), [5, 6, 7, 8]
        truth = generate(target, Vanilla(target), sampler, prompt, Limit(60)).tokens
        for shape in (always_right(6), on_schedule([0, 2, 1], 53), wide(5, 53)):
            drafter = Clairvoyant(prompt + truth, shape)
            found = generate(target, drafter, sampler, prompt, Limit(25))
            assert found.tokens == truth[:25]
            assert max(found.committed) > 1

    def test_a_draft_may_reach_past_the_end_of_the_context(self):
        target, prompt = (
            TransformersTarget(random_model("llama", max_position_embeddings=40), None),
            [5, 6, 7, 8],
        )
        truth = generate(target, Vanilla(target), Sampler(), prompt, Limit(36)).tokens
        drafter = Clairvoyant(prompt + truth + [1] * 100, always_right(30))
        found = generate(target, drafter, Sampler(), prompt, Limit(36))
        assert found.tokens == truth

    def test_sampled_text_of_tiny_is_a_stream_s_own(self, tiny):
        prompt = tiny.tokenizer("hello")["input_ids"]
        texts = [
            tuple(generate(tiny, Vanilla(tiny), Sampler(1.0, seed=s), prompt, Limit(20)).tokens)
            for s in (0, 1, 0)
        ]
        assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_limit_is_at_least_one_token(tokens):
    with pytest.raises(ValueError, match="at least 1"):
        Limit(tokens)
