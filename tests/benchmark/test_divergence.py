"""Divergences of texts, from records made by hand."""

from dataclasses import replace

from by_hand import FAST, VANILLA, records, sample

from fspad_bench.benchmark.divergence import divergences
from fspad_bench.benchmark.record import Audit


def pair(decoder, vanilla, tokens=(1, 2, 9, 4), key=FAST):
    """Return records of two texts."""
    samples = [
        sample(VANILLA, "q7", [1, 2, 3, 4], 1.0, text=vanilla),
        sample(key, "q7", list(tokens), 1.0, text=decoder),
    ]
    audit = Audit(key.hash, "q7", 0, "r", 2, [0.0, 0.0, 0.25, 0.0], [0.0, 0.0, 0.125, 0.0], 0.5)
    return records(*samples, keys=(VANILLA, key), audits=[audit])


def test_the_shared_text_and_both_continuations_are_shown():
    (text,) = divergences(pair("The river\nends in the sea.", "The river\nends at a lake."))
    first, both, vanilla, fast = text.splitlines()
    assert first == (
        f"fast, gsm8k q7, turn 1, T={FAST.temperature:g}: diverges after 2 of 4 tokens; "
        "regret there 0.25, vanilla's 0.12, its margin error 0.5"
    )
    assert both.split(maxsplit=1) == ["both", "The river\\nends "]
    assert vanilla.split(maxsplit=1) == ["vanilla", "at a lake."]
    assert fast.split(maxsplit=1) == ["fast", "in the sea."]


def test_long_texts_are_cut_around_the_divergence():
    (text,) = divergences(pair("x" * 300 + "a" * 300, "x" * 300 + "b" * 300))
    assert max(map(len, text.splitlines()[1:])) < 90
    assert "  ...xxx" in text


def test_a_text_that_ends_at_the_divergence_is_marked():
    (text,) = divergences(pair("The river", "The river ends."))
    assert text.splitlines()[-1].split(maxsplit=1) == ["fast", "(ends)"]


def test_equal_tokens_and_unrecorded_texts_show_nothing():
    assert not list(divergences(pair("a", "b", tokens=(1, 2, 3, 4))))
    assert not list(divergences(pair("", "")))


def test_a_decoder_that_keeps_only_the_distribution_is_not_compared():
    other = replace(FAST, verification="rejection", temperature=1.0)
    assert not list(divergences(pair("a", "b", key=other)))
