"""Every decoder that may share a batch: each request gets the very tokens that it gets alone."""

from dataclasses import asdict, replace

import pytest
import torch
from compiled import needs_compiler
from doubles import WIDE, WIDTHS, random_model

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.shared_loop import Question, SharedLoop
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.batching import check_may_share, drafters
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import architectures
from fspad_bench.drafts.sizing.costs import TINY
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.together import keeps_bits
from fspad_bench.util.errors import BenchError
from fspad_bench.util.registry import DECODERS, names

BUILT_IN = [name for name, value in names(DECODERS).items() if value.startswith("fspad_bench.")]
SIZE = 3
DTYPES = (torch.float32, torch.bfloat16)
HEADS = ("fspad", "eagle", "eagle3", "medusa", "chimera")
FREE = replace(TINY, overhead=0.0, per_level=0.0)  # every drafter is asked in every step
OPTIONS = {"prompt_lookup": {"shortest": "1"}, "hybrid": {"of": "prompt_lookup,suffix"}}


def questions(vocabulary):
    """Four questions: prompts, temperatures and limits that differ, noise of their own."""
    prompts = [[5 + n, 9, 11] * (2 + 3 * n) for n in range(4)]
    temperatures = (0.0, 1.0, 0.6, 0.0)
    return [
        Question(
            [token % vocabulary for token in prompt],
            Sampler(temperature, seed=2, stream=str(n)),
            Limit(5 + 2 * (n % 3)),
        )
        for n, (prompt, temperature) in enumerate(zip(prompts, temperatures, strict=True))
    ]


def decoded(target, decoder, asked):
    """Return the tokens of each question when `SIZE` of them share forwards, and the rounds."""
    rounds = []
    with SharedLoop(target, drafters(decoder, SIZE), asked) as loop:
        while not loop.finished:
            rounds.append(loop.step())
    return [loop.generations[number].tokens for number in range(len(asked))], rounds


def alone(target, drafter, asked):
    return [generate(target, drafter, q.sampler, q.prompt, q.limit).tokens for q in asked]


@pytest.fixture(scope="module")
def vanillas(tiny):
    return alone(tiny, Vanilla(tiny), questions(97))


@pytest.mark.parametrize("name", BUILT_IN)
def test_requests_of_one_batch_get_the_tokens_that_vanilla_gives_each_alone(tiny, vanillas, name):
    decoder = build_decoder(name, tiny, {name: OPTIONS.get(name, {})})
    decoder.prepare(dict.fromkeys(("greedy", "sampled"), asdict(FREE)))
    together, rounds = decoded(tiny, decoder, questions(97))
    assert together == vanillas
    if name != "vanilla":
        assert sum(done.nodes for done in rounds) > sum(len(done.tokens) for done in rounds)


def test_rules_that_draw_draw_for_each_request_as_for_it_alone(tiny):
    decoder = build_decoder("eagle", tiny, {"eagle": {"verify": "rejection"}})
    together, _ = decoded(tiny, decoder, questions(97))
    assert together == alone(tiny, decoder.drafter, questions(97))


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def wide(request, tmp_path_factory):
    """A target of the compiled step, vanilla's tokens on it, and heads for it, untrained."""
    model = random_model("llama", request.param, **WIDE, **WIDTHS["llama"])
    target = TransformersTarget(model, None, "wide", "wide")
    assert keeps_bits(target)
    folder = tmp_path_factory.mktemp("heads")
    for name in HEADS:
        kind = architectures()[name]
        torch.manual_seed(1)
        network = kind.build(kind.shape_for(target.config), target)
        facts = {"decoder": name}
        Head(network, torch.arange(0, 61, 2), "wide", "wide", facts).save(folder / name)
    return target, alone(target, Vanilla(target), questions(61)), folder


@needs_compiler
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_compiled_step_keeps_this_in_low_precision(wide, name):
    target, expected, folder = wide
    own = OPTIONS.get(name, {})
    if name in HEADS:
        own = {"head": str(folder / name), "nodes": "48", "depth": "3"}
    decoder = build_decoder(name, target, {name: own})
    if name == "hybrid":
        parts = ("vanilla", "prompt_lookup", "suffix")
        decoder.prepare({part: {"prepared": None, "costs": asdict(TINY)} for part in parts})
    together, _ = decoded(target, decoder, questions(61))
    assert together == expected


