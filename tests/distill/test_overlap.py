"""The overlap report counts rows that share ten consecutive words with an evaluation prompt."""

import json

import pytest

from fspad_bench.distill.overlap import ngrams, report, summary

COPIED = "one two, three; FOUR five six\nseven eight nine ten"


@pytest.fixture
def folder(tiny, tmp_path):
    texts = [
        "an unrelated text",
        "x " + COPIED + " y",
        "one two three four five six seven eight nine",
    ]
    rows = [{"tokens": tiny.tokenizer(text)["input_ids"], "answers": [[1, 3]]} for text in texts]
    (tmp_path / "shard-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_words_count_and_separators_do_not():
    assert len(ngrams(COPIED)) == 1
    assert ngrams(COPIED) == ngrams("One, two three four five -- six seven eight nine (ten)")
    assert not ngrams("too few words for that")


def test_shared_words_are_counted_and_shown(tiny, folder):
    result = report(folder, tiny.tokenizer, {"a@x": ["so: " + COPIED, "more"], "b@x": ["none"]})
    assert result["rows_sharing"] == {"a@x": 1, "b@x": 0}
    assert result["examples"] == [
        {
            "row": "shard-00000.jsonl:2",
            "task": "a@x",
            "words": "one two three four five six seven eight nine ten",
        }
    ]
    assert json.loads((folder / "overlap.json").read_text()) == result
    assert list(summary(result)) == ["1 of 3 rows share 10 words with a@x"]


def test_a_set_that_shares_nothing_is_reported_in_one_line(tiny, folder):
    result = report(folder, tiny.tokenizer, {"a@x": ["one", "two"], "b@y": ["three"]})
    assert list(summary(result)) == [
        "no row shares 10 words with any of 3 evaluation prompts (x, y)"
    ]
