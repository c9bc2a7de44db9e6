"""Several drafters in one tree: vanilla's tokens, the expensive ones asked only where it pays."""

import pytest
from doubles import random_model

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.hybrid import Hybrid
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.drafts.measure import facts_of
from fspad_bench.drafts.sizing import costs, timing
from fspad_bench.drafts.sizing.costs import SIZES, Costs
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util.errors import BenchError

PROMPTS = [[40, 41, 42, 43, 44, 45] * 2, list(range(30, 60)), [5, 6, 7] * 8]
CHEAP = Costs((1.0,) * 12, 0.0, 0.0)


def asking(seconds, rest=0.0):
    """Costs of a drafter that asking takes so long, in steps with so much else beside forwards."""
    return Costs(CHEAP.forward, seconds + rest, seconds)


def both(seconds):
    """Costs of steps, be they greedy or sampled."""
    return dict.fromkeys((True, False), seconds)


def output(target, drafter, temperature, prompt, tokens=32):
    return generate(target, drafter, Sampler(temperature, seed=3), prompt, Limit(tokens))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("of", ["fspad,suffix", "eagle, fspad@fixed,prompt_lookup"])
def test_the_output_is_vanillas(tiny, of, temperature):
    hybrid = Hybrid(tiny, of=of)
    vanilla = build_decoder("vanilla", tiny).drafter
    for prompt in PROMPTS:
        expected = output(tiny, vanilla, temperature, prompt).tokens
        generation = output(tiny, hybrid, temperature, prompt)
        assert generation.tokens == expected
        assert sum(generation.drafted) > len(generation.drafted)


def test_it_accepts_what_its_drafters_would(tiny):
    """Together they are right at least as often as each alone, where trees are not cut."""
    steps = {}
    prompts = [PROMPTS[0], list(range(30, 42)), [60, 61, 62]]
    for name in ("hybrid", "fspad@ranked", "eagle@ranked"):
        options = {"hybrid": {"of": "fspad@ranked,eagle@ranked"}}
        drafter = build_decoder(name, tiny, options).drafter
        if name == "hybrid":
            drafter.prepare(tiny)
            for part in drafter.parts:
                part.costs = both(CHEAP)
        steps[name] = sum(len(output(tiny, drafter, 1.0, p).committed) for p in prompts)
    assert steps["hybrid"] < min(steps["fspad@ranked"], steps["eagle@ranked"])


class Counting(Fspad):
    asked = 0

    def propose(self, context, budget):
        self.asked += 1
        return super().propose(context, budget)


def test_a_head_is_not_asked_where_it_costs_more_than_it_brings(tiny):
    """One that costs nothing is asked in every step that has room for a draft."""
    shares = {}
    for seconds in (0.0, 0.5, 50.0):
        hybrid = Hybrid(tiny, of="fspad,prompt_lookup")
        head = Counting(tiny)
        hybrid.parts[0].drafter = head
        hybrid.prepare(tiny)
        hybrid.parts[0].costs = both(asking(seconds))
        hybrid.parts[1].costs = both(CHEAP)
        generation = output(tiny, hybrid, 0.0, [5, 6, 7] * 8, tokens=96)
        shares[seconds] = head.asked / len(generation.committed)
    assert shares[0.0] > 0.9
    assert shares[50.0] < 0.1
    assert shares[50.0] < shares[0.5] <= shares[0.0]


def test_a_head_that_was_not_asked_for_steps_drafts_as_one_that_was(tiny):
    """The features of every step reach it, in one forward or in several."""
    trees = {}
    for every in (1, 3):
        drafted = []

        class Resting(Fspad):
            def propose(self, context, budget, every=every, drafted=drafted):
                if context.position % every:
                    return Tree.root(context.tokens[-1])
                tree = super().propose(context, budget)
                drafted.append((context.position, tree))
                return Tree.root(context.tokens[-1])  # one token a step in both

        output(tiny, Resting(tiny, tree="fixed"), 0.0, PROMPTS[0])
        trees[every] = dict(drafted)
    common = trees[1].keys() & trees[3].keys()
    assert len(common) >= 8
    assert all(trees[1][at] == trees[3][at] for at in common)


def test_a_drafter_that_had_nothing_to_say_is_asked_again(tiny):
    """Its first proposal is empty: nothing is known of the later ones."""
    asked = []

    class Late(PromptLookup):
        def propose(self, context, budget):
            asked.append(context.position)
            if len(context.new_tokens) < 8:
                return Tree.root(context.tokens[-1])
            return super().propose(context, budget)

    hybrid = Hybrid(tiny, of="suffix,prompt_lookup")
    hybrid.parts[1].drafter = Late(tiny)
    hybrid.prepare(tiny)
    for part, seconds in zip(hybrid.parts, (0.0, 0.1), strict=True):
        part.costs = both(asking(seconds))
    generation = output(tiny, hybrid, 0.0, PROMPTS[1], tokens=96)
    steps = len(generation.committed)
    assert 0.05 * steps < len(asked) < 0.6 * steps


