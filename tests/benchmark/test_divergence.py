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


def test_a_lossy_row_without_texts_shows_its_worst_output_in_token_ids():
    samples = []
    audits = []
    for name, regret, tokens in (("q1", 0.5, [1, 8]), ("q2", 2.5, [*range(20), 7]), ("q3", 1, [5])):
        own = [*tokens[:-1], 99]
        samples += [sample(VANILLA, name, tokens, 1.0), sample(FAST, name, own, 1.0)]
        regrets = [0.0] * (len(tokens) - 1) + [regret]
        audits.append(
            Audit(FAST.hash, name, 0, "r", len(tokens) - 1, regrets, [0.0] * len(tokens), 0.1)
        )
    differing = records(*samples, keys=(VANILLA, FAST), audits=audits)
    assert not list(divergences(differing))
    (text,) = divergences(differing, {FAST.hash})
    first, both, vanilla, fast, last = text.splitlines()
    assert "gsm8k q2" in first and "diverges after 20 of 21 tokens; regret there 2.5" in first
    assert both.split(maxsplit=1) == ["both", "... 14 15 16 17 18 19"]
    assert vanilla.split() == ["vanilla", "7"]
    assert fast.split() == ["fast", "99"]
    assert last == "  (the worst of 3 that differ, as token ids; --log-samples keeps texts)"


def test_an_error_is_no_divergence():
    failed = [
        sample(VANILLA, "q1", [1, 2], 1.0),
        replace(sample(FAST, "q1", [], 1.0), error="it raised"),
    ]
    assert not list(divergences(records(*failed, keys=(VANILLA, FAST)), {FAST.hash}))


def test_a_decoder_that_keeps_only_the_distribution_is_not_compared():
    other = replace(FAST, verification="rejection", temperature=1.0)
    assert not list(divergences(pair("a", "b", key=other)))
