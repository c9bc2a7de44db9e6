"""Every registered decoder against vanilla, and that the check sees what it should."""

from itertools import combinations, product

import pytest

from fspad_bench.core.loop import Generation, Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, Accepted, match
from fspad_bench.decoders.build import Method, build
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.registry import DECODERS, names
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.cache import TreeCache
from fspad_bench.lossless import identity
from fspad_bench.lossless.witness import Sights


@pytest.fixture(scope="module")
def grid(tiny):
    return identity.cells(tiny)


@pytest.fixture(scope="module")
def vanilla(tiny, grid):
    return identity.reference(tiny, grid)


def verdicts(checks):
    return {check.name: check.verdict for check in checks}


@pytest.mark.parametrize("name", names(DECODERS))
def test_every_registered_decoder_is_lossless(name, tiny, grid, vanilla):
    found = identity.check(lambda: build(name, tiny, {}), tiny, grid, vanilla)
    assert {check.verdict for check in found} <= {"PASS", "-"}, found


@pytest.mark.parametrize(
    "options",
    [{"verify": rule, "drafting": how} for rule, how in product(RULES, ["ranked", "sampled"])],
)
def test_every_rule_and_drafting_is_greedy_at_0(options, tiny, grid, vanilla):
    found = identity.check(lambda: build("fspad", tiny, {"fspad": options}), tiny, grid, vanilla)
    assert set(verdicts(found).values()) == {"PASS"}, found


@pytest.mark.parametrize(
    "options", [{"depth": "4", "nodes": "24"}, {"depth": "1", "top_k": "1", "nodes": "2"}]
)
def test_other_trees_are_lossless_too(options, tiny, grid, vanilla):
    assert (
        verdicts(
            identity.check(lambda: build("eagle", tiny, {"eagle": options}), tiny, grid, vanilla)
        )["identity"]
        == "PASS"
    )


def test_every_pair_of_levels_meets():
    for a, b in combinations(range(6), 2):
        assert {(place[a], place[b]) for place in identity.PAIRWISE} == set(
            product(range(5), repeat=2)
        )


def test_the_thorough_grid_has_every_pair_of_levels(tiny):
    assert len({cell.name for cell in identity.cells(tiny, thorough=True)}) == 625
    for a, b in combinations(range(6), 2):
        assert {(place[a], place[b]) for place in identity.THOROUGH} == set(
            product(range(5), repeat=2)
        )


