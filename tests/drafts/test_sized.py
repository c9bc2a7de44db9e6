"""Drafters that are sized by the machine: vanilla's tokens, and as many candidates as pay."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from doubles import random_model

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.hybrid import Hybrid
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.drafts.sized import SizedDrafter, resolved_tree
from fspad_bench.drafts.sizing import costs, timing
from fspad_bench.drafts.sizing.costs import SIZES, Costs
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError

FREE = Costs((1.0,) * len(SIZES), 0.0, 0.0)
DEAR = Costs(tuple(float(n) for n in SIZES), 0.0, 0.0)  # a node costs what it can at best bring
SLOW = Costs(FREE.forward, 9.0, 9.0)  # asking takes nine forwards
PROMPTS = [[40, 41, 42, 43, 44, 45] * 2, list(range(20, 50)), [5, 6, 7] * 8]


def is_sized(name):
    return issubclass(registry.resolve(registry.DECODERS, name), SizedDrafter)


NAMES = [name for name in registry.usable(registry.DECODERS) if is_sized(name)]
LEARNED = {
    "aded": lambda drafter: drafter.trigrams.values,
    "suffix": lambda drafter: drafter.earlier.size,
    "token_recycling": lambda drafter: drafter.table,
}
LEARNING = (*LEARNED, "swift")  # that take scope=run


def steps(target, drafter, prompt, temperature=0.0, tokens=32):
    return generate(target, drafter, Sampler(temperature, seed=3), prompt, Limit(tokens))


def known(seconds):
    """The costs of a greedy and of a sampled step, as a record holds them."""
    return {"greedy": asdict(seconds), "sampled": asdict(seconds)}


def prepared(name, target, seconds, **options):
    drafter = build_decoder(name, target, {name: options}).drafter
    assert drafter.tree == "auto"
    assert drafter.prepare(target, known(seconds)) == known(seconds)
    return drafter


def test_there_are_some():
    assert {"aded", "prompt_lookup", "suffix", "token_recycling"} <= set(NAMES)
    assert set(LEARNING) <= set(NAMES)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_vanillas_whatever_a_forward_costs(tiny, name, temperature):
    vanilla = build_decoder("vanilla", tiny).drafter
    drafters = [prepared(name, tiny, seconds) for seconds in (FREE, DEAR, SLOW, costs.TINY)]
    for prompt in PROMPTS:
        expected = steps(tiny, vanilla, prompt, temperature).tokens
        for drafter in drafters:
            assert steps(tiny, drafter, prompt, temperature).tokens == expected


@pytest.mark.parametrize("name", NAMES)
def test_all_is_proposed_where_forwards_are_free_and_nothing_where_no_node_pays(tiny, name):
    drafted = {}
    for key, seconds in (("free", FREE), ("dear", DEAR)):
        drafter = prepared(name, tiny, seconds)
        drafted[key] = sum(sum(steps(tiny, drafter, prompt).drafted) for prompt in PROMPTS)
    unsized = build_decoder(name, tiny).drafter
    unsized.whole()
    everything = sum(sum(steps(tiny, unsized, prompt).drafted) for prompt in PROMPTS)
    assert everything > 0
    assert drafted["dear"] == 0
    assert drafted["free"] > 0.5 * everything  # but for faint ones


class Guessing(SizedDrafter):
    """Proposes what is right, beside two tokens that are not."""

    def __init__(self, target, right, **options):
        super().__init__(target, **options)
        self.right = right
        self.asked = 0

    def candidates(self, context, budget):
        self.asked += 1
        at = len(context.new_tokens)
        root = context.tokens[-1]
        wrong = [token for token in (1, 2, 3) if token not in self.right[at : at + 1]][:2]
        return Tree.from_paths(root, [[token] for token in wrong] + [self.right[at : at + 3]])


def test_candidates_that_were_left_out_are_learned_from(tiny):
    """The right one stands third among its siblings, so at first it is left out."""
    right = steps(tiny, build_decoder("vanilla", tiny).drafter, PROMPTS[1], tokens=40).tokens
    drafter = Guessing(tiny, right)
    level = Costs(tuple(1 + 0.25 * (n - 1) for n in SIZES), 0.0, 0.0)
    drafter.prepare(tiny, known(level))
    generation = steps(tiny, drafter, PROMPTS[1], tokens=40)
    assert generation.tokens == right
    assert generation.committed[0] < 4
    assert generation.committed[-4:-1] == [4, 4, 4]
    assert generation.drafted[-4:-1] == [3, 3, 3]  # the path alone


@pytest.mark.parametrize(
    ("seconds", "are_right", "least", "most"),
    [
        (0.0, False, 1.0, 1.0),
        (0.5, True, 1.0, 1.0),
        (2.0, True, 1.0, 1.0),  # not by what a beginner's guesses are taken to be worth
        (0.5, False, 0.04, 0.2),
        (2.0, False, 0.01, 0.06),
        (9.0, True, 0.0, 0.05),
    ],
)
def test_it_is_asked_where_its_usual_proposal_pays(tiny, seconds, are_right, least, most):
    """A right one makes four tokens of a forward; looking again takes 2% of the time."""
    vanilla = build_decoder("vanilla", tiny).drafter
    right = steps(tiny, vanilla, PROMPTS[1], tokens=96).tokens
    drafter = Guessing(tiny, right if are_right else [(token + 1) % 97 for token in right])
    drafter.prepare(tiny, known(Costs(FREE.forward, seconds, seconds)))
    generation = steps(tiny, drafter, PROMPTS[1], tokens=96)
    assert generation.tokens == right
    assert least <= drafter.asked / len(generation.drafted) <= most


class Drawing(SizedDrafter):
    """Says from which distribution its children were drawn."""

    def candidates(self, context, budget):
        return Tree([context.tokens[-1], 1, 2], [-1, 0, 0], q=torch.full((3, 4), 0.25))


def test_drawn_children_are_proposed_as_a_whole(tiny):
    """Without one of them the others would not have been drawn from what `q` says."""
    drafter = Drawing(tiny)
    drafter.prepare(tiny, known(DEAR))
    context = Context([5, 6], 1, Sampler())
    drafter.begin(context, None)
    assert len(drafter.propose(context, 9)) == 3


def test_one_without_candidates_says_so(tiny):
    with pytest.raises(TypeError, match=r"SizedDrafter has no candidates\(context, budget\)"):
        SizedDrafter(tiny).propose(Context([5, 6], 1, Sampler()), 4)


def measurable():
    model = random_model("llama", max_position_embeddings=costs.NEAR + LARGEST_TREE + 1)
    return TransformersTarget(model, tiny_tokenizer(), "other", "abc")


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "TURNS", 2)
    monkeypatch.setattr(timing, "WARM", 1)
    monkeypatch.setattr(costs, "_measured", {})


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scope", ["prompt", "run"])
@pytest.mark.parametrize("name", LEARNING)
def test_nothing_is_learned_from_being_timed(name, scope):
    """The drafts after it are those of a drafter that was told the costs."""
    target = measurable()
    drafter = build_decoder(name, target, {name: {"scope": scope}}).drafter
    measured = drafter.prepare(target)
    for seconds in measured.values():
        assert min(seconds["forward"]) > 0
        assert seconds["overhead"] > seconds["per_level"] > 0
    assert drafter.scope == scope
    if name in LEARNED:
        assert not LEARNED[name](drafter)
    told = build_decoder(name, target, {name: {"scope": scope}}).drafter
    assert told.prepare(target, measured) == measured
    for prompt in PROMPTS:
        one, other = (steps(target, d, prompt, 0.5) for d in (drafter, told))
        assert (one.tokens, one.committed) == (other.tokens, other.committed)
        assert one.drafted == other.drafted


class Foreign(PromptLookup):
    """Of another package: what its code costs can change from run to run."""

    def settings(self):
        return {**super().settings(), "corpus": Path("words.txt")}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("kind", "timed"), [(PromptLookup, 2), (Foreign, 4)])
def test_costs_are_kept_of_this_packages_code_alone(kind, timed, monkeypatch):
    target = measurable()
    calls = []
    monkeypatch.setattr(timing, "step_seconds", lambda *a: calls.append(a) or (2.0, len(calls)))
    for _ in range(2):
        drafter = kind(target)
        drafter.prepare(target)
        assert drafter.costs[True].per_level == len(calls) - 1
    assert len(calls) == timed


class Gathering(SizedDrafter):
    """Learns across prompts, whatever its `scope` is set to."""

    scope = "run"

    def __init__(self, target):
        super().__init__(target)
        self.seen = {}

    def candidates(self, context, budget):
        return Tree.root(context.tokens[-1])

    def observe(self, step):
        super().observe(step)
        self.seen[len(self.seen)] = step.tokens


@pytest.mark.usefixtures("quick")
def test_what_always_learns_learns_nothing_from_being_timed():
    target = measurable()
    drafter = Gathering(target)
    drafter.prepare(target)
    assert drafter.seen == {}
    steps(target, drafter, PROMPTS[0])
    assert drafter.seen


def test_trees_shrink_where_requests_share_a_forward(tiny):
    """Alone, up to four nodes are free; of four requests each has a quarter of them."""
    flat_to_four = Costs(tuple(max(1.0, n / 4) for n in SIZES), 0.0, 0.0)
    drafter = prepared("prompt_lookup", tiny, flat_to_four)
    prompt = PROMPTS[2]
    context = Context([*prompt, 5], len(prompt), Sampler())
    drafter.begin(context, None)
    alone = len(drafter.propose(context, 9))
    context.batch = 4
    assert len(drafter.propose(context, 9)) < alone == 4


def test_unprepared_it_proposes_every_candidate(tiny):
    drafter = build_decoder("prompt_lookup", tiny).drafter
    whole = build_decoder("prompt_lookup", tiny, {"prompt_lookup": {"length": "16"}}).drafter
    assert (drafter.tree, whole.tree) == ("auto", "fixed")
    assert whole.prepare(tiny) is None
    drafted = [steps(tiny, own, PROMPTS[2]).drafted for own in (drafter, whole)]
    assert drafted[0] == drafted[1]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "prompt_lookup"])
def test_a_size_that_is_given_is_kept(tiny, name):
    assert build_decoder(name, tiny, {name: {"nodes": "7"}}).options["tree"] == "fixed"
    both = {"nodes": "7", "tree": "auto"}
    options = build_decoder(name, tiny, {name: both}).options
    assert (options["tree"], options["nodes"]) == ("auto", 7)


def test_a_hybrid_cuts_by_itself(tiny):
    hybrid = Hybrid(tiny, of="suffix,prompt_lookup")
    hybrid.prepare(tiny)
    trees = [part.drafter.tree for part in [*hybrid.parts, *hybrid.twin().parts]]
    assert trees == ["fixed"] * 4
    assert all(part.drafter.costs is None for part in hybrid.parts)


class TestTree:
    def test_is_fixed_where_nothing_can_be_timed(self):
        assert resolved_tree(ScriptedTarget(), "", sized=False) == "fixed"
        with pytest.raises(BenchError, match="this target does not read"):
            resolved_tree(ScriptedTarget(), "auto", sized=False)
        model = random_model("llama", max_position_embeddings=costs.NEAR)
        short = TransformersTarget(model, tiny_tokenizer(), "short", "abc")
        assert resolved_tree(short, "", sized=False) == "fixed"

    def test_follows_what_is_said(self, tiny):
        assert resolved_tree(tiny, "", sized=False) == "auto"
        assert resolved_tree(tiny, "", sized=True) == "fixed"
        assert resolved_tree(tiny, "auto", sized=True) == "auto"
        assert resolved_tree(tiny, "fixed", sized=False) == "fixed"
        with pytest.raises(BenchError, match="unknown tree 'atuo'"):
            resolved_tree(tiny, "atuo", sized=False)
