"""Ten words in a row that an evaluation prompt has too."""

import json

import pytest

from fspad_bench.distill.overlap import ngrams, report, summary, task_prompts

STOLEN = "one two, three; FOUR five six\nseven eight nine ten"


@pytest.fixture
def folder(tiny, tmp_path):
    texts = [
        "nothing of the kind",
        "x " + STOLEN + " y",
        "one two three four five six seven eight nine",
    ]
    rows = [{"tokens": tiny.tokenizer(text)["input_ids"], "answers": [[1, 3]]} for text in texts]
    (tmp_path / "shard-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_words_count_and_not_what_stands_between_them():
    assert len(ngrams(STOLEN)) == 1
    assert ngrams(STOLEN) == ngrams("One, two three four five -- six seven eight nine (ten)")
    assert not ngrams("too few words for that")


def test_every_task_is_compared():
    prompts = task_prompts(["bundled"])
    assert {name.partition("@")[0] for name in prompts} >= {
        "mt_bench",
        "wmt",
        "cnn_dm",
        "nq",
        "gsm8k",
        "rag",
    }
    assert all(prompts.values())


def test_shared_words_are_counted_and_shown(tiny, folder):
    found = report(folder, tiny.tokenizer, {"a@x": ["so: " + STOLEN, "more"], "b@x": ["none"]})
    assert found["rows_sharing"] == {"a@x": 1, "b@x": 0}
    assert found["examples"] == [
        {
            "row": "shard-00000.jsonl:2",
            "task": "a@x",
            "words": "one two three four five six seven eight nine ten",
        }
    ]
    assert json.loads((folder / "overlap.json").read_text()) == found
    assert list(summary(found)) == ["1 of 3 rows share 10 words with a@x"]


def test_a_clean_set_says_so(tiny, folder):
    found = report(folder, tiny.tokenizer, task_prompts(["bundled"]))
    assert "no row shares 10 words with any of" in next(iter(summary(found)))
