"""Every registered decoder against vanilla, and the mistakes that the check must detect."""

from itertools import combinations, product

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, Accepted, match
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine import gpu
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.cpu.native import native
from fspad_bench.engine.together import keeps_bits
from fspad_bench.lossless import identity
from fspad_bench.lossless.engines import wide_target
from fspad_bench.lossless.rounding import cache_error
from fspad_bench.lossless.witness import Observations
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util.registry import DECODERS, names


def drafting(label, drafter):
    """Return a decoder of a drafter that is not registered."""
    return Decoder(label, None, drafter=drafter)


@pytest.fixture(scope="module")
def grid(tiny):
    """The first of the two arrays: every two levels of any two factors meet once."""
    return identity.cells(tiny)[:25]


@pytest.fixture(scope="module")
def greedy(grid):
    """The cells of the grid at temperature 0: all that rules which draw are compared on."""
    return [cell for cell in grid if cell.greedy]


@pytest.fixture(scope="module")
def vanilla(tiny, grid):
    return identity.reference(tiny, grid)


def verdicts(checks):
    return {check.name: check.verdict for check in checks}


@pytest.mark.parametrize("name", names(DECODERS))
def test_every_registered_decoder_is_lossless(name, tiny, grid, vanilla):
    checks = identity.check(lambda: build_decoder(name, tiny, {}), tiny, grid, vanilla)
    assert {check.verdict for check in checks} <= {"PASS", "-"}, checks


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [{"verify": rule, "drafting": how} for rule, how in product(RULES, ["ranked", "sampled"])],
)
def test_every_rule_and_drafting_is_greedy_at_0(options, tiny, greedy, vanilla):
    checks = identity.check(
        lambda: build_decoder("fspad", tiny, {"fspad": options}), tiny, greedy, vanilla
    )
    assert set(verdicts(checks).values()) == {"PASS"}, checks


