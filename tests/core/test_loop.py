"""The loop: whatever a drafter proposes, the output is what the target gives token by token.

The reference is autoregressive decoding written without the loop: over a scripted target for
drafters of every skill. `test_loop_on_models` has transformers' own `generate` for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import pytest
from doubles import (
    SAMPLERS,
    Clairvoyant,
    Shape,
    always_right,
    continuation,
    never_right,
    on_schedule,
    until,
    wide,
)

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import ALL, Drafter, Generation, LayerPlan, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import traversal
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless.scripted import ScriptedTarget, fingerprints

V = 7
PROMPT = [3, 1, 4, 1, 5]
SHAPES = {
    "always right": always_right(5),
    "never right": never_right(V),
    "on schedule": on_schedule([0, 3, 1, 4, 0, 2], V),
    "wide": wide(4, V),
    "deeper than any budget": always_right(60),
    "wide and deep": wide(9, V),
    "drafts nothing": always_right(0),
}
LIMITS = [Limit(count) for count in (1, 2, 3, 4, 5, 17, 24)]


def ranked(script: Sequence[tuple[list[int], int]]) -> Shape:
    """Propose, in turn, chains of right tokens with so many wrong siblings before each, and so many
    wrong tokens after the last.
    """

    def shape(root: int, coming: list[int], step: int) -> Tree:
        ranks, refused = script[step % len(script)]
        paths = []
        for level, wrong in enumerate([*ranks, refused]):
            others = [(coming[level] + 1 + i) % V for i in range(wrong)]
            paths += [[*coming[:level], other] for other in others]
            if level < len(ranks):
                paths.append(coming[: level + 1])
        return Tree.from_paths(root, paths)

    return shape


def truth_of(sampler: Sampler, prompt: Sequence[int] = PROMPT) -> list[int]:
    """Return the prompt and more tokens than any test drafts."""
    return list(prompt) + _continued(sampler, tuple(prompt))


@cache
def _continued(sampler: Sampler, prompt: tuple[int, ...]) -> list[int]:
    return continuation(ScriptedTarget(V), sampler, prompt, 90)


def assert_sound(target: ScriptedTarget, generation: Generation, prompt: list[int]) -> None:
    """Check what holds of every generation: sums, counts, and a session that holds the output."""
    (session,) = target.sessions
    assert sum(generation.committed) == len(generation.tokens) - 1
    assert len(generation.committed) == len(generation.drafted) == generation.forwards
    assert generation.forwards == target.forwards - 1  # the prefill
    assert generation.partial_forwards == target.partial_forwards == 0
    assert all(count >= 1 for count in generation.committed)
    output = prompt + generation.tokens
    shared = min(len(output), session.length)
    assert session.tokens[:shared] == output[:shared]
    assert session.length >= len(output) - 1
    assert not session.pending
    if session.paths:
        parts = generation.draft_seconds + generation.score_seconds
        assert generation.decode_seconds >= parts > 0


STOPS = [Limit(30, frozenset([stop])) for stop in range(V)]


def pairs(limits: Sequence[Limit]) -> list[tuple[str, Sampler, Limit]]:
    """Return shapes, samplers and seven limits such that every two levels of any two meet once."""
    return [
        (shape, sampler, limits[(i + j) % 7])
        for i, shape in enumerate(SHAPES)
        for j, sampler in enumerate(SAMPLERS)
    ]


def assert_identical(shape: str, sampler: Sampler, limit: Limit) -> None:
    """Compare a clairvoyant drafter's output with autoregressive decoding's."""
    truth = truth_of(sampler)
    target = ScriptedTarget(V)
    generation = generate(target, Clairvoyant(truth, SHAPES[shape]), sampler, PROMPT, limit)
    expected = truth[len(PROMPT) :][: limit.max_new_tokens]
    assert generation.tokens == until(expected, limit.stop_ids)
    assert_sound(target, generation, PROMPT)


class TestIdentity:
    """Stops fall inside accepted runs, on bonus tokens, and on the first token of all."""

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(("shape", "sampler", "limit"), pairs(LIMITS) + pairs(STOPS), ids=str)
    def test_with_autoregressive_decoding(self, shape, sampler, limit):
        assert_identical(shape, sampler, limit)

    @pytest.mark.nightly
    @pytest.mark.parametrize("limit", [*LIMITS, *STOPS], ids=str)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_with_autoregressive_decoding_in_every_combination(self, shape, limit):
        for sampler in SAMPLERS:
            assert_identical(shape, sampler, limit)

    def test_every_two_levels_meet(self):
        for limits in (LIMITS, STOPS):
            for a, b in itertools.combinations(range(3), 2):
                assert len({(row[a], row[b]) for row in pairs(limits)}) == 49


class TestLoop:
    def test_vanilla_equals_autoregressive_decoding(self):
        for sampler, limit in itertools.product(SAMPLERS, LIMITS):
            target = ScriptedTarget(V)
            generation = generate(target, Vanilla(target), sampler, PROMPT, limit)
            count = limit.max_new_tokens
            assert generation.tokens == truth_of(sampler)[len(PROMPT) :][:count]
            assert generation.committed == [1] * (count - 1)
            assert generation.drafted == [0] * (count - 1)
            assert_sound(target, generation, PROMPT)

    def test_a_stop_inside_an_accepted_run(self):
        truth = truth_of(Sampler())
        target = ScriptedTarget(V)
        tokens = truth[len(PROMPT) :]
        new = (token for i, token in enumerate(tokens[:6]) if i >= 2 and token not in tokens[:i])
        stop = next(new)
        generation = generate(
            target,
            Clairvoyant(truth, always_right(8)),
            Sampler(),
            PROMPT,
            Limit(50, frozenset([stop])),
        )
        assert generation.tokens == until(tokens, {stop})
        assert generation.committed == [len(generation.tokens) - 1]
        accepted = target.sessions[0].paths[0]
        assert len(accepted) > len(generation.tokens)  # the target agreed with more

    def test_a_perfect_drafter_needs_the_fewest_steps(self):
        truth = truth_of(Sampler())
        generation = generate(
            ScriptedTarget(V), Clairvoyant(truth, always_right(4)), Sampler(), PROMPT, Limit(23)
        )
        assert generation.committed == [5, 5, 5, 5, 2]
        assert generation.drafted == [4] * 5

    def test_a_drafter_that_is_never_right_commits_one_token_a_step(self):
        generation = generate(
            ScriptedTarget(V),
            Clairvoyant(truth_of(Sampler()), never_right(V)),
            Sampler(),
            PROMPT,
            Limit(9),
        )
        assert generation.committed == [1] * 8
        assert generation.drafted == [4] * 8

    def test_a_wide_tree_commits_scattered_nodes(self):
        """Otherwise the identity above would not test the compaction of the cache."""
        target = ScriptedTarget(V)
        generate(
            target, Clairvoyant(truth_of(Sampler(1.0)), wide(4, V)), Sampler(1.0), PROMPT, Limit(24)
        )
        assert any(path[-1] > len(path) for path in target.sessions[0].paths)

    def test_accepted_lengths_follow_the_schedule(self):
        drafter = Clairvoyant(truth_of(Sampler(1.0)), on_schedule([0, 3, 1], V))
        generate(ScriptedTarget(V), drafter, Sampler(1.0), PROMPT, Limit(40))
        lengths = [len(accepted.path) - 1 for accepted in drafter.accepted]
        assert lengths[:9] == [0, 3, 1] * 3

    def test_ranks_of_accepted_nodes_are_those_of_the_script(self):
        """Each accepted token follows as many wrong siblings as the script says; two wrong ones
        follow the last. The third tree ends with its last accepted token.
        """
        script = [([2, 0, 1], 2), ([], 2), ([4], 0), ([0, 3], 2)]
        drafter = Clairvoyant(truth_of(Sampler()), ranked(script))
        generation = generate(ScriptedTarget(V), drafter, Sampler(), PROMPT, Limit(1 + 10 + 10))
        assert generation.committed == [4, 1, 2, 3] * 2
        assert generation.ranks == [ranks for ranks, _ in script] * 2
        assert generation.refused == [wrong for _, wrong in script] * 2
        assert generation.depths == [4, 1, 1, 3] * 2

    def test_the_limit_cuts_no_ranks(self):
        drafter = Clairvoyant(truth_of(Sampler()), ranked([([1, 0, 1], 0)]))
        generation = generate(ScriptedTarget(V), drafter, Sampler(), PROMPT, Limit(3))
        assert (generation.committed, generation.ranks) == ([2], [[1, 0, 1]])

    def test_vanilla_has_no_trees_to_record(self):
        target = ScriptedTarget(V)
        generation = generate(target, Vanilla(target), Sampler(), PROMPT, Limit(5))
        assert generation.depths is generation.ranks is generation.refused is None
        assert generation.verify_seconds > 0

    def test_the_first_token_may_end_the_generation(self):
        truth = truth_of(Sampler())
        for limit in (Limit(1), Limit(9, frozenset([truth[len(PROMPT)]]))):
            target = ScriptedTarget(V)
            drafter = Clairvoyant(truth, always_right(4))
            generation = generate(target, drafter, Sampler(), PROMPT, limit)
            assert generation.tokens == truth[len(PROMPT) :][:1]
            assert (generation.forwards, generation.committed, generation.drafted) == (0, [], [])
            assert not hasattr(drafter, "prefill")  # begin was not called

    @pytest.mark.parametrize("plan", [ALL, LayerPlan(skip_mlp=frozenset([0]))], ids=["all", "some"])
    def test_a_drafters_own_forwards_count(self, plan):
        class SelfDrafting(Vanilla):
            def propose(self, context, budget):
                sharing = target.session(0, layers=plan, share=target.sessions[0])
                with sharing:
                    sharing.extend([context.tokens[-1]], [-1])
                    sharing.extend([1, 2], [0, 0])
                return super().propose(context, budget)

        target = ScriptedTarget(V)
        generation = generate(target, SelfDrafting(target), Sampler(), PROMPT, Limit(5))
        counts = (3 * 4, 0) if plan.whole else (4, 2 * 4)
        assert (generation.forwards, generation.partial_forwards) == counts
        assert generation.tokens == truth_of(Sampler())[len(PROMPT) :][:5]

    def test_observe_receives_each_step(self):
        """A step holds the tree, the features of its nodes, and a context with the new tokens."""
        truth = truth_of(Sampler(1.0))
        drafter = Clairvoyant(truth, wide(3, V))
        generation = generate(ScriptedTarget(V), drafter, Sampler(1.0), PROMPT, Limit(20))
        assert drafter.prefill.features.equal(
            fingerprints([PROMPT[: i + 1] for i in range(len(PROMPT))])
        )
        position = len(PROMPT) + 1
        for step, count in zip(drafter.steps, generation.committed, strict=True):
            path = step.accepted.path
            new = [step.tree.tokens[node] for node in path[1:]] + [step.accepted.bonus]
            assert step.context.tokens == truth[: position + count]
            assert new[:count] == truth[position : position + count]
            prefixes = [truth[: position + i] for i in range(len(path))]
            assert step.scores.features[path].equal(fingerprints(prefixes))
            assert step.seconds > 0
            position += count

    def test_the_session_captures_what_the_drafter_asks_for(self):
        drafter = Clairvoyant(truth_of(Sampler()), always_right(3))
        drafter.capture = (0, 1, 2)
        generate(ScriptedTarget(V), drafter, Sampler(), PROMPT, Limit(5))
        assert drafter.prefill.features.shape == (len(PROMPT), 3)
        assert drafter.steps[0].scores.features.shape == (4, 3)

    def test_the_sampler_and_rule_of_the_drafter_are_used(self):
        samplers = []
        rules = []

        class Counting(ScriptedTarget):
            def verifier(self, rule):
                rules.append(rule)
                return rule

        class Drawing(Vanilla):
            rule = traversal

            def begin(self, context, scores):
                samplers.append(context.sampler)

        sampler = Sampler(1.0)
        target = Counting(V)
        generate(target, Drawing(target), sampler, PROMPT, Limit(4))
        assert samplers == [sampler]
        assert rules == [traversal]

    def test_an_object_with_propose_alone_is_a_drafter(self):
        class Plain:
            def propose(self, context, budget):
                return Tree.chain(context.tokens[-1], truth[len(context.tokens) :][:3])

        truth = truth_of(Sampler())
        generation = generate(ScriptedTarget(V), Plain(), Sampler(), PROMPT, Limit(13))
        assert generation.tokens == truth[len(PROMPT) :][:13]
        assert generation.committed == [4, 4, 4]

    def test_a_drafter_starts_anew_with_each_prompt(self):
        for sampler in SAMPLERS:
            target = ScriptedTarget(V)
            reused = PromptLookup(target, shortest=1)
            limit = Limit(40)
            for prompt in ([1, 2, 3, 1, 2], [4, 4, 4], [1, 2, 3, 1, 2]):
                again = generate(target, reused, sampler, prompt, limit)
                fresh = generate(
                    ScriptedTarget(V), PromptLookup(target, shortest=1), sampler, prompt, limit
                )
                assert again.tokens == fresh.tokens == truth_of(sampler, prompt)[len(prompt) :][:40]
                assert (again.committed, again.drafted) == (fresh.committed, fresh.drafted)

    def test_seeds_and_streams_give_different_tokens(self):
        outputs = {
            tuple(truth_of(Sampler(1.0, seed=s, stream=t))[:17]) for s in range(4) for t in "abcd"
        }
        assert len(outputs) == 16


def test_a_drafter_needs_nothing_but_propose(tiny):
    class Alone(Drafter):
        def propose(self, context, budget):
            return Tree.root(context.tokens[-1])

    expected = generate(tiny, Vanilla(tiny), Sampler(), PROMPT, Limit(4)).tokens
    assert generate(tiny, Alone(tiny), Sampler(), PROMPT, Limit(4)).tokens == expected


def test_a_tree_that_does_not_continue_the_text_is_refused(tiny):
    class Astray(Drafter):
        def propose(self, context, budget):
            return Tree.root((context.tokens[-1] + 1) % 97)

    with pytest.raises(ValueError, match=r"tree rooted in \d+; the last token is \d+"):
        generate(tiny, Astray(tiny), Sampler(), PROMPT, Limit(4))


@pytest.mark.parametrize("change", [lambda tokens: tokens.append(3), lambda tokens: tokens.pop()])
def test_a_drafter_that_changes_the_text_is_refused(tiny, change):
    class Editing(Drafter):
        def propose(self, context, budget):
            change(context.tokens)
            return Tree.root(context.tokens[-1])

    with pytest.raises(ValueError, match=r"changed context\.tokens"):
        generate(tiny, Editing(tiny), Sampler(), PROMPT, Limit(4))
