"""SWIFT's tokens are vanilla's whatever it searches, its chains those of the skipping target."""

from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from doubles import logits_behind, random_target
from recording import Recorder, compare_with_vanilla
from transformers import LlamaConfig

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import LayerPlan, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders import swift
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.swift import Swift, width_of
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.sizing.costs import SIZES, Costs
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.tiny import CONFIG, tiny_model
from fspad_bench.util.errors import BenchError

LAYERS = 6
PROMPTS = [list(range(30, 52)), [3, 9, 3, 9, 3], list(range(60, 20, -3))]
SEARCHING = {"interval": 1, "context": 8}


def deep_model():
    return tiny_model(LlamaConfig(**CONFIG.to_dict() | {"num_hidden_layers": LAYERS}))


@pytest.fixture(scope="module")
def deep():
    """A target of six layers, of which four may be skipped."""
    return TransformersTarget(deep_model(), None, "deep")


def best_set(drafter):
    return (drafter.search.best,)


def run(target, drafter, prompt=PROMPTS[0], temperature=0.0, tokens=30):
    sampler = Sampler(temperature, stream=str(prompt))
    return generate(target, drafter, sampler, prompt, Limit(tokens))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        (SEARCHING, 0.0),
        (SEARCHING, 1.0),
        ({"adapt": False}, 0.0),
        ({"adapt": False}, 0.7),
        (SEARCHING | {"scope": "run"}, 0.7),
    ],
)
def test_the_tokens_are_vanillas(deep, options, temperature):
    drafter = Swift(deep, skip=0.3, stop=0.3, **options)
    for drafted in compare_with_vanilla(deep, drafter, PROMPTS, temperature, tokens=30):
        assert drafted.forwards == len(drafted.committed)
        assert drafted.partial_forwards >= len([n for n in drafted.drafted if n])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_order_of_prompts_gives_the_same_steps(deep, temperature):
    """A search starts anew with each prompt; with `scope=run` the tokens at least are the same."""
    orders = [PROMPTS, PROMPTS[::-1]]
    steps, tokens = {}, {}
    for scope in ("prompt", "run"):
        for order in orders:
            drafter = Swift(deep, **SEARCHING, scope=scope)
            for prompt in order:
                made = run(deep, drafter, prompt, temperature, tokens=14)
                tokens.setdefault(str(prompt), set()).add(tuple(made.tokens))
                if scope == "prompt":
                    shape = (*made.drafted, *made.committed, made.partial_forwards)
                    steps.setdefault(str(prompt), set()).add(shape)
    assert all(len(outputs) == 1 for outputs in tokens.values())
    assert all(len(shapes) == 1 for shapes in steps.values())


def test_a_search_goes_on_over_the_prompts_of_a_run(deep):
    drafter = Swift(deep, **SEARCHING, scope="run")
    tried = []
    for prompt in PROMPTS:
        run(deep, drafter, prompt)
        tried.append(len(drafter.search.tried))
    assert tried[0] < tried[1] < tried[2]
    assert drafter.scope == "run"


def test_the_search_begins_with_the_first_window_and_its_forwards_are_partial(deep):
    """One for the window of `context` tokens at each step; without a search there are none."""
    drafter = Swift(deep, enough=2.0, **SEARCHING)
    recorder = Recorder(drafter, best_set)
    searched = run(deep, recorder)
    windows = sum(
        len(text) - len(PROMPTS[0]) >= 8 and n > 0 for text, _, n, _ in recorder.proposals
    )
    assert len(drafter.search.tried) == windows > 5
    drafts = sum(max(tree.depths) for _, tree, _, _ in recorder.proposals)
    assert searched.partial_forwards == drafts + windows


def test_candidates_are_tried_however_soon_the_window_moves(deep, monkeypatch):
    """The best set has no score in another window, and is scored before a candidate is."""
    drafter = Swift(deep, enough=2.0, **SEARCHING | {"interval": 3})
    monkeypatch.setattr(swift, "LARGEST_TREE", SEARCHING["context"] + 2)
    run(deep, drafter, tokens=30)
    assert len(set(drafter.search.tried)) > 1


def z_of(prefix, tokens, plan, sampler):
    """The draft's logits after `tokens`, plus noise: behind entries of the whole target."""
    logits = logits_behind(deep_model, prefix, tokens, plan)
    vocabulary = torch.arange(logits.shape[-1])
    noise = [sampler.noise(len(prefix) + 1 + i, vocabulary) for i in range(len(tokens))]
    return logits + sampler.temperature * torch.stack(noise)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_chains_and_leaves_are_those_of_the_stock_model_without_the_sublayers(deep, temperature):
    sampler = Sampler(temperature, stream=str(PROMPTS[0]))
    drafter = Swift(deep, skip=0.3, length=4, stop=0.1, leaves=6, nodes=20, **SEARCHING)
    recorder = Recorder(drafter, best_set)
    run(deep, recorder, temperature=temperature, tokens=8)
    widths = {True: (3, 5, 8, 10), False: (1, 3, 5, 10)}[sampler.greedy]
    deepest = 0
    for tokens, tree, budget, plan in recorder.proposals:
        chain, expected = [], []
        for _ in range(min(budget, 4)):
            z = z_of(tokens[:-1], [tokens[-1], *chain], plan, sampler)[-1].log_softmax(-1)
            chance = float(z.max().exp())
            width = widths[sum(chance <= bound for bound in (0.95, 0.8, 0.5))]
            room = 20 - 1 - len(expected)
            best = z.argsort(descending=True)[: min(width, 6, room)].tolist()
            expected += [(*chain, token) for token in best]
            chain.append(best[0])
            if chance < 0.1 or len(expected) == 19:
                break
        paths = [()]
        for node in range(1, len(tree)):
            paths.append((*paths[tree.parents[node]], tree.tokens[node]))
        assert paths[1:] == expected
        deepest = max(deepest, *tree.depths)
    assert deepest > 1