@pytest.mark.parametrize(
    "options", [{"depth": "4", "nodes": "24"}, {"depth": "1", "top_k": "1", "nodes": "2"}]
)
def test_other_trees_are_lossless_too(options, tiny, grid, vanilla):
    checks = identity.check(
        lambda: build_decoder("eagle", tiny, {"eagle": options}), tiny, grid[::2], vanilla
    )
    assert verdicts(checks)["identity"] == "PASS"


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
    """Commits a wrong bonus token after two accepted drafts."""

    def rule(tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        return Accepted(path, (bonus + 1) % 97 if len(path) > 2 else bonus)


def test_a_single_other_token_is_detected(tiny, grid, vanilla):
    checks = identity.check(lambda: drafting("off", Off(tiny)), tiny, grid[:10], vanilla)
    assert verdicts(checks)["identity"] == "FAIL"


def test_an_entry_that_was_not_moved_is_detected(tiny, grid, vanilla, monkeypatch):
    monkeypatch.setattr(KVCache, "keep", lambda self, start, path: None)
    checks = identity.check(lambda: build_decoder("fspad", tiny, {}), tiny, grid[:10], vanilla)
    assert verdicts(checks)["cache"] == verdicts(checks)["identity"] == "FAIL"


class Wrong(Drafter):
    """Always drafts the same tokens, which are hardly ever right."""

    def propose(self, context, budget):
        return Tree.chain(context.tokens[-1], [1, 2, 3][:budget])


class Silent(Wrong):
    """Never drafts anything."""

    def propose(self, context, budget):
        return Tree.root(context.tokens[-1])


def test_a_case_that_never_occurred_is_named(tiny, greedy, vanilla):
    silent = drafting("silent", Silent())
    checks = identity.check(lambda: silent, tiny, greedy, vanilla)
    assert (verdicts(checks)["identity"], verdicts(checks)["non-vacuity"]) == ("PASS", "VACUOUS")
    (vacuous,) = [check for check in checks if check.name == "non-vacuity"]
    assert "nothing was ever drafted" in vacuous.figure
    checks = identity.check(lambda: drafting("wrong", Wrong()), tiny, greedy, vanilla)
    assert verdicts(checks)["non-vacuity"] == "VACUOUS"


def test_a_foreign_engine_is_held_to_its_greedy_outputs(tiny, grid, vanilla):
    class Foreign:
        def generate(self, prompt, sampler, limit):
            greedy = Sampler() if not sampler.temperature else Sampler(sampler.temperature, seed=99)
            return Generation(generate(tiny, Vanilla(tiny), greedy, prompt, limit).tokens, 0.0, 0.0)

    checks = identity.check(lambda: Decoder("foreign", tiny, engine=Foreign()), tiny, grid, vanilla)
    assert verdicts(checks) == {"identity": "PASS", "non-vacuity": "-"}
    assert "10 of 10" in checks[0].figure
    assert "greedy" not in checks[0].figure


def test_own_stops_are_taken_from_what_was_accepted(tiny, grid):
    grid = grid[::2]
    observations = Observations()
    outputs = identity.outputs(build_decoder("fspad", tiny, {}), tiny, grid, observations)
    stopped = identity.with_stops(grid, observations)
    assert 0 < len(stopped) <= identity.OWN_STOPS
    for cell in stopped:
        (stop,) = cell.limit.stop_ids
        whole = outputs.tokens[cell.name.removesuffix(" stop")]
        ended = generate(tiny, Vanilla(tiny), cell.sampler, cell.prompt, cell.limit).tokens
        assert ended == whole[: whole.index(stop) + 1]


def wide(dtype):
    """Return a target that the compiled step serves, with a tokenizer; skip without a compiler."""
    target = wide_target(dtype)
    if native() is None:
        pytest.skip("no compiled step")
    assert keeps_bits(target)
    target.tokenizer = tiny_tokenizer()
    return target


def certified(label, target):
    """Return the checks of a decoder in six cells, by name."""
    some = identity.cells(target)[:6]
    vanilla = identity.reference(target, some)
    checks = identity.check(lambda: build_decoder(label, target, {}), target, some, vanilla)
    return {check.name: check for check in checks}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_vanillas_bits_are_asked_where_they_are_promised(dtype, monkeypatch):
    target = wide(dtype)
    checks = certified("prompt_lookup", target)
    assert {checks[name].verdict for name in ("identity", "cache")} == {"PASS"}, checks
    assert checks["cache"].figure == "0.0e+00 from vanilla's"
    keep = KVCache.keep

    def a_bit_off(self, start, path):
        keep(self, start, path)
        if len(path) > 1:
            self.entries[0, 0, 0, start] *= 1 + torch.finfo(dtype).eps

    monkeypatch.setattr(KVCache, "keep", a_bit_off)
    assert certified("prompt_lookup", target)["cache"].verdict == "FAIL"


def test_bfloat16_is_left_to_other_precisions_where_no_bits_are_promised():
    """Near ties may go either way, and nothing here could tell them from a mistake."""
    checks = certified("prompt_lookup", load_target("tiny", dtype="bfloat16"))
    assert {checks[name].verdict for name in ("identity", "cache")} == {"-"}


def test_bfloat16_on_a_device_is_left_to_other_precisions_too(monkeypatch):
    monkeypatch.setenv(gpu.VARIABLE, "reference")
    checks = certified("vanilla", load_target("tiny", dtype="bfloat16"))
    names = ("identity", "cache", "identity, device", "cache, device")
    assert {checks[name].verdict for name in names} == {"-"}


@pytest.mark.parametrize(("bits", "ties"), [(True, 0), (False, 1)])
def test_no_difference_is_forgiven_where_bits_are_promised(bits, ties, monkeypatch):
    monkeypatch.setattr(identity, "FLOAT32_BOUND", float("inf"))  # any token could be a tie
    target = wide(torch.float32)
    monkeypatch.setattr(identity, "keeps_bits", lambda target: bits)
    cell = identity.Cell("one", [5, 6, 7], Sampler(), Limit(6))
    vanilla = identity.reference(target, [cell])
    other = {"one": [*vanilla["one"][:-1], (vanilla["one"][-1] + 1) % 97]}
    decoder = build_decoder("vanilla", target, {})
    check = identity._check_identity(decoder, target, [cell], vanilla, other)
    assert (check.verdict == "PASS", "1 ties" in check.figure) == (bool(ties), bool(ties))


def test_an_engine_of_its_own_promises_no_bits(monkeypatch):
    """It computes in its own way: float32 may tie, and bfloat16 is left to other precisions."""
    monkeypatch.setattr(identity, "FLOAT32_BOUND", float("inf"))  # any token could be a tie

    class Foreign:
        def __init__(self, target):
            self.target = target

        def generate(self, prompt, sampler, limit):
            tokens = generate(self.target, Vanilla(self.target), sampler, prompt, limit).tokens
            return Generation([*tokens[:-1], (tokens[-1] + 1) % 97], 0.0, 0.0)

    verdicts_by_dtype = {}
    for dtype in (torch.float32, torch.bfloat16):
        target = wide(dtype)
        decoder = Decoder("foreign", target, engine=Foreign(target))
        cell = identity.Cell("one", [5, 6, 7], Sampler(), Limit(6))
        vanilla = identity.reference(target, [cell])
        checks = identity.check(lambda decoder=decoder: decoder, target, [cell], vanilla)
        verdicts_by_dtype[dtype] = verdicts(checks)["identity"]
    assert verdicts_by_dtype == {torch.float32: "PASS", torch.bfloat16: "-"}


def test_the_cache_error_is_zero_for_a_prefill(tiny):
    for tokens, is_equal in (([1, 2, 3, 4], True), ([1, 2, 3, 5], False)):
        with tiny.session(8) as session:
            session.prefill(tokens)
        error = cache_error(tiny, [1, 2], [3, 4])
        assert error == 0 if is_equal else error > 1e-3


def test_a_limit_of_one_token_runs_no_step(tiny):
    observations = Observations()
    cell = identity.Cell("one", [5, 6, 7], Sampler(), Limit(1))
    outputs = identity.outputs(build_decoder("fspad", tiny, {}), tiny, [cell], observations)
    assert len(outputs.tokens["one"]) == 1
    assert not observations.accepted


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["eagle", "fspad"])
def test_children_come_from_the_distribution_they_claim(name, tiny, grid, vanilla):
    options = {name: {"verify": "rejection"}}
    checks = identity.check(lambda: build_decoder(name, tiny, options), tiny, grid, vanilla)
    assert verdicts(checks)["draws"] == "PASS"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "spoil", [lambda q: (q + 0.01) / (q + 0.01).sum(1, keepdim=True), lambda q: q.sqrt()]
)
def test_children_from_another_distribution_are_detected(spoil, tiny, grid, vanilla):
    drafter = build_decoder("fspad", tiny, {"fspad": {"verify": "rejection"}}).drafter
    real = drafter.propose

    def propose(context, budget):
        tree = real(context, budget)
        return tree if tree.q is None else Tree(tree.tokens, tree.parents, spoil(tree.q))

    drafter.propose = propose
    checks = identity.check(lambda: drafting("spoiled", drafter), tiny, grid, vanilla)
    assert verdicts(checks)["draws"] == "FAIL"


def test_children_that_could_not_be_drawn_are_refused(tiny, grid, vanilla):
    drafter = build_decoder("fspad", tiny, {"fspad": {"verify": "rejection"}}).drafter
    real = drafter.propose

    def propose(context, budget):
        tree = real(context, budget)
        return tree if tree.q is None else Tree(tree.tokens, tree.parents, tree.q.roll(1, dims=1))

    drafter.propose = propose
    with pytest.raises(ValueError, match="was drawn from a distribution that gives it 0"):
        identity.check(lambda: drafting("spoiled", drafter), tiny, grid, vanilla)
