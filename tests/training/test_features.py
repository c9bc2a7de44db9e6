"""Conversations, their features, and which rows are supervised."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fspad_bench.errors import BenchError
from fspad_bench.training import features as data
from fspad_bench.training.features import (
    FeatureStore,
    LiveFeatures,
    StoredFeatures,
    by_length,
    data_hash,
    frequent_tokens,
    read_conversations,
    read_files,
)


@pytest.fixture
def store(tiny, conversations, tmp_path):
    rows = read_conversations([conversations], 97, 64)
    store = FeatureStore(tmp_path / "store", rows, 64)
    store.fill(tiny)
    return store


def test_features_are_the_targets_own(tiny, store):
    conversation = store.conversations[3]
    ids, ((start, _),) = conversation.tokens, conversation.answers
    with torch.inference_mode():
        hidden = tiny.model.base_model(
            input_ids=torch.tensor([ids]), use_cache=False
        ).last_hidden_state[0]
    _, features, rows, *_ = StoredFeatures([store]).load([7, 3])
    torch.testing.assert_close(features[1, : len(ids)].double(), hidden.to(torch.bfloat16).double())
    first = start - 1  # reads the last prompt feature and the first token of the answer
    assert rows[1].nonzero().flatten().tolist() == list(range(first, len(ids) - 2))


def test_normaliser_and_choice_stand_behind_the_supervised_rows(tiny, store):
    group = [3, 7]
    _, features, rows, normaliser, choice, _ = StoredFeatures([store]).load(group)
    logits = tiny.lm_head(features[:, 1:][rows[:, :-1]].double())
    assert len(normaliser) == len(choice) == len(logits)
    torch.testing.assert_close(
        normaliser.double(), logits.logsumexp(-1), rtol=0, atol=0.05
    )  # features are bfloat16
    assert (choice == logits.argmax(-1)).float().mean() > 0.9


def test_every_answer_of_a_conversation_is_supervised_behind_its_first_token(tiny, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text(json.dumps({"tokens": list(range(20)), "answers": [[4, 8], [13, 19]]}) + "\n")
    (conversation,) = read_conversations([path], 97, 18)
    assert conversation.answers == [(4, 8), (13, 18)]
    store = FeatureStore(tmp_path / "store", [conversation], 64)
    store.fill(tiny)
    ids, features, rows, normaliser, choice, _ = StoredFeatures([store]).load([0])
    predicted = ids[0, rows[0].nonzero().flatten() + 2].tolist()
    assert predicted == [5, 6, 7, 14, 15, 16, 17]
    assert len(choice) == len(predicted)
    behind = tiny.lm_head(features[0, 1:][rows[0, :-1]].double())
    torch.testing.assert_close(normaliser.double(), behind.logsumexp(-1), rtol=0, atol=0.05)


def test_two_trainings_at_once_compute_the_features_once(
    tiny, conversations, tmp_path, monkeypatch
):
    rows = read_conversations([conversations], 97, 64)
    first, second = (FeatureStore(tmp_path / "store", rows, 64) for _ in range(2))
    begun, going = threading.Event(), threading.Event()
    compute = first._compute

    def slowly(*arguments):
        begun.set()
        going.wait(10)
        compute(*arguments)

    monkeypatch.setattr(first, "_compute", slowly)
    monkeypatch.setattr(second, "_compute", lambda *_: pytest.fail("computed twice"))
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.fill, tiny)
        assert begun.wait(10)
        other = pool.submit(second.fill, tiny)
        going.set()
        one.result()
        other.result()
    assert second.ready() == len(first.groups)


def test_a_whole_conversation_is_supervised_behind_its_first_two_tokens(tiny, tmp_path):
    path = tmp_path / "two.jsonl"
    row = {"tokens": list(range(20)), "answers": [[4, 8], [13, 19]]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"held_out": True}) + "\n")
    learned, held_out = read_conversations([path], 97, 64)
    assert held_out.whole() == held_out
    rows = [learned.whole(), held_out]
    store = FeatureStore(tmp_path / "store", rows, 64)
    store.fill(tiny)
    for features in (StoredFeatures([store]), LiveFeatures(tiny, rows)):
        ids, behind, rows_of, normaliser, *_ = features.load([0, 1])
        assert ids[0, rows_of[0].nonzero().flatten() + 2].tolist() == list(range(2, 20))
        assert ids[1, rows_of[1].nonzero().flatten() + 2].tolist() == [5, 6, 7, *range(14, 19)]
        logits = tiny.lm_head(behind[:, 1:][rows_of[:, :-1]].double())
        torch.testing.assert_close(normaliser.double(), logits.logsumexp(-1), rtol=0, atol=0.05)


def test_a_folder_of_shards_is_one_data_set(conversations, tmp_path):
    lines = conversations.read_text().splitlines(keepends=True)
    (tmp_path / "shard-00001.jsonl").write_text("".join(lines[25:]))
    (tmp_path / "shard-00000.jsonl").write_text("".join(lines[:25]))
    (tmp_path / "manifest.json").write_text("{}")
    assert read_conversations([tmp_path], 97, 64) == read_conversations([conversations], 97, 64)
    assert data_hash([tmp_path]) == data_hash([conversations])


def test_a_data_set_that_grows_keeps_the_features_it_has(
    tiny, conversations, tmp_path, monkeypatch
):
    """Files have stores of their own; together they say what one store of everything says."""
    lines = conversations.read_text().splitlines(keepends=True)
    for number, part in enumerate((lines[:25], lines[25:])):
        (tmp_path / f"shard-0000{number}.jsonl").write_text("".join(part))
    files = read_files([tmp_path], 97, 64)
    stores = [FeatureStore(tmp_path / path.stem, part, 64) for path, part in files]
    StoredFeatures(stores[:1]).fill(tiny)
    monkeypatch.setattr(stores[0], "_compute", lambda *_: pytest.fail("computed again"))
    grown = StoredFeatures(stores)
    grown.fill(tiny)
    whole = StoredFeatures(
        [FeatureStore(tmp_path / "whole", read_conversations([conversations], 97, 64), 64)]
    )
    whole.fill(tiny)
    assert grown.conversations == whole.conversations
    for found, wanted in zip(grown.load([30, 3]), whole.load([30, 3]), strict=True):
        torch.testing.assert_close(
            found, wanted, rtol=0.01, atol=0.01
        )  # other groups, other rounding


def test_an_interrupted_store_goes_on(tiny, store, monkeypatch):
    before = store.features.copy()
    again = FeatureStore(store.folder, store.conversations, 64)
    monkeypatch.setattr(again, "_compute", lambda *_: pytest.fail("computed again"))
    again.fill(tiny)
    assert (again.features == before).all()
    store.done.write_text("0")
    redone = FeatureStore(store.folder, store.conversations, 64)
    redone.features[:] = 0
    redone.fill(tiny)
    assert (redone.features == before).all()


def test_a_store_whose_arrays_are_gone_is_filled_again(tiny, store):
    before = StoredFeatures([store]).load([0]).features
    (store.folder / "features.bin").unlink()
    again = FeatureStore(store.folder, store.conversations, 64)
    assert not again.done.exists()
    again.fill(tiny)
    assert torch.equal(StoredFeatures([again]).load([0]).features, before)


def test_a_full_disk_is_an_error_and_no_crash(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.os, "posix_fallocate", full)
    (store.folder / "normaliser.bin").unlink()
    with pytest.raises(OSError, match="No space left"):
        FeatureStore(store.folder, store.conversations, 64)


def test_nothing_is_no_group():
    assert list(by_length([], 10)) == []


def _written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _held_out(*paths):
    return {tuple(c.tokens) for c in read_conversations(paths, 97, 64) if c.held_out}


def test_what_is_marked_is_held_out_and_nothing_else_of_it(tmp_path):
    rows = [
        {"tokens": [1, 2, 3, place], "answers": [[2, 4]], "held_out": place == 3}
        for place in range(90)
    ]
    assert _held_out(_written(tmp_path / "data.jsonl", rows)) == {(1, 2, 3, 3)}


def test_about_every_33rd_of_the_others_is_held_out_wherever_it_stands(tmp_path):
    """What one training holds out, the next one, on more data or the same twice, must not learn."""
    rows = [
        {"tokens": [1, 2, place % 90, place // 90], "answers": [[2, 4]]} for place in range(660)
    ]
    found = _held_out(_written(tmp_path / "some.jsonl", rows[:330]))
    assert 5 <= len(found) <= 20
    every = _held_out(_written(tmp_path / "reversed.jsonl", rows[::-1]))
    assert found < every
    assert _held_out(tmp_path / "some.jsonl", tmp_path / "reversed.jsonl") == every


def test_where_none_is_held_out_the_first_is(tmp_path):
    rows = [
        {"tokens": [1, 2, 3, place], "answers": [[2, 4]], "held_out": False} for place in range(3)
    ]
    assert _held_out(_written(tmp_path / "data.jsonl", rows)) == {(1, 2, 3, 0)}


def test_a_cut_conversation_is_held_out_like_the_whole_one(tmp_path):
    rows = [{"tokens": [1, 2, *range(2, 20), place], "answers": [[2, 21]]} for place in range(90)]
    path = _written(tmp_path / "data.jsonl", rows)
    marks = [[c.held_out for c in read_conversations([path], 97, length)] for length in (21, 10)]
    assert marks[0] == marks[1]


def test_groups_hold_their_budget_and_everything():
    lengths = [5, 90, 12, 12, 3, 40, 7]
    groups = list(by_length(lengths, 48))
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 48 for g in groups)


def test_frequent_tokens_are_those_said_most(conversations):
    rows = read_conversations([conversations], 97, 64)
    counts = torch.bincount(
        torch.tensor([t for c in rows for s, e in c.answers for t in c.tokens[s:e]]), minlength=97
    )
    kept = frequent_tokens(rows, 5, 97)
    assert kept.tolist() == sorted(kept.tolist())
    assert counts[kept].min() >= counts[[t for t in range(97) if t not in kept.tolist()]].max()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", ":2: not a conversation"),
        (json.dumps({"prompt": [1]}), ":2: not a conversation: it lacks 'response'"),
        (json.dumps({"tokens": [1, 2, 3]}), ":2: not a conversation: it lacks 'answers'"),
        (
            json.dumps({"tokens": [1, 2, 3], "answers": [[1, 4]]}),
            ":2: not a conversation: answers [[1, 4]] do not lie",
        ),
        (
            json.dumps({"tokens": [1, 2, 3], "answers": [[2, 3], [1, 2]]}),
            ":2: not a conversation: answers",
        ),
        (
            json.dumps({"tokens": [1, 2, 3], "answers": [[1, 2.5]]}),
            ":2: not a conversation: answers are pairs",
        ),
        ("\ud800", ":2: not a conversation"),
        (
            json.dumps({"prompt": [1], "response": [1, 2], "held_out": 1}),
            ":2: not a conversation: held_out is",
        ),
        (
            json.dumps({"prompt": [1], "response": [1, 2.5]}),
            ":2: not a conversation: token ids are whole numbers",
        ),
        (
            json.dumps({"prompt": [1], "response": [1, 97]}),
            ":2: not a conversation: a token id outside the target's vocabulary of 97",
        ),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, line, says):
    path = tmp_path / "bad.jsonl"
    text = json.dumps({"prompt": [1], "response": [2, 3]}) + "\n" + line + "\n"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BenchError) as raised:
        read_conversations([path], 97, 64)
    assert f"{path}{says}" in raised.value.message


def test_no_usable_conversation_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BenchError, match="no usable conversation"):
        read_conversations([tmp_path / "empty.jsonl"], 97, 64)
    with pytest.raises(BenchError, match="no such training data"):
        read_conversations([tmp_path / "absent.jsonl"], 97, 64)