def test_drafters_of_a_trained_head_share_its_weights_and_no_state(tiny):
    decoder = build_decoder("fspad", tiny)
    first, second, _ = drafters(decoder, 3)
    assert first is decoder.drafter
    assert first.draft.network is second.draft.network
    assert first.draft.lm_head is second.draft.lm_head
    assert first.draft.cache is not second.draft.cache
    assert first.draft.joined is not second.draft.joined
    assert first.policies is second.policies
    assert first.settings() == second.settings()


def test_twins_of_a_hybrid_ask_their_own_parts(tiny):
    one, other = drafters(build_decoder("hybrid", tiny), 2)
    for mine, own in zip(one.parts, other.parts, strict=True):
        assert (mine.label, mine.costs) == (own.label, own.costs)
        assert mine.drafter is not own.drafter


class Counts(Drafter):
    """Of another package: built once more, with its options and what it has measured."""

    def __init__(self, target, *, length: int = 1):
        self.length = length
        self.known = None

    def prepare(self, target, known=None):
        self.known = known or {"measured": id(self)}
        return self.known

    def propose(self, context, budget):
        return Tree.chain(context.tokens[-1], [5] * min(self.length, budget))


class Needy(Counts):
    scope = "run"

    def __init__(self, target, *, length: int):
        super().__init__(target, length=length)


class Alone(Counts):
    def may_share(self):
        return False


class Duck:
    """Inherits from nothing."""

    def __init__(self, target):
        pass

    def propose(self, context, budget):
        return Tree.root(context.tokens[-1])


def test_a_decoder_without_twins_is_built_again(tiny):
    label = f"{__name__}:Counts"
    decoder = build_decoder(label, tiny, {label: {"length": "3"}})
    first, second = drafters(decoder, 2)
    assert second is not first
    assert second.length == 3
    assert second.known == first.known == decoder.measurements
    assert len(drafters(build_decoder(f"{__name__}:Duck", tiny), 2)) == 2


def test_options_without_a_default_are_those_that_were_given(tiny, monkeypatch):
    monkeypatch.setattr(Needy, "scope", "prompt")
    label = f"{__name__}:Needy"
    pool = drafters(build_decoder(label, tiny, {label: {"length": "3"}}), 2)
    assert [drafter.length for drafter in pool] == [3, 3]


def test_what_cannot_share_a_batch_is_refused_by_name(tiny):
    learning = build_decoder("suffix", tiny, {"suffix": {"scope": "run"}})
    with pytest.raises(BenchError, match="suffix learns across prompts") as error:
        drafters(learning, 2)
    assert error.value.hint == "-D suffix.scope=prompt, or leave it out"
    label = f"{__name__}:Needy"
    with pytest.raises(BenchError, match="Needy learns across prompts") as error:
        drafters(build_decoder(label, tiny, {label: {"length": "3"}}), 2)
    assert error.value.hint == "leave it out"
    with pytest.raises(BenchError, match="Alone says that its requests cannot"):
        check_may_share(build_decoder(f"{__name__}:Alone", tiny))
    with pytest.raises(BenchError, match="engine of its own"):
        check_may_share(Decoder("other", tiny))


def test_a_decoder_that_fails_in_its_twin_is_named(tiny):
    decoder = build_decoder("fspad", tiny)
    decoder.prepare()
    decoder.drafter.draft = None
    with pytest.raises(BenchError, match=r"fspad: twin\(\) raised AttributeError"):
        drafters(decoder, 2)


@pytest.mark.parametrize("name", ["fspad", "hybrid", "lookahead", "swift", "token_recycling"])
def test_rounds_without_drafts_leave_each_drafter_in_step_with_its_text(tiny, vanillas, name):
    pool = drafters(build_decoder(name, tiny, {name: OPTIONS.get(name, {})}), SIZE)
    with SharedLoop(tiny, pool, questions(97), speculate_up_to=SIZE - 1) as loop:
        rounds = []
        while not loop.finished:
            rounds.append(loop.step())
    assert [loop.generations[number].tokens for number in range(4)] == vanillas
    assert {done.nodes for done in rounds if len(done.tokens) == SIZE} == {SIZE}
    assert any(done.nodes > len(done.tokens) for done in rounds if len(done.tokens) < SIZE)
