"""Where texts part, from records made by hand."""

from dataclasses import replace

from test_rows import FAST, VANILLA, records, sample

from fspad_bench.benchmark.divergence import partings
from fspad_bench.benchmark.record import Audit


def pair(ours, theirs, tokens=(1, 2, 9, 4), key=FAST):
    made = [
        sample(VANILLA, "q7", [1, 2, 3, 4], 1.0, text=theirs),
        sample(key, "q7", list(tokens), 1.0, text=ours),
    ]
    audit = Audit(key.hash, "q7", 0, "r", 2, [0.0, 0.0, 0.25, 0.0], [0.0, 0.0, 0.125, 0.0], 0.5)
    return records(*made, keys=(VANILLA, key), audits=[audit])


def test_what_both_say_and_what_each_goes_on_with():
    (found,) = partings(pair("The river\nends in the sea.", "The river\nends at a lake."))
    first, both, vanilla, fast = found.splitlines()
    assert first == (
        f"fast, gsm8k q7, turn 1, T={FAST.temperature:g}: parts after 2 of 4 tokens; "
        "regret there 0.25, vanilla's 0.12, its margin error 0.5"
    )
    assert both.split(maxsplit=1) == ["both", "The river\\nends "]
    assert vanilla.split(maxsplit=1) == ["vanilla", "at a lake."]
    assert fast.split(maxsplit=1) == ["fast", "in the sea."]


def test_long_texts_are_cut_around_the_parting():
    (found,) = partings(pair("x" * 300 + "a" * 300, "x" * 300 + "b" * 300))
    assert max(map(len, found.splitlines()[1:])) < 90
    assert "  ...xxx" in found


def test_a_text_that_ends_there_says_so():
    (found,) = partings(pair("The river", "The river ends."))
    assert found.splitlines()[-1].split(maxsplit=1) == ["fast", "(ends)"]


def test_equal_tokens_and_texts_that_were_not_kept_show_nothing():
    assert not list(partings(pair("a", "b", tokens=(1, 2, 3, 4))))
    assert not list(partings(pair("", "")))


def test_a_decoder_of_another_law_is_not_compared():
    other = replace(FAST, verification="rejection", temperature=1.0)
    assert not list(partings(pair("a", "b", key=other)))
