"""Training data are read, cut and held out as documented, and errors name the line."""

import json

import pytest
import torch

from fspad_bench.training.conversations import (
    all_conversations,
    data_hash,
    frequent_tokens,
    read_files,
)
from fspad_bench.util.errors import BenchError


def read(*paths, max_length=64):
    return all_conversations(read_files(paths, 97, max_length))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def held_out(*paths):
    return {tuple(c.tokens) for c in read(*paths) if c.held_out}


def test_a_folder_of_shards_is_one_data_set(conversations, tmp_path):
    lines = conversations.read_text().splitlines(keepends=True)
    (tmp_path / "shard-00001.jsonl").write_text("".join(lines[25:]))
    (tmp_path / "shard-00000.jsonl").write_text("".join(lines[:25]))
    (tmp_path / "manifest.json").write_text("{}")
    assert read(tmp_path) == read(conversations)
    assert data_hash([tmp_path]) == data_hash([conversations])


def test_marked_conversations_are_held_out_and_no_others(tmp_path):
    rows = [{"tokens": [1, 2, 3, n], "answers": [[2, 4]], "held_out": n == 3} for n in range(90)]
    assert held_out(write(tmp_path / "data.jsonl", rows)) == {(1, 2, 3, 3)}


def test_without_marks_one_in_33_is_held_out_by_its_tokens(tmp_path):
    """A later training on more data, or on the same data twice, must not learn held-out ones."""
    rows = [{"tokens": [1, 2, n % 90, n // 90], "answers": [[2, 4]]} for n in range(660)]
    some = held_out(write(tmp_path / "some.jsonl", rows[:330]))
    assert 5 <= len(some) <= 20
    every = held_out(write(tmp_path / "reversed.jsonl", rows[::-1]))
    assert some < every
    assert held_out(tmp_path / "some.jsonl", tmp_path / "reversed.jsonl") == every


def test_the_first_is_held_out_if_no_other_is(tmp_path):
    rows = [{"tokens": [1, 2, 3, n], "answers": [[2, 4]], "held_out": False} for n in range(3)]
    assert held_out(write(tmp_path / "data.jsonl", rows)) == {(1, 2, 3, 0)}


def test_a_cut_conversation_is_held_out_like_the_whole_one(tmp_path):
    rows = [{"tokens": [1, 2, *range(2, 20), n], "answers": [[2, 21]]} for n in range(90)]
    path = write(tmp_path / "data.jsonl", rows)
    marks = [[c.held_out for c in read(path, max_length=length)] for length in (21, 10)]
    assert marks[0] == marks[1]


def test_answers_are_cut_with_their_conversation(tmp_path):
    row = {"tokens": list(range(20)), "answers": [[4, 8], [13, 19]]}
    (conversation,) = read(write(tmp_path / "two.jsonl", [row]), max_length=18)
    assert conversation.answers == [(4, 8), (13, 18)]


def test_frequent_tokens_are_the_most_frequent_of_the_answers(conversations):
    every = read(conversations)
    tokens = [t for c in every for start, end in c.answers for t in c.tokens[start:end]]
    counts = torch.bincount(torch.tensor(tokens), minlength=97)
    kept = frequent_tokens(every, 5, 97)
    others = [t for t in range(97) if t not in kept.tolist()]
    assert kept.tolist() == sorted(kept.tolist())
    assert counts[kept].min() >= counts[others].max()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a conversation"),
        (json.dumps({"prompt": [1]}), "not a conversation: it lacks 'response'"),
        (json.dumps({"tokens": [1, 2, 3]}), "not a conversation: it lacks 'answers'"),
        (
            json.dumps({"tokens": [1, 2, 3], "answers": [[1, 4]]}),
            "not a conversation: answers [[1, 4]] must be in order",
        ),
        (
            json.dumps({"tokens": [1, 2, 3], "answers": [[2, 3], [1, 2]]}),
            "not a conversation: answers",
        ),
        (
            json.dumps({"tokens": [1, 2, 3], "answers": [[1, 2.5]]}),
            "not a conversation: answers must be pairs",
        ),
        ("\ud800", "not a conversation"),
        (
            json.dumps({"prompt": [1], "response": [1, 2], "held_out": 1}),
            "not a conversation: held_out must be",
        ),
        (
            json.dumps({"prompt": [1], "response": [1, 2.5]}),
            "not a conversation: token ids must be whole numbers",
        ),
        (
            json.dumps({"prompt": [1], "response": [1, 97]}),
            "not a conversation: a token id outside the target's vocabulary of 97",
        ),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    text = json.dumps({"prompt": [1], "response": [2, 3]}) + "\n" + line + "\n"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BenchError) as raised:
        read(path)
    assert f"{path}:2: {message}" in raised.value.message


def test_no_usable_conversation_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BenchError, match="no usable conversation"):
        read(tmp_path / "empty.jsonl")
    with pytest.raises(BenchError, match="no such training data"):
        read(tmp_path / "absent.jsonl")


def test_answers_that_are_not_learned_name_no_token(tmp_path):
    path = write(tmp_path / "one.jsonl", [{"prompt": [1], "response": [50, 51]}])
    assert frequent_tokens(read(path), 3, 97).tolist() == [0, 1, 2]