def test_drafters_wait_for_as_long_as_the_step_takes(tiny):
    """For the forward of the whole tree, and for those that are asked after them."""
    hybrid = Hybrid(tiny, of="fspad,prompt_lookup")
    hybrid.prepare(tiny)
    forwards = tuple(1 + 0.1 * n for n in range(len(SIZES)))
    for part, seconds in zip(hybrid.parts, (0.25, 0.0), strict=True):
        part.costs = both(Costs(forwards, seconds, seconds))
    context = Context([*PROMPTS[1], 5], len(PROMPTS[1]), Sampler())
    with tiny.session(64, capture=hybrid.capture) as session:
        hybrid.begin(context, session.prefill(PROMPTS[1]))
        tree = hybrid.propose(context, 9)
    step = 0.25 + hybrid.parts[0].costs[True].forward_seconds(len(tree))
    assert len(tree) > 2
    assert [part.habit.waited for part in hybrid.parts] == [step, step]


def test_a_head_is_trusted_by_the_nodes_that_a_step_decided_on(tiny):
    """What was cut from the shared tree was not refused."""
    drafter = Fspad(tiny, tree="fixed")
    cut = []

    class Cut(Fspad):
        def propose(self, context, budget):
            tree = drafter.propose(context, budget)
            cut.append((tree, drafter.last.chances))
            return Tree.chain(tree.tokens[0], tree.tokens[1:2])

        def begin(self, context, scores):
            drafter.begin(context, scores)

        def observe(self, step):
            before = drafter.trust
            tree, chances = cut[-1]
            drafter.observe(step)
            kept = [0, tree.children[0, tree.tokens[1]]] if len(tree) > 1 else [0]
            decided = [child for node in kept for child in tree.offspring[node]]
            expected = before.after(
                sum(chances[n - 1] for n in decided), len(tree.followed(step.tokens))
            )
            assert drafter.trust.expected == pytest.approx(expected.expected)
            assert drafter.trust.accepted == expected.accepted

    output(tiny, Cut(tiny), 0.0, PROMPTS[0])
    assert any(len(tree) > 3 for tree, _ in cut)


def test_known_costs_are_not_measured_again(tiny):
    first = Hybrid(tiny, of="fspad,prompt_lookup")
    measured = first.prepare(tiny)
    again = Hybrid(tiny, of="fspad,prompt_lookup")
    known = {
        name: part | {"costs": facts_of({True: asking(7.0), False: asking(9.0)})}
        for name, part in measured.items()
    }
    assert again.prepare(tiny, known) == known
    for greedy, seconds in ((True, 7.0), (False, 9.0)):
        assert [part.seconds(0, greedy=greedy) for part in again.parts] == [seconds, seconds]


def test_the_costs_of_a_target_are_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "TURNS", 1)
    monkeypatch.setattr(timing, "WARM", 0)
    monkeypatch.setattr(costs, "_measured", {})
    target = measurable()
    hybrid = Hybrid(target, of="prompt_lookup,vanilla")
    hybrid.prepare(target)
    lookup, vanilla = hybrid.parts
    for part in (lookup, vanilla):
        for greedy, of_kind in part.costs.items():
            assert 0 < part.seconds(0, greedy=greedy) == of_kind.per_level < of_kind.overhead
    assert hybrid.prepare(target) == hybrid.prepare(target)


def measurable(**options):
    model = random_model("llama", max_position_embeddings=costs.NEAR + LARGEST_TREE + 1, **options)
    return TransformersTarget(model, tiny_tokenizer(), "other", "abc")


def test_a_timed_step_reads_what_the_step_before_it_committed(monkeypatch):
    """Not the whole prompt again, and the timed drafter is not the one that will draft."""
    read = []

    class Reading(PromptLookup):
        def observe(self, step):
            read.append(len(step.tokens))
            super().observe(step)

    target = measurable()
    drafter = Reading(target)
    monkeypatch.setattr(timing, "TURNS", 3)
    whole, asked = timing.step_seconds(target, drafter, costs.NEAR, greedy=False)
    assert whole > asked > 0
    assert len(read) == timing.WARM + 3
    hybrid = Hybrid(target, of="prompt_lookup,aded")
    before = {id(part.drafter) for part in hybrid.parts}
    timed = []
    monkeypatch.setattr(timing, "step_seconds", lambda t, own, *_: timed.append(id(own)) or (1, 1))
    monkeypatch.setattr(costs, "measure", lambda t, about, seconds: seconds((1,)) and CHEAP)
    hybrid.prepare(target)
    assert len(timed) == 4  # each for greedy and for sampled steps
    assert not before & set(timed)


