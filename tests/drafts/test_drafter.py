"""The dynamic tree against a brute-force one that recomputes every path from the target's features."""

from dataclasses import replace

import pytest
import torch

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.cache import DraftRows
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.errors import BenchError

DECODERS = {"eagle": Eagle, "fspad": Fspad}
GREEDY = Sampler()
PROMPT = list(range(30, 52))


class Witness:
    """Passes everything through, and keeps what a brute-force drafter would need."""

    def __init__(self, drafter):
        self.drafter, self.trees = drafter, []

    def begin(self, context, scores):
        self.features = scores.features
        self.drafter.begin(context, scores)

    def propose(self, context, budget):
        tree = self.drafter.propose(context, budget)
        self.trees.append((list(context.tokens), self.features, tree, budget))
        return tree

    def observe(self, step):
        self.features = torch.cat([self.features, step.scores.features[step.accepted.path]])
        self.drafter.observe(step)


def vocabulary_after(drafter, tokens):
    """What it could say after these tokens."""
    usual = drafter.sayable.usual.tolist()
    return torch.tensor([*usual, *sorted(set(tokens) - set(usual))])


def log_q(drafter, target, tokens, features, draft, *, feed_back="h_feature", sampler=GREEDY):
    """log softmax(z), z = logits + T * G, over the draft vocabulary after `draft`, from scratch: no cache, no tree."""
    said, tokens = vocabulary_after(drafter, tokens), [*tokens[1:], *draft]
    noise = sampler.temperature * sampler.noise(len(tokens) + 1, said)
    e = target.embedding(torch.tensor(tokens))
    while True:
        out = drafter.network(
            e[None, : len(features)], features[None], torch.ones(1, len(features), dtype=torch.bool)
        )
        if len(features) == len(tokens):
            z = target.lm_head.weight[said] @ out.h_logit[-1] + noise
            return z.log_softmax(-1)
        features = torch.cat([features, getattr(out, feed_back)[-1:]])


def brute_force(drafter, target, tokens, features, depth, sampler):
    """The paths of EAGLE-2's tree: expand the best k of a level, keep the best nodes - 1 of all candidates."""
    k, frontier, pool = drafter.top_k, [((), 0.0)], []
    for _ in range(depth):
        level = []
        for path, score in frontier:
            best = log_q(drafter, target, tokens, features, path, sampler=sampler).topk(k)
            ids = vocabulary_after(drafter, tokens)[best.indices].tolist()
            level += [
                ((*path, t), score + q) for t, q in zip(ids, best.values.tolist(), strict=True)
            ]
        pool += level
        frontier = sorted(level, key=lambda found: -found[1])[:k]
    return {path for path, _ in sorted(pool, key=lambda found: -found[1])[: drafter.nodes - 1]}


def tracked(tree):
    """The drafted tokens that lead to each node."""
    found = {0: ()}
    for node in range(1, len(tree)):
        found[node] = (*found[tree.parents[node]], tree.tokens[node])
    return found


def paths(tree):
    return set(tracked(tree).values()) - {()}


def run(tiny, heads, name, sampler=GREEDY, **options):
    drafter = DECODERS[name](tiny, head=str(heads[name]), **options)
    witness = Witness(drafter)
    generate(tiny, witness, sampler, PROMPT, Limit(14))
    return drafter, witness


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_trees_equal_brute_force(tiny, heads, name, temperature):
    """At T > 0 with the very noise of each position: that is what makes the draft meet the target's choice."""
    trees_equal_brute_force(tiny, heads, name, temperature)


def trees_equal_brute_force(tiny, heads, name, temperature):
    sampler = Sampler(temperature, stream="coupled")
    drafter, witness = run(tiny, heads, name, sampler, nodes=12, depth=4, top_k=3)
    assert len(witness.trees) > 3
    with torch.inference_mode():
        for tokens, features, tree, budget in witness.trees:
            assert paths(tree) == brute_force(
                drafter, tiny, tokens, features, min(4, budget), sampler
            ), len(tokens)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_head_may_group_its_heads_otherwise_than_its_target(tiny, tmp_path, kv_heads):
    torch.manual_seed(3)
    shape = replace(Shape.of_target(tiny.config, "fspad"), kv_heads=kv_heads)
    Head(DraftNetwork(shape), torch.arange(97), tiny.name, tiny.identity).save(tmp_path)
    assert kv_heads != tiny.config.num_key_value_heads
    trees_equal_brute_force(tiny, {"fspad": tmp_path}, "fspad", 0.0)


def test_trees_survive_a_cache_that_grows_in_their_midst(tiny, heads, monkeypatch):
    monkeypatch.setattr(DraftRows, "SPARE", 1)
    drafter, witness = run(tiny, heads, "fspad", nodes=12, depth=4, top_k=3)
    with torch.inference_mode():
        for tokens, features, tree, budget in witness.trees:
            assert paths(tree) == brute_force(
                drafter, tiny, tokens, features, min(4, budget), GREEDY
            ), len(tokens)


