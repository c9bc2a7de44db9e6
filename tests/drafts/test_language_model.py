"""A language model as a draft gives the logits of plain transformers, on each path of each step."""

import random

import pytest
import torch
from doubles import VOCABULARY, logits_behind, random_model, random_target

from fspad_bench.core.protocols import Context, LayerPlan
from fspad_bench.core.sampling import Sampler
from fspad_bench.drafts.language_model import LanguageModel, inner_layers, spread
from fspad_bench.engine.session import Session
from fspad_bench.util.errors import BenchError

PROMPT = [5, 9, 1, 30, 30, 2, 17]
PLAN = LayerPlan(frozenset({1, 3}), frozenset({2, 3}))
LAYERS = 5


def stock_logits(model, tokens):
    """The stock model's logits after all tokens, `[N, V]`."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def skipping_logits(prefix, tokens, plan):
    return logits_behind(deep_model, prefix, tokens, plan)


def deep_model():
    return random_model("llama", num_hidden_layers=LAYERS)


def deep_target():
    return random_target("llama", num_hidden_layers=LAYERS)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def context_of(tokens):
    return Context(list(tokens), len(tokens), Sampler())


def drafted(draft, context, dice):
    """Yield (path, logits after it) of three levels of random nodes, some below one parent."""
    yield [], draft.absorb()[0]
    level = [[]]
    for _ in range(3):
        edges = {(dice.randrange(len(level)), dice.randrange(VOCABULARY)) for _ in range(4)}
        rows, tokens = zip(*sorted(edges), strict=True)
        level = [[*level[row], token] for row, token in sorted(edges)]
        yield from zip(level, draft.expand(list(tokens), list(rows)), strict=True)


@torch.inference_mode()
def test_asked_twice_of_one_text_it_answers_twice():
    target = deep_target()
    draft = LanguageModel(target, deep_target())
    context = context_of(PROMPT)
    draft.begin()
    answers = []
    for _ in range(2):
        draft.follow(context, 4)
        answers.append(draft.absorb())
        draft.expand([3, 4], [0, 0])
    assert_close(answers[1], answers[0])


@pytest.mark.parametrize("name", ["llama", "qwen3", "not fused"])
@torch.inference_mode()
def test_every_path_of_every_step_has_the_logits_of_plain_transformers(name):
    """Whatever is committed between: all of a drafted path, a part of it, other tokens."""
    dice = random.Random(name)
    model = random_target(name)
    plain = random_target(name).model
    draft = LanguageModel(random_target("llama"), model)
    context = context_of(PROMPT)
    draft.begin()
    for step in range(8):
        assert draft.follow(context, 40) == 40
        paths = []
        for path, logits in drafted(draft, context, dice):
            assert_close(logits, stock_logits(plain, [*context.tokens, *path])[-1])
            paths.append(path)
        draft.release()
        chosen = paths[-1][: step % 4]
        context.tokens += [*chosen, dice.randrange(VOCABULARY)]


def test_what_was_drafted_and_committed_is_not_run_again(monkeypatch):
    model = random_target("llama")
    draft = LanguageModel(random_target("llama"), model)
    context = context_of(PROMPT)
    ran = []
    extend = Session.extend

    def recording(self, tokens, parents):
        ran.append(list(tokens))
        return extend(self, tokens, parents)

    monkeypatch.setattr(Session, "extend", recording)
    draft.begin()
    draft.follow(context, 20)
    draft.absorb()
    draft.expand([3, 4], [0, 0])
    draft.expand([6], [1])
    context.tokens += [4, 6, 8]
    draft.follow(context, 17)
    draft.absorb()
    draft.expand([9], [0])
    context.tokens += [2, 9]  # refused at once: what was drafted after it is not used
    draft.follow(context, 15)
    draft.absorb()
    assert ran == [[3, 4], [6], [8], [9], [2, 9]]


def test_a_long_text_between_two_drafts_is_read_in_parts():
    """More tokens than a session holds at once."""
    draft = LanguageModel(random_target("llama"), random_target("llama"))
    context = context_of(PROMPT)
    draft.begin()
    draft.follow(context, 200)
    draft.absorb()
    context.tokens += [(7 * i) % VOCABULARY for i in range(190)]
    draft.follow(context, 10)
    assert_close(draft.absorb()[0], stock_logits(random_model("llama"), context.tokens)[-1])


@torch.inference_mode()
def test_layers_of_the_target_read_its_entries_and_equal_the_stock_model_without_the_others():
    target = deep_target()
    draft = LanguageModel(target, target, PLAN)
    context = context_of([*PROMPT, 11])
    dice = random.Random(3)
    with target.session(40) as main:
        main.prefill(PROMPT)
        draft.begin()
        for token in (7, 12):
            draft.follow(context, 10)
            prefix = context.tokens[:-1]
            for path, logits in drafted(draft, context, dice):
                behind = [context.tokens[-1], *path]
                assert_close(logits, skipping_logits(prefix, behind, PLAN)[-1])
            draft.release()
            main.extend(context.tokens[-1:], [-1])
            main.commit([0])
            context.tokens.append(token)


@pytest.mark.parametrize("start", [2, 5])
@torch.inference_mode()
def test_reading_again_equals_the_stock_model_behind_a_shorter_prefix(start):
    """And leaves the target's entries as they were."""
    target = deep_target()
    draft = LanguageModel(target, target, PLAN)
    with target.session(40) as main:
        main.prefill(PROMPT)
        draft.begin()
        before = main.cache.entries[..., : len(PROMPT), :].clone()
        window = PROMPT[start:]
        logits = draft.read_again(window, start, PLAN)
        assert_close(logits, skipping_logits(PROMPT[:start], window, PLAN))
        assert torch.equal(main.cache.entries[..., : len(PROMPT), :], before)
        main.extend([4], [-1])  # no entry of the draft is pending


