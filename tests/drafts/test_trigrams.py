"""A table of tri-grams holds its data's probabilities, and is refused where it does not fit."""

import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fspad_bench.drafts.trigrams import (
    ABOUT,
    CAP,
    STEP,
    SUCCESSORS,
    VALUES,
    Trigrams,
    count_trigrams,
    load_table,
)
from fspad_bench.util.errors import BenchError

FACTS = {"tokenizer": "abc", "target": "some-model", "vocabulary_size": 40}


def texts(symbols, seed=0):
    dice = random.Random(seed)
    text = [dice.randrange(symbols) for _ in range(400)]
    return [(text, [(5, 200), (210, 211), (300, 400)]), ([1, 2], [(1, 2)]), ([3, 4, 5], [(0, 3)])]


def counted(own):
    """Return pair -> counts of what followed in the spans."""
    counts = defaultdict(Counter)
    for text, spans in own:
        for start, end in spans:
            for place in range(max(2, start), end):
                counts[text[place - 2], text[place - 1]][text[place]] += 1
    return counts


@pytest.mark.parametrize("symbols", [6, 40])
def test_values_are_the_shares_of_the_most_frequent_successors(symbols):
    own = texts(symbols)
    table = count_trigrams(own, 40, {})
    counts = counted(own)
    assert len(table.keys) == len(counts)
    for pair, successors in counts.items():
        best = sorted(successors.items(), key=lambda entry: (-entry[1], entry[0]))[:SUCCESSORS]
        total = successors.total()
        assert list(table.after(*pair)) == [token for token, _ in best]
        expected = {token: count / total for token, count in best}
        assert table.after(*pair) == pytest.approx(expected)


def test_pairs_that_never_were_have_no_successors():
    table = count_trigrams([([1, 2, 3], [(0, 3)])], 40, {})
    assert table.after(1, 2) == {3: 1.0}
    for pair in ((0, 0), (2, 1), (1, 3), (39, 39)):
        assert table.after(*pair) == {}


def test_at_most_twelve_successors_are_kept():
    text = [token for third in range(15) for token in (30, 31, third)]
    assert list(count_trigrams([(text, [(0, 45)])], 40, {}).after(30, 31)) == list(range(12))


def test_the_largest_ids_do_not_collide():
    size = 262_144
    text = [size - 1, size - 2, size - 1]
    assert count_trigrams([(text, [(0, 3)])], size, {}).after(*text[:2]) == {size - 1: 1.0}


@pytest.fixture
def saved(tmp_path):
    count_trigrams(texts(40), 40, dict(FACTS)).save(tmp_path)
    return tmp_path


def test_a_saved_table_is_the_same(saved):
    table = count_trigrams(texts(40), 40, {})
    loaded = load_table(saved, "abc", "some-model")
    for name in ("keys", "starts", "tokens", "values"):
        assert np.array_equal(getattr(loaded, name), getattr(table, name))
    about = json.loads((saved / ABOUT).read_text())
    assert (about["pairs"], about["trigrams"]) == (len(table.keys), len(table.tokens))
    assert loaded.sha256 == load_table(saved, "abc", "some-model").sha256 != ""
    assert {array.dtype.name for array in load_file(saved / VALUES).values()} == {
        "int32",
        "float32",
    }


def test_a_table_of_another_tokenizer_is_refused_by_name(saved):
    with pytest.raises(BenchError, match="built for some-model, whose tokenizer is not other's"):
        load_table(saved, "abd", "other")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(BenchError, match="no tri-gram table at"):
        load_table(tmp_path / "none", "abc", "other")


def edited(folder, **arrays):
    save_file(load_file(folder / VALUES) | arrays, folder / VALUES)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / VALUES).unlink(), "not a usable"),
        (lambda f: (f / VALUES).write_bytes(b"x"), "not a usable"),
        (lambda f: (f / ABOUT).write_text("[]"), "describes no tri-gram table"),
        (lambda f: (f / ABOUT).write_text("{"), "JSON"),
        (lambda f: edited(f, starts=np.zeros(0, np.int32)), "not a usable"),
        (lambda f: edited(f, values=np.zeros(3, np.float32)), "do not fit each other"),
        (lambda f: edited(f, tokens=load_file(f / VALUES)["tokens"] + 9), "outside the vocab"),
        (lambda f: edited(f, pairs=load_file(f / VALUES)["pairs"][::-1].copy()), "not in order"),
        (lambda f: edited(f, values=load_file(f / VALUES)["values"] * 0), "not a probability"),
    ],
)
def test_a_damaged_table_is_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(BenchError, match=message) as caught:
        load_table(saved, "abc", "some-model")
    assert caught.value.hint


class TestLearning:
    def test_each_sight_raises_the_value_up_to_the_cap(self):
        trigrams = Trigrams()
        trigrams.learn([1, 2, 3])
        assert trigrams.after(1, 2) == [(3, STEP)]
        for _ in range(200):
            trigrams.learn([1, 2, 3])
        assert trigrams.after(1, 2) == [(3, CAP)]
        trigrams.learn([1, 2, 4])
        assert trigrams.after(1, 2) == [(3, CAP), (4, STEP)]

    def test_learned_values_add_to_the_tables_which_stays(self):
        table = count_trigrams([([1, 2, 3, 1, 2, 4], [(0, 6)])], 9, {})
        trigrams = Trigrams(table)
        trigrams.learn([1, 2, 4, 1])
        assert trigrams.after(1, 2) == [(4, 0.5 + STEP), (3, 0.5)]
        assert table.after(1, 2) == {3: 0.5, 4: 0.5}

    def test_short_texts_have_no_trigrams(self):
        trigrams = Trigrams()
        trigrams.learn([1, 2])
        trigrams.learn([])
        assert trigrams.values == {}