@pytest.mark.parametrize("spare", [1, 1024])
def test_drawn_nodes_carry_the_laws_of_their_own_paths(tiny, heads, monkeypatch, spare):
    monkeypatch.setattr(DraftRows, "SPARE", spare)
    sampler = Sampler(0.9)
    drafter, witness = run(
        tiny, heads, "fspad", sampler, nodes=12, depth=3, top_k=3, drafting="sampled"
    )
    with torch.inference_mode():
        for tokens, features, tree, _ in witness.trees:
            for node, path in tracked(tree).items():
                if tree.offspring[node]:
                    law = (
                        log_q(drafter, tiny, tokens, features, path) / sampler.temperature
                    ).softmax(-1)
                    torch.testing.assert_close(
                        tree.q[node][vocabulary_after(drafter, tokens)],
                        law.double(),
                        rtol=0,
                        atol=1e-6,
                    )


def test_ranked_drafts_know_nothing_of_the_noise(tiny, heads):
    drafter, witness = run(
        tiny, heads, "fspad", Sampler(1.0), nodes=12, depth=4, top_k=3, drafting="ranked"
    )
    with torch.inference_mode():
        for tokens, features, tree, budget in witness.trees:
            assert paths(tree) == brute_force(
                drafter, tiny, tokens, features, min(4, budget), GREEDY
            ), len(tokens)


def test_coupled_drafts_are_accepted_more_often(tiny):
    """With the shipped heads; the outputs are the same, so only the number of forwards may differ."""
    limit, samplers = Limit(64), [Sampler(1.0, seed=seed) for seed in range(4)]
    vanilla = [generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens for sampler in samplers]
    forwards = {}
    for drafting in ("coupled", "ranked"):
        made = [
            generate(tiny, Fspad(tiny, drafting=drafting), sampler, PROMPT, limit)
            for sampler in samplers
        ]
        assert [found.tokens for found in made] == vanilla
        forwards[drafting] = sum(found.forwards for found in made)
    assert forwards["coupled"] < 0.97 * forwards["ranked"]


def test_feeding_back_h_logit_would_draft_otherwise(tiny, heads):
    drafter, witness = run(tiny, heads, "fspad", nodes=12, depth=3, top_k=3)
    tokens, features, tree, _ = witness.trees[0]
    first = (tree.tokens[1],)
    with torch.inference_mode():
        right = log_q(drafter, tiny, tokens, features, first)
        wrong = log_q(drafter, tiny, tokens, features, first, feed_back="h_logit")
    assert (right - wrong).abs().max() > 1e-3


def test_the_draft_cache_holds_rows_of_target_features_only(tiny, heads):
    drafter, witness = run(tiny, heads, "fspad", nodes=12, depth=3, top_k=3)
    tokens, features, _, _ = next(
        found for found in reversed(witness.trees) if found[3]
    )  # the last that was drafted
    assert drafter.rows.length == len(tokens) - 1
    e = tiny.embedding(torch.tensor(tokens[1:]))
    with torch.inference_mode():
        x = drafter.network.fuse(e, features)
        rope = drafter.network.rope(torch.arange(len(x))).to(x.dtype)
        for held, fresh in zip(
            drafter.rows.view(), drafter.network.attention.keys_values(x, rope), strict=True
        ):
            torch.testing.assert_close(held, fresh, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("nodes", "depth", "top_k"), [(2, 1, 1), (60, 6, 10), (5, 1, 8), (40, 2, 3)]
)
def test_any_tree_shape_keeps_its_bounds(tiny, heads, nodes, depth, top_k):
    _, witness = run(tiny, heads, "eagle", nodes=nodes, depth=depth, top_k=top_k, vocabulary="head")
    for _, _, tree, budget in witness.trees:
        assert len(tree) <= nodes
        assert max(tree.depths) <= min(depth, budget)
        assert not any(token % 3 == 0 for token in tree.tokens[1:])


WRONG = [
    ({"nodes": 1}, "out of range"),
    ({"nodes": 500}, "out of range"),
    ({"depth": -1}, "out of range"),
    ({"top_k": 0}, "out of range"),
    ({"tree": "best"}, "unknown tree 'best'"),
    ({"verify": "reject"}, "unknown verification 'reject'"),
    ({"drafting": "guess"}, "unknown drafting 'guess'"),
    ({"verify": "rejection", "drafting": "coupled"}, "makes no use of coupled drafts"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_options_out_of_range_are_refused(tiny, heads, options, said):
    with pytest.raises(BenchError, match=said):
        Eagle(tiny, head=str(heads["eagle"]), **options)