@pytest.mark.sampled(2)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_are_those_of_the_stock_model_on_the_window(deep, temperature):
    sampler = Sampler(temperature, stream=str(PROMPTS[0]))
    drafter = Swift(deep, skip=0.3, patience=99, enough=2.0, **SEARCHING)
    scored = []
    matches = drafter._matches

    def recording(context, plan):
        scored.append((list(context.tokens), drafter.start, plan, matches(context, plan)))
        return scored[-1][-1]

    drafter._matches = recording
    run(deep, drafter, temperature=temperature, tokens=20)
    assert len({start for _, start, _, _ in scored}) == 1  # near enough to look back to
    for tokens, start, plan, score in scored:
        window = tokens[start : start + 8]
        choices = z_of(tokens[:start], window, plan, sampler).argmax(-1)
        assert score == (choices == torch.tensor(tokens[start + 1 : start + 9])).sum() / 8
    assert len({score for *_, score in scored}) > 1


def test_a_window_too_far_back_gives_way_to_the_last_tokens(deep):
    drafter = Swift(deep, patience=999, enough=2.0, interval=1, context=60)
    starts = []
    matches = drafter._matches

    def recording(context, plan):
        assert len(context.tokens) - 1 - drafter.start <= 68
        starts.append(drafter.start)
        return matches(context, plan)

    drafter._matches = recording
    made = run(deep, drafter, tokens=110)
    windows = sorted(set(starts))
    assert len(windows) > 2
    assert starts == sorted(starts)
    assert all(8 < later - earlier < 20 for earlier, later in pairwise(windows))
    assert made.tokens == run(deep, Vanilla(deep), tokens=110).tokens


@pytest.mark.parametrize(
    ("chance", "greedy", "sampled"),
    [(0.96, 3, 1), (0.95, 5, 3), (0.81, 5, 3), (0.8, 8, 5), (0.5, 10, 10), (0.0, 10, 10)],
)
def test_the_less_sure_the_more_leaves(chance, greedy, sampled):
    assert width_of(chance, (3, 5, 8, 10)) == greedy
    assert width_of(chance, (1, 3, 5, 10)) == sampled


def test_given_sets_are_where_the_search_starts(deep):
    drafter = Swift(deep, attention="0, 2", mlp="5")
    assert drafter.first == LayerPlan(frozenset({0, 2}), frozenset({5}))
    assert drafter.size == 3
    settings = build_decoder("swift", deep, {"swift": {"mlp": "4", "adapt": "false"}}).options
    assert (settings["first_attention"], settings["first_mlp"]) == ([], [4])
    assert "interval" not in settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "1,6,9"}, "swift.attention: deep has no layer 6, 9"),
        ({"mlp": "-1"}, "swift.mlp: deep has no layer -1"),
        ({"mlp": "two"}, "swift.mlp: deep has no layer two"),
        ({"skip": "0"}, "swift.skip=0 is out of range"),
        ({"skip": "1"}, "swift.skip=1 is out of range"),
        ({"interval": "0"}, "swift.interval=0 is out of range"),
        ({"context": "64"}, "swift.context=64 is out of range"),
        ({"length": "0"}, "swift.length=0 is out of range"),
        ({"stop": "2"}, "swift.stop=2 is out of range"),
        ({"leaves": "0"}, "swift.leaves=0 is out of range"),
        ({"nodes": "129"}, "swift.nodes=129 is out of range"),
        ({"scope": "stream"}, "swift.scope=stream is not allowed"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(deep, options, message):
    with pytest.raises(BenchError, match=message):
        build_decoder("swift", deep, {"swift": options})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("llama", {"num_hidden_layers": 1}, "has one layer"), ("not fused", {}, "skips no layers")],
)
def test_a_target_that_cannot_skip_is_refused(name, options, message):
    with pytest.raises(BenchError, match=message):
        Swift(random_target(name, **options))


@pytest.mark.parametrize("adapt", [True, False])
def test_it_drafts_in_every_step_only_while_it_searches(deep, adapt):
    """A search finds better layers than those whose drafts do not pay now."""
    drafter = Swift(deep, adapt=adapt, tree="auto")
    slow = Costs((1.0,) * len(SIZES), 50.0, 50.0)
    drafter.prepare(deep, {"greedy": asdict(slow)})
    candidates = drafter.candidates
    trees = []
    drafter.candidates = lambda *given: trees.append(candidates(*given)) or trees[-1]
    steps = len(run(deep, drafter).committed)
    assert len(trees) == (steps if adapt else 1)


def test_better_layers_are_not_held_to_what_worse_ones_drafted(deep, monkeypatch):
    drafter = Swift(deep, tree="auto", **SEARCHING)
    better = LayerPlan(frozenset({2}), frozenset({2}))
    found = []
    forgotten = []

    def step(search, score):
        search.best = better if found else search.best
        found.append(search.best)

    forget = drafter.forget_chances
    monkeypatch.setattr(swift.LayerSearch, "step", step)
    monkeypatch.setattr(drafter, "forget_chances", lambda: forgotten.append(forget()))
    run(deep, drafter)
    assert drafter.draft.layers == better
    assert len(found) > 2
    assert len(forgotten) == 2  # at the beginning, and with the better ones
