"""The dynamic tree equals a brute-force one that recomputes every path from target features."""

from dataclasses import replace

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.cache import DraftCache
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import architecture
from fspad_bench.drafts.shape import Shape
from fspad_bench.models.load import load_target
from fspad_bench.util.errors import BenchError

DECODERS = {"eagle": Eagle, "fspad": Fspad}
GREEDY = Sampler()
PROMPT = list(range(30, 52))


class Recorder(Drafter):
    """Passes everything through, and keeps what a brute-force drafter would need.

    `proposals`: (committed tokens, the target's features of them, the tree, the budget).
    """

    def __init__(self, drafter):
        self.drafter = drafter
        self.proposals = []

    def begin(self, context, scores):
        self.features = scores.features
        self.drafter.begin(context, scores)

    def propose(self, context, budget):
        tree = self.drafter.propose(context, budget)
        self.proposals.append((list(context.tokens), self.features, tree, budget))
        return tree

    def observe(self, step):
        self.features = torch.cat([self.features, step.scores.features[step.accepted.path]])
        self.drafter.observe(step)


def vocabulary_after(drafter, tokens):
    """Return the ids that can be drafted after these tokens."""
    base_ids = drafter.draft.vocabulary.base_ids.tolist()
    return torch.tensor([*base_ids, *sorted(set(tokens) - set(base_ids))])


def log_q(drafter, target, tokens, features, path, *, feed_back="h_feature", sampler=GREEDY):
    """Return log softmax(logits + T * G) over the draft vocabulary after `path`.

    From scratch: without a cache, without a tree.
    """
    ids = vocabulary_after(drafter, tokens)
    tokens = [*tokens[1:], *path]
    noise = sampler.temperature * sampler.noise(len(tokens) + 1, ids)
    e = target.embedding(torch.tensor(tokens))
    while True:
        rows = torch.ones(1, len(features), dtype=torch.bool)
        out = drafter.head.network(e[None, : len(features)], features[None], rows)
        if len(features) == len(tokens):
            z = target.lm_head.weight[ids] @ out.h_logit[-1] + noise
            return z.log_softmax(-1)
        features = torch.cat([features, getattr(out, feed_back)[-1:]])


def brute_force(drafter, target, tokens, features, depth, sampler):
    """Return the paths of EAGLE-2's tree.

    Expand the best k of a level; keep the best nodes - 1 of all candidates.
    """
    k = drafter.options.top_k
    ids = vocabulary_after(drafter, tokens)
    frontier = [((), 0.0)]
    candidates = []
    for _ in range(depth):
        level = []
        for path, score in frontier:
            best = log_q(drafter, target, tokens, features, path, sampler=sampler).topk(k)
            for token, q in zip(ids[best.indices].tolist(), best.values.tolist(), strict=True):
                level.append(((*path, token), score + q))
        candidates += level
        frontier = sorted(level, key=lambda candidate: -candidate[1])[:k]
    best_first = sorted(candidates, key=lambda candidate: -candidate[1])
    return {path for path, _ in best_first[: drafter.options.nodes - 1]}


def path_of_node(tree):
    """Return node -> the drafted tokens that lead to it."""
    paths = {0: ()}
    for node in range(1, len(tree)):
        paths[node] = (*paths[tree.parents[node]], tree.tokens[node])
    return paths


def drafted_paths(tree):
    return set(path_of_node(tree).values()) - {()}


def run(tiny, heads, name, sampler=GREEDY, **options):
    drafter = DECODERS[name](tiny, head=str(heads[name]), **options)
    recorder = Recorder(drafter)
    generate(tiny, recorder, sampler, PROMPT, Limit(14))
    return drafter, recorder


@torch.inference_mode()
def check_trees(tiny, heads, name, sampler, *, ranked_by=None, **options):
    """Assert that every tree of a generation, of 12 nodes and 4 levels, equals brute force."""
    drafter, recorder = run(tiny, heads, name, sampler, nodes=12, depth=4, top_k=3, **options)
    assert len(recorder.proposals) > 3
    for tokens, features, tree, budget in recorder.proposals:
        depth = min(4, budget)
        expected = brute_force(drafter, tiny, tokens, features, depth, ranked_by or sampler)
        assert drafted_paths(tree) == expected, len(tokens)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_trees_equal_brute_force(tiny, heads, name, temperature):
    """At T > 0 with the noise of each position, which makes the draft meet the target's choice."""
    check_trees(tiny, heads, name, Sampler(temperature, stream="coupled"))


def test_greedy_drafts_that_would_be_drawn_are_ranked(tiny, heads):
    """Drawn from a distribution of one token, a tree would be a chain of two."""
    options = {"nodes": 12, "depth": 4, "top_k": 3}
    _, drawn = run(tiny, heads, "fspad", drafting="sampled", verify="rejection", **options)
    _, ranked = run(tiny, heads, "fspad", drafting="ranked", **options)
    assert [len(tree) for _, _, tree, _ in drawn.proposals] == [
        len(tree) for _, _, tree, _ in ranked.proposals
    ]
    assert max(len(tree) for _, _, tree, _ in drawn.proposals) == 12


