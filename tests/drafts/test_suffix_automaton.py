"""The suffix automaton finds what a search through the whole text finds."""

import random
from itertools import product

import pytest

from fspad_bench.drafts.suffix_automaton import NO_MATCH, REACH, ROOT, SuffixAutomaton


def fibonacci(length):
    """Return a prefix of the Fibonacci word, whose repeats overlap as much as can be."""
    shorter, word = [0], [0, 1]
    while len(word) < length:
        shorter, word = word, word + shorter
    return word[:length]


def de_bruijn(symbols, length):
    """Return a sequence in which each word of `length` symbols occurs once, found greedily."""
    text = [0] * length
    seen = {tuple(text)}
    while True:
        words = [(*text[1 - length :], symbol) for symbol in reversed(range(symbols))]
        new = next((word for word in words if word not in seen), None)
        if new is None:
            return text
        seen.add(new)
        text.append(new[-1])


def random_text(symbols, length, seed):
    dice = random.Random(seed)
    return [dice.randrange(symbols) for _ in range(length)]


TEXTS = {
    "one symbol": [0] * 50,
    "fibonacci": fibonacci(60),
    "de bruijn": de_bruijn(2, 5),
    "two periods": [0, 1, 2] * 8 + [0, 1] * 9,
    "all different": list(range(30)),
    **{f"random of {n}": random_text(n, 60, n) for n in (2, 3, 7)},
}


def ends(text, word):
    """Return where a word ends in a text, by search."""
    places = range(len(word), len(text) + 1)
    return [end for end in places if text[end - len(word) : end] == word]


def longest_repeat(text):
    """Return the length of the longest suffix that occurs twice, by search."""
    return max(n for n in range(len(text)) if n == 0 or len(ends(text, text[-n:])) > 1)


def state_of(automaton, word):
    state = ROOT
    for token in word:
        state = automaton.follow[state][token]
    return state


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_longest_repeated_suffix_is_that_of_a_search(text):
    automaton = SuffixAutomaton()
    for size in range(1, len(text) + 1):
        automaton.append(text[size - 1])
        match = automaton.repeated_suffix()
        assert match.length == longest_repeat(text[:size])
        assert match.state == state_of(automaton, text[size - match.length : size])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_substring_has_its_followers_count_and_latest_end(text):
    automaton = SuffixAutomaton(text)
    for start, length in product(range(len(text)), (1, 2, 3, 5, 8, 13)):
        word = text[start : start + length]
        state = state_of(automaton, word)
        places = ends(text, word)
        assert automaton.count[state] == len(places)
        assert automaton.latest[state] == places[-1]
        followers = {text[end] for end in places if end < len(text)}
        assert automaton.follow[state].keys() == followers


def test_shorter_suffixes_of_a_match_are_those_with_more_ends():
    text = random_text(2, 80, 1)
    automaton = SuffixAutomaton(text)
    match = automaton.repeated_suffix()
    while match.length:
        shorter = automaton.shorter(match)
        count = len(ends(text, text[-match.length :]))
        longer = range(shorter.length + 1, match.length + 1)
        assert all(len(ends(text, text[-n:])) == count for n in longer)
        if shorter.length:
            assert len(ends(text, text[-shorter.length :])) > count
        match = shorter
    assert match == NO_MATCH


@pytest.mark.parametrize("symbols", [2, 3, 5])
def test_another_text_is_followed_by_its_longest_known_suffix(symbols):
    text = random_text(symbols, 40, 5)
    other = random_text(symbols + 1, 60, 6)  # with a symbol that the text lacks
    automaton = SuffixAutomaton(text)
    match = NO_MATCH
    for size, token in enumerate(other, start=1):
        match = automaton.advance(match, token)
        known = [n for n in range(size + 1) if n == 0 or ends(text, other[size - n : size])]
        assert match.length == max(known)
        assert match.state == state_of(automaton, other[size - match.length : size])


@pytest.mark.parametrize("symbols", [1, 2, 4])
def test_no_substring_crosses_the_end_of_a_text(symbols):
    texts = [random_text(symbols, length, length) for length in (9, 1, 14, 0, 12)]
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.separate()
        for token in text:
            automaton.append(token)
    for word in product(range(symbols), repeat=3):
        count = sum(len(ends(text, list(word))) for text in texts)
        if count:
            assert automaton.count[state_of(automaton, word)] == count
        else:
            with pytest.raises(KeyError):
                state_of(automaton, word)


def test_construction_is_linear():
    """At most two states a token, and a bounded number of counts, in the worst of texts."""
    for text in ([0] * 3000, fibonacci(3000), de_bruijn(2, 11)):
        automaton = SuffixAutomaton(text)
        assert len(automaton.length) <= 2 * len(text)
        assert sum(automaton.count) <= REACH * len(text) * 2