class Off(PromptLookup):
    """Its bonus token after two accepted drafts is not what the target said."""

    def verify(self, tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        return Accepted(path, (bonus + 1) % 97 if len(path) > 2 else bonus)


def test_a_single_other_token_is_seen(tiny, grid, vanilla):
    found = identity.check(lambda: Method("off", Off(tiny), {}), tiny, grid, vanilla)
    assert verdicts(found)["identity"] == "FAIL"


def test_a_row_that_stayed_behind_is_seen(tiny, grid, vanilla, monkeypatch):
    real = TreeCache.keep
    monkeypatch.setattr(
        TreeCache, "keep", lambda self, start, path: real(self, start, range(len(path)))
    )
    found = identity.check(lambda: build("fspad", tiny, {}), tiny, grid, vanilla)
    assert verdicts(found)["cache"] == verdicts(found)["identity"] == "FAIL"


class Wrong:
    """Always drafts, and is hardly ever right."""

    def __init__(self, target):
        pass

    def begin(self, context, scores):
        pass

    def propose(self, context, budget):
        return Tree.chain(context.tokens[-1], [1, 2, 3][:budget])

    def observe(self, step):
        pass


def test_what_never_happened_is_named(tiny, grid, vanilla):
    mute = Method(
        "mute",
        type("Silent", (Wrong,), {"propose": lambda self, c, b: Tree.root(c.tokens[-1])})(tiny),
        {},
    )
    found = identity.check(lambda: mute, tiny, grid, vanilla)
    assert (verdicts(found)["identity"], verdicts(found)["non-vacuity"]) == ("PASS", "VACUOUS")
    assert "nothing was ever drafted" in next(
        check.figure for check in found if check.name == "non-vacuity"
    )
    found = identity.check(lambda: Method("wrong", Wrong(tiny), {}), tiny, grid, vanilla)
    assert verdicts(found)["non-vacuity"] == "VACUOUS"


def test_a_foreign_engine_is_held_to_its_greedy_outputs(tiny, grid, vanilla):
    class Foreign:
        def generate(self, prompt, sampler, limit):
            greedy = Sampler() if not sampler.temperature else Sampler(sampler.temperature, seed=99)
            return Generation(generate(tiny, Vanilla(tiny), greedy, prompt, limit).tokens, 0.0, 0.0)

    found = identity.check(lambda: Method("foreign", Foreign(), {}), tiny, grid, vanilla)
    assert verdicts(found) == {"identity": "PASS", "non-vacuity": "-"}
    assert "20 of 20" in found[0].figure
    assert "greedy" not in found[0].figure


def test_own_stops_are_taken_from_what_was_accepted(tiny, grid):
    sights = Sights()
    made = identity.outputs(build("fspad", tiny, {}), tiny, grid, sights)
    again = identity.with_stops(grid, sights)
    assert 0 < len(again) <= identity.OWN_STOPS
    for cell in again:
        (stop,) = cell.limit.stop_ids
        whole = made.tokens[cell.name.removesuffix(" stop")]
        ended = generate(tiny, Vanilla(tiny), cell.sampler, cell.prompt, cell.limit).tokens
        assert ended == whole[: whole.index(stop) + 1]


def test_the_cache_error_is_zero_for_a_prefill(tiny):
    tiny.prefill([1, 2, 3, 4], 4)
    assert identity.cache_error(tiny, [1, 2, 3, 4]) == 0
    tiny.prefill([1, 2, 3, 5], 4)
    assert identity.cache_error(tiny, [1, 2, 3, 4]) > 1e-3


def test_a_limit_of_one_token_runs_no_round(tiny):
    sights = Sights()
    cell = identity.Cell("one", [5, 6, 7], Sampler(), Limit(1))
    assert len(identity.outputs(build("fspad", tiny, {}), tiny, [cell], sights).tokens["one"]) == 1
    assert not sights.accepted


@pytest.mark.parametrize("name", ["eagle", "fspad"])
def test_children_come_from_the_law_they_claim(name, tiny, grid, vanilla):
    options = {name: {"verify": "rejection"}}
    found = identity.check(lambda: build(name, tiny, options), tiny, grid, vanilla)
    assert verdicts(found)["draws"] == "PASS"


@pytest.mark.parametrize(
    "spoil", [lambda q: (q + 0.01) / (q + 0.01).sum(1, keepdim=True), lambda q: q.sqrt()]
)
def test_children_from_another_law_are_seen(spoil, tiny, grid, vanilla):
    made = build("fspad", tiny, {"fspad": {"verify": "rejection"}}).decoder
    real = made.propose

    def propose(context, budget):
        tree = real(context, budget)
        return tree if tree.q is None else Tree(tree.tokens, tree.parents, spoil(tree.q))

    made.propose = propose
    found = identity.check(lambda: Method("spoiled", made, {}), tiny, grid, vanilla)
    assert verdicts(found)["draws"] == "FAIL"


def test_children_that_could_not_be_drawn_are_refused(tiny, grid, vanilla):
    made = build("fspad", tiny, {"fspad": {"verify": "rejection"}}).decoder
    real = made.propose

    def propose(context, budget):
        tree = real(context, budget)
        return tree if tree.q is None else Tree(tree.tokens, tree.parents, tree.q.roll(1, dims=1))

    made.propose = propose
    with pytest.raises(ValueError, match="was drawn from a law that gives it 0"):
        identity.check(lambda: Method("spoiled", made, {}), tiny, grid, vanilla)