def test_a_drafter_that_shares_the_targets_entries_is_timed_within_a_generation(
    monkeypatch, tmp_path
):
    """Measuring opens sessions of its own; the generation's is the one to share."""
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "TURNS", 1)
    monkeypatch.setattr(timing, "WARM", 0)
    monkeypatch.setattr(costs, "_measured", {})
    target = measurable()
    prompt = list(range(20, 50))
    expected = output(target, build_decoder("vanilla", target).drafter, 0.0, prompt, tokens=8)
    unprepared = Hybrid(target, of="draft_model,prompt_lookup")
    assert output(target, unprepared, 0.0, prompt, tokens=8).tokens == expected.tokens


def test_a_context_without_room_for_timed_steps_is_refused():
    model = random_model("llama", max_position_embeddings=costs.NEAR)
    target = TransformersTarget(model, tiny_tokenizer(), "short", "abc")
    with pytest.raises(BenchError, match="hybrid times its drafters behind 256 tokens, and short"):
        Hybrid(target, of="prompt_lookup,suffix")


def test_a_step_is_charged_once_for_what_no_drafter_costs(tiny, monkeypatch):
    """Verification and commit are vanilla's too: drafters add only what asking them costs."""
    seconds = {"fspad@fixed": 0.5, "prompt_lookup": 0.25}
    known = {
        name: {"prepared": None, "costs": facts_of(both(asking(of_asking, rest=3.0)))}
        for name, of_asking in seconds.items()
    }
    hybrid = Hybrid(tiny, of="fspad@fixed,prompt_lookup")
    hybrid.prepare(tiny, known)
    assert [part.seconds(0, greedy=True) for part in hybrid.parts] == [0.5, 0.25]
    spent = []
    monkeypatch.setattr(
        "fspad_bench.decoders.hybrid.best_size",
        lambda chances, forwards, seconds, most: spent.append(seconds) or (0.0, 0),
    )
    output(tiny, hybrid, 0.0, PROMPTS[1], tokens=3)
    assert spent[-1] == 3.75


def test_the_code_of_a_drafter_from_a_file_is_part_of_the_settings(tiny, tmp_path, monkeypatch):
    """An edited decoder is another row."""
    (tmp_path / "echoes.py").write_text(
        "from fspad_bench.decoders.vanilla import Vanilla\n\nclass Echo(Vanilla):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = build_decoder("echoes:Echo", tiny).options
    assert own
    parts = Hybrid(tiny, of="echoes:Echo,prompt_lookup@paper").settings()["parts"]
    assert parts["echoes:Echo"] == own
    assert parts["prompt_lookup@paper"]["length"] == 10


def test_settings_name_every_drafter_with_its_own_settings(tiny):
    hybrid = Hybrid(tiny, of="prompt_lookup,fspad@fixed")
    before = hybrid.settings()
    hybrid.prepare(tiny)
    assert hybrid.settings() == before
    assert before["of"] == "prompt_lookup,fspad@fixed"
    assert before["parts"]["fspad@fixed"]["tree"] == "fixed"


def test_it_learns_across_prompts_only_if_one_of_them_does(tiny, monkeypatch):
    of = "fspad,prompt_lookup"
    assert Hybrid(tiny, of=of).scope == "prompt"
    monkeypatch.setattr(PromptLookup, "scope", "run")
    assert Hybrid(tiny, of=of).scope == "run"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "fspad"}, "at least two different decoders"),
        ({"of": "fspad,fspad"}, "at least two different decoders"),
        ({"of": "fspad,suffx"}, "unknown decoder 'suffx'"),
        ({"of": "fspad,hybrid"}, "hybrid is a hybrid itself"),
        ({"of": "fspad@rejection,prompt_lookup"}, "draws its drafts for another rule"),
        (
            {
                "of": "fspad,fspad_bench.integrations.transformers_generate:StockGenerate",
            },
            "is an engine of its own",
        ),
        ({"nodes": 1}, "hybrid.nodes=1"),
        ({"nodes": 999}, "hybrid.nodes=999"),
    ],
)
def test_what_cannot_share_a_tree_is_refused(tiny, options, message):
    with pytest.raises(BenchError, match=message):
        Hybrid(tiny, **options)


def test_heads_of_different_layers_cannot_share_a_session(tiny):
    with pytest.raises(BenchError, match="different layers"):
        Hybrid(tiny, of="fspad,eagle3")
