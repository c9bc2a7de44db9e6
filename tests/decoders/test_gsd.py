"""GSD's tokens are vanilla's, and its draft is right again after a merged path was accepted."""

import pytest
import torch
from recording import Recorder, compare_with_vanilla

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import match
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.gsd import Gsd
from fspad_bench.drafts.language_model import LanguageModel
from fspad_bench.drafts.trees.graph import draft_graph
from fspad_bench.util.errors import BenchError

PROMPT = list(range(30, 52))
PRESETS = ("gsd", "gsd@chain", "gsd@tree", "gsd@graph")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", PRESETS)
def test_the_tokens_are_vanillas(tiny, name, temperature):
    drafter = build_decoder(name, tiny).drafter
    compare_with_vanilla(tiny, drafter, [PROMPT[i:] for i in range(4)], temperature)
    assert drafter.rule is match


@pytest.mark.sampled(2)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["gsd", "gsd@chain"])
def test_the_tokens_are_vanillas_with_a_trained_draft_model(tiny, heads, name, temperature):
    options = {"gsd": {"model": str(heads["draft_model"])}}
    drafter = build_decoder(name, tiny, options).drafter
    compare_with_vanilla(tiny, drafter, [PROMPT[i:] for i in range(4)], temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@torch.inference_mode()
def test_the_draft_model_is_right_again_after_a_merged_path(tiny, temperature, monkeypatch):
    """Every graph equals that of a draft model which reads the whole text anew."""
    short = []
    kept = LanguageModel._kept

    def recording(self, committed):
        path = kept(self, committed)
        short.append(len(path) < len(self.tokens) - 1 - committed)
        return path

    monkeypatch.setattr(LanguageModel, "_kept", recording)
    drafter = Gsd(tiny, model="tiny", repeat=0, length=4, prob_threshold=0.0)
    recorder = Recorder(drafter)
    sampler = Sampler(temperature, seed=1)
    generate(tiny, recorder, sampler, PROMPT, Limit(60))
    assert any(short)  # the draft had not read all that was accepted
    for tokens, tree, budget in recorder.proposals:
        context = Context(tokens, len(PROMPT), sampler)
        fresh = LanguageModel(tiny, drafter.draft.model)
        levels = fresh.follow(context, budget)
        if levels > 0:
            graph = draft_graph(fresh, context, drafter.shape, levels)
            assert graph.unrolled(min(drafter.depth, budget)) == tree


def test_merging_drafts_fewer_tokens(tiny):
    """At equal thresholds; `prob_threshold=0` has no leaves, so that branches do repeat."""
    drafted = {}
    for repeat in (-1, 0):
        options = {"n_tree": 4, "prob_threshold": 0.0, "nodes": 128, "length": 4}
        drafter = Gsd(tiny, model="tiny", repeat=repeat, **options)
        graph = []
        add = drafter.draft.expand
        drafter.draft.expand = lambda tokens, rows, add=add, graph=graph: (
            graph.append(len(tokens)) or add(tokens, rows)
        )
        generate(tiny, drafter, Sampler(), PROMPT, Limit(8))
        drafted[repeat] = sum(graph)
    assert drafted[0] < 0.7 * drafted[-1]


def test_a_full_tree_is_drafted_on_no_further(tiny, monkeypatch):
    """Nothing can be added to it: the forward of its last level would be for nothing."""
    drafter = Gsd(tiny, model="tiny", repeat=-1, n_tree=4, prob_threshold=0.0, nodes=6)
    levels = []
    expand = drafter.draft.expand
    monkeypatch.setattr(
        drafter.draft, "expand", lambda tokens, rows: levels.append(1) or expand(tokens, rows)
    )
    generation = generate(tiny, drafter, Sampler(), PROMPT, Limit(12))
    wide = [count for count in generation.drafted if count == 5]
    assert wide
    assert len(levels) <= len(generation.drafted)  # one level below the root, then it is full


def test_presets_are_the_chain_the_tree_and_the_graph(tiny):
    shapes = {name: build_decoder(name, tiny).options for name in PRESETS[1:]}
    assert [(s["n_tree"], s["repeat"]) for s in shapes.values()] == [(1, -1), (4, -1), (4, 1)]
    assert shapes["gsd@graph"]["skipped_layers"] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tree": "0"}, "gsd takes n_tree, length, depth >= 1"),
        ({"length": "0"}, "gsd takes n_tree, length, depth >= 1"),
        ({"depth": "0"}, "gsd takes n_tree, length, depth >= 1"),
        ({"nodes": "1"}, "2 <= nodes <= 128"),
        ({"nodes": "129"}, "2 <= nodes <= 128"),
        ({"repeat": "-2"}, "gsd.repeat=-2"),
        ({"prob_threshold": "1.1"}, "gsd.prob_threshold=1.1 is out of range"),
        ({"sibling_threshold": "-0.1"}, "gsd.sibling_threshold=-0.1 is out of range"),
        ({"skip": "0"}, "skip=0 is no share"),
        ({"model": "nowhere"}, "draft model: unknown target 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(tiny, options, message):
    with pytest.raises(BenchError, match=message):
        build_decoder("gsd", tiny, {"gsd": options})