@pytest.mark.parametrize(
    ("given", "depth"),
    [
        ({}, 2),
        ({"nodes": 12}, 2),
        ({"nodes": 60}, 5),
        ({"nodes": 128}, 8),
        ({"top_k": 1}, 2),
        ({"nodes": 60, "top_k": 10}, 2),
        ({"nodes": 60, "depth": 3}, 3),
    ],
)
def test_more_nodes_take_more_levels(tiny, heads, given, depth):
    """Four children a node and two levels hold 21."""
    drafter = DECODERS["eagle"](tiny, head=str(heads["eagle"]), tree="fixed", **given)
    assert drafter.options.depth == depth


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_head_may_group_its_heads_otherwise_than_its_target(tiny, tmp_path, kv_heads):
    torch.manual_seed(3)
    shape = replace(Shape.of_target(tiny.config), kv_heads=kv_heads)
    network = architecture("fspad")(shape)
    Head(network, torch.arange(97), tiny.name, tiny.identity).save(tmp_path)
    assert kv_heads != tiny.config.num_key_value_heads
    check_trees(tiny, {"fspad": tmp_path}, "fspad", Sampler(stream="coupled"))


def test_trees_survive_a_cache_that_grows_in_their_midst(tiny, heads, monkeypatch):
    monkeypatch.setattr(DraftCache, "SPARE", 1)
    check_trees(tiny, heads, "fspad", GREEDY)


@pytest.mark.parametrize("spare", [1, 1024])
def test_drawn_nodes_carry_the_distributions_of_their_own_paths(tiny, heads, monkeypatch, spare):
    monkeypatch.setattr(DraftCache, "SPARE", spare)
    sampler = Sampler(0.9)
    options = {"nodes": 12, "depth": 3, "top_k": 3, "drafting": "sampled"}
    drafter, recorder = run(tiny, heads, "fspad", sampler, **options)
    inner_nodes = 0
    with torch.inference_mode():
        for tokens, features, tree, _ in recorder.proposals:
            ids = vocabulary_after(drafter, tokens)
            for node, path in path_of_node(tree).items():
                if not tree.offspring[node]:
                    continue
                inner_nodes += 1
                logits = log_q(drafter, tiny, tokens, features, path)
                q = (logits / sampler.temperature).softmax(-1).double()
                torch.testing.assert_close(tree.q[node][ids], q, rtol=0, atol=1e-6)
    assert inner_nodes > 3


def test_ranked_drafts_ignore_the_noise(tiny, heads):
    check_trees(tiny, heads, "fspad", Sampler(1.0), ranked_by=GREEDY, drafting="ranked")


def test_coupled_drafts_are_accepted_more_often(tiny):
    """With the shipped heads. The outputs are equal, so only the number of forwards may differ."""
    limit = Limit(64)
    samplers = [Sampler(1.0, seed=seed) for seed in range(4)]
    vanilla = [generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens for sampler in samplers]
    forwards = {}
    for drafting in ("coupled", "ranked"):
        generations = [
            generate(tiny, Fspad(tiny, drafting=drafting), sampler, PROMPT, limit)
            for sampler in samplers
        ]
        assert [generation.tokens for generation in generations] == vanilla
        forwards[drafting] = sum(generation.forwards for generation in generations)
    assert forwards["coupled"] < 0.97 * forwards["ranked"]


def test_feeding_back_h_logit_would_draft_otherwise(tiny, heads):
    drafter, recorder = run(tiny, heads, "fspad", nodes=12, depth=3, top_k=3)
    tokens, features, tree, _ = recorder.proposals[0]
    first = (tree.tokens[1],)
    with torch.inference_mode():
        right = log_q(drafter, tiny, tokens, features, first)
        wrong = log_q(drafter, tiny, tokens, features, first, feed_back="h_logit")
    assert (right - wrong).abs().max() > 1e-3


def test_the_draft_cache_holds_entries_of_target_features_only(tiny, heads):
    drafter, recorder = run(tiny, heads, "fspad", nodes=12, depth=3, top_k=3)
    # the last proposal that drafted anything
    tokens, features, _, _ = next(p for p in reversed(recorder.proposals) if p[3])
    cache = drafter.draft.cache
    network = drafter.head.network
    assert cache.length == len(tokens) - 1
    e = tiny.embedding(torch.tensor(tokens[1:]))
    with torch.inference_mode():
        x = network.fuse(e, features)
        rope = network.rope(torch.arange(len(x))).to(x.dtype)
        fresh = network.attention.keys_values(x, rope)
        for cached, computed in zip(cache.view(), fresh, strict=True):
            torch.testing.assert_close(cached, computed, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("nodes", "depth", "top_k"), [(2, 1, 1), (60, 6, 10), (5, 1, 8), (40, 2, 3)]
)
def test_any_tree_shape_keeps_its_bounds(tiny, heads, nodes, depth, top_k):
    options = {"nodes": nodes, "depth": depth, "top_k": top_k, "vocabulary": "head"}
    _, recorder = run(tiny, heads, "eagle", **options)
    for _, _, tree, budget in recorder.proposals:
        assert len(tree) <= nodes
        assert max(tree.depths) <= min(depth, budget)
        assert not any(token % 3 == 0 for token in tree.tokens[1:])


WRONG = [
    ({"nodes": 1}, "out of range"),
    ({"nodes": 500}, "out of range"),
    ({"depth": -1}, "out of range"),
    ({"top_k": 0}, "out of range"),
    ({"top_k": 0, "tree": "fixed"}, "out of range"),
    ({"tree": "best"}, "unknown tree 'best'"),
    ({"verify": "reject"}, "unknown verification 'reject'"),
    ({"drafting": "guess"}, "unknown drafting 'guess'"),
    ({"vocabulary": "hed"}, "unknown vocabulary 'hed'"),
    ({"verify": "rejection", "drafting": "coupled"}, "makes no use of coupled drafts"),
]


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_out_of_range_are_refused(tiny, heads, monkeypatch, options, message, captured):
    monkeypatch.setenv("FSPAD_KERNELS", "reference")
    target = load_target("tiny") if captured else tiny
    with pytest.raises(BenchError, match=message):
        Eagle(target, head=str(heads["eagle"]), **options)