@torch.inference_mode()
def test_logits_are_over_the_tokens_that_both_have():
    """A draft without a token of the text reads its own last one in its place."""
    draft = LanguageModel(random_target("llama"), random_target("llama", vocab_size=20))
    context = context_of([5, 9, 40])
    draft.begin()
    draft.follow(context, 5)
    expected = stock_logits(random_model("llama", vocab_size=20), [5, 9, 19])[-1]
    assert_close(draft.absorb()[0], expected)
    wider = LanguageModel(random_target("llama", vocab_size=20), random_target("llama"))
    wider.begin()
    wider.follow(context_of([5, 9]), 5)
    assert wider.ids.tolist() == list(range(20))
    assert_close(wider.absorb()[0], stock_logits(random_model("llama"), [5, 9])[-1][:20])


def test_half_precision_is_drafted_with_in_float32():
    model = random_target("llama", torch.bfloat16)
    draft = LanguageModel(model, random_target("llama", torch.bfloat16))
    draft.begin()
    draft.follow(context_of(PROMPT), 5)
    assert draft.absorb().dtype == torch.float32


def test_nothing_is_drafted_past_the_end_of_the_models_context():
    draft = LanguageModel(random_target("llama"), random_target("llama", max_position_embeddings=9))
    draft.begin()
    assert draft.follow(context_of(range(7)), 40) == 2
    assert draft.follow(context_of(range(9)), 40) == 0
    assert draft.follow(context_of(range(12)), 40) < 0


def test_a_session_is_opened_once_and_closed_with_the_next_generation():
    model = random_target("llama")
    draft = LanguageModel(random_target("llama"), model)
    for tokens in (PROMPT, PROMPT[:3]):
        draft.begin()
        draft.follow(context_of(tokens), 20)
        first = draft.session
        draft.follow(context_of(tokens), 19)
        assert draft.session is first
    assert len(model._idle) == 0
    draft.begin()
    assert len(model._idle) == 1


@pytest.mark.parametrize(
    ("layers", "share", "skipped"),
    [
        (30, 0.1, [5, 15, 24]),
        (8, 0.5, [1, 3, 4, 6]),
        (8, 0.99, [1, 2, 3, 4, 5, 6]),
        (3, 0.1, [1]),
        (2, 0.5, [1]),
        (1, 0.5, []),
    ],
)
def test_skipped_layers_are_spread_between_the_first_and_the_last(layers, share, skipped):
    assert sorted(spread(layers, share)) == skipped


def test_the_last_of_two_layers_may_be_skipped_the_only_one_not():
    assert [list(inner_layers(count)) for count in (1, 2, 3, 4)] == [[], [1], [1], [1, 2]]


@pytest.mark.parametrize(
    ("target", "skip", "message"),
    [
        (("llama", {"num_hidden_layers": 1}), 0.5, "has one layer, and so none to skip"),
        (("llama", {}), 0.0, "skip=0 is no share"),
        (("llama", {}), 1.0, "skip=1 is no share"),
        (("not fused", {}), 0.5, "skips no layers"),
    ],
)
def test_a_target_that_cannot_skip_is_refused(target, skip, message):
    name, options = target
    model = random_target(name, **options)
    with pytest.raises(BenchError, match=message):
        LanguageModel.of(model, model, skip)
