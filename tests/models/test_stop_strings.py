"""Stop strings: an output ends with the token that completes one, however tokens are cut."""

from __future__ import annotations

import random

import pytest
from doubles import Clairvoyant
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.models.stop_strings import StopStrings

END = "<|end|>"


def byte_level(pieces):
    """A byte-level tokenizer of these pieces and every byte, with one special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*alphabet, *pieces, END])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


PIECES = byte_level(["ab", "bc", "c\u010a", "\u010a\u010a", "Q:", "\u0120Q"])  # Ċ newline, Ġ space


def ids(*texts):
    return [PIECES.convert_tokens_to_ids(text) for text in texts]


def ended(stop, tokens):
    """The number of tokens with which an output of these tokens ends, None where it does not."""
    return next((n for n in range(1, len(tokens) + 1) if stop(tokens[:n])), None)


@pytest.mark.parametrize(
    ("strings", "tokens", "end"),
    [
        (["bcd"], ids("ab", "c\u010a"), None),
        (["b"], ids("ab", "c\u010a"), 1),  # inside a token
        (["bc"], ids("ab", "c\u010a", "Q"), 2),  # straddles two, and the second holds more
        (["abc\n\nQ:"], ids("ab", "c\u010a", "\u010a", "Q", ":", "Q:"), 5),
        (["\n\n"], ids("\u010a", "c\u010a", "\u010a\u010a"), 3),
        (["\n\n"], ids("c\u010a", "\u010a\u010a"), 2),
        (["zz", "", "Q:"], ids("ab", "Q", ":"), 3),
        ([], ids("ab"), None),
        ([""], ids("ab"), None),
        ([END], ids("ab", END), 2),  # a special token by its text
        (["aba"], ids("ab", END, "a"), 3),  # text without special tokens counts as well
    ],
)
def test_an_output_ends_with_the_token_that_completes_a_string(strings, tokens, end):
    assert ended(StopStrings(PIECES, strings), tokens) == end


def test_a_character_of_several_tokens_is_found_when_it_is_whole():
    tokens = PIECES.encode("é→", add_special_tokens=False)
    assert len(tokens) == 5
    assert ended(StopStrings(PIECES, ["é"]), tokens) == 2
    assert ended(StopStrings(PIECES, ["→"]), tokens) == 5


@pytest.mark.parametrize("seed", range(6))
def test_the_tail_tells_what_the_whole_text_does(seed):
    dice = random.Random(seed)
    strings = ["".join(dice.choices("abc\n", k=dice.randint(3, 6))) for _ in range(2)]
    stop = StopStrings(PIECES, strings)
    names = ["a", "b", "c", "ab", "bc", "c\u010a", "\u010a", "\u010a\u010a", END]
    tokens = ids(*dice.choices(names, weights=[3] * 8 + [1], k=400))
    texts = [PIECES.decode(tokens[:n]) for n in range(len(tokens) + 1)]
    plain = [PIECES.decode(tokens[:n], skip_special_tokens=True) for n in range(len(tokens) + 1)]
    expected = (
        n for n in range(len(tokens) + 1) if any(s in texts[n] or s in plain[n] for s in strings)
    )
    assert ended(stop, tokens) == next(expected, None)


def test_special_tokens_without_end_do_not_hide_a_string():
    tokens = ids("ab", *[END] * 200, "c\u010a")
    assert ended(StopStrings(PIECES, ["bc"]), tokens) == len(tokens)


@pytest.mark.parametrize(
    ("text", "cut"), [("one\nQ: two", "one"), ("Q:", ""), ("none", "none"), ("a Q: b\n", "a ")]
)
def test_the_text_is_cut_before_the_first_string(text, cut):
    assert StopStrings(PIECES, ["\n", "Q:", ""]).cut(text) == cut


class TestGeneration:
    prompt = (40, 41, 42, 43)

    def expected(self, tiny, sampler, string):
        whole = generate(tiny, Vanilla(tiny), sampler, self.prompt, Limit(60)).tokens
        text = tiny.tokenizer.decode(whole)
        return whole[: text.index(string) + len(string)]  # tokens are characters

    @pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0, seed=3)], ids=["greedy", "T=1"])
    @pytest.mark.parametrize("start", [0, 1, 7, 20])
    def test_a_drafted_output_ends_where_vanillas_does(self, tiny, sampler, start):
        whole = generate(tiny, Vanilla(tiny), sampler, self.prompt, Limit(60)).tokens
        string = tiny.tokenizer.decode(whole[start : start + 4])
        limit = Limit(60, stop=StopStrings(tiny.tokenizer, [string]))
        expected = self.expected(tiny, sampler, string)
        drafter = Clairvoyant(
            [*self.prompt, *whole], lambda root, truth, step: Tree.chain(root, truth[:6])
        )
        generation = generate(tiny, drafter, sampler, self.prompt, limit)
        assert generation.tokens == expected
        assert generate(tiny, Vanilla(tiny), sampler, self.prompt, limit).tokens == expected
        assert sum(generation.committed) == len(expected) - 1
        assert generation.forwards == -(-(len(expected) - 1) // 7)

    def test_no_forward_follows_the_end(self, tiny):
        first = generate(tiny, Vanilla(tiny), Sampler(), self.prompt, Limit(1)).tokens
        limit = Limit(60, stop=StopStrings(tiny.tokenizer, [tiny.tokenizer.decode(first)]))
        before = tiny.forwards
        assert generate(tiny, Vanilla(tiny), Sampler(), self.prompt, limit).tokens == first
        assert tiny.forwards == before + 1
