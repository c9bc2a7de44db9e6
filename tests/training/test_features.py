"""Features are the target's own, computed once, and paired with the right positions."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from fspad_bench.training import feature_store
from fspad_bench.training.conversations import all_conversations, read_files
from fspad_bench.training.feature_store import FeatureStore, by_length
from fspad_bench.training.features import LiveFeatures, StoredFeatures


def read(path, max_length=64):
    return all_conversations(read_files([path], 97, max_length))


def fail(*_):
    pytest.fail("computed again")


@pytest.fixture
def store(tiny, conversations, tmp_path):
    store = FeatureStore(tmp_path / "store", read(conversations), 64)
    store.fill(tiny)
    return store


@pytest.fixture
def two_answers(tmp_path):
    """A file of one conversation with two answers."""
    path = tmp_path / "two.jsonl"
    path.write_text(json.dumps({"tokens": list(range(20)), "answers": [[4, 8], [13, 19]]}) + "\n")
    return path


def test_features_are_the_targets_own(tiny, store):
    conversation = store.conversations[3]
    ids = conversation.tokens
    ((start, _),) = conversation.answers
    with torch.inference_mode():
        output = tiny.model.base_model(input_ids=torch.tensor([ids]), use_cache=False)
    expected = output.last_hidden_state[0].to(torch.bfloat16)
    batch = StoredFeatures([store]).load([7, 3])
    torch.testing.assert_close(batch.features[1, : len(ids)].double(), expected.double())
    # the first reads the last prompt feature and the first token of the answer
    positions = batch.supervised[1].nonzero().flatten().tolist()
    assert positions == list(range(start - 1, len(ids) - 2))


def test_normaliser_and_choice_belong_to_the_supervised_positions(tiny, store):
    batch = StoredFeatures([store]).load([3, 7])
    logits = tiny.lm_head(batch.features[:, 1:][batch.supervised[:, :-1]].double())
    assert len(batch.normaliser) == len(batch.choice) == len(logits)
    # features are bfloat16
    expected = logits.logsumexp(-1)
    torch.testing.assert_close(batch.normaliser.double(), expected, rtol=0, atol=0.05)
    assert (batch.choice == logits.argmax(-1)).float().mean() > 0.9


def test_every_answer_is_supervised_after_its_first_token(tiny, tmp_path, two_answers):
    store = FeatureStore(tmp_path / "store", read(two_answers, max_length=18), 64)
    store.fill(tiny)
    batch = StoredFeatures([store]).load([0])
    predicted = batch.ids[0, batch.supervised[0].nonzero().flatten() + 2].tolist()
    assert predicted == [5, 6, 7, 14, 15, 16, 17]
    assert len(batch.choice) == len(predicted)
    logits = tiny.lm_head(batch.features[0, 1:][batch.supervised[0, :-1]].double())
    expected = logits.logsumexp(-1)
    torch.testing.assert_close(batch.normaliser.double(), expected, rtol=0, atol=0.05)


def test_two_trainings_at_once_compute_the_features_once(
    tiny, conversations, tmp_path, monkeypatch
):
    first, second = (FeatureStore(tmp_path / "store", read(conversations), 64) for _ in range(2))
    started = threading.Event()
    may_continue = threading.Event()
    compute = first._compute

    def slowly(*arguments):
        started.set()
        may_continue.wait(10)
        compute(*arguments)

    monkeypatch.setattr(first, "_compute", slowly)
    monkeypatch.setattr(second, "_compute", fail)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.fill, tiny)
        assert started.wait(10)
        other = pool.submit(second.fill, tiny)
        may_continue.set()
        one.result()
        other.result()
    assert second.ready() == len(first.groups)


def test_a_whole_conversation_is_supervised_after_its_first_two_tokens(tiny, two_answers):
    row = json.loads(two_answers.read_text())
    marked = row | {"held_out": True}
    two_answers.write_text(json.dumps(row) + "\n" + json.dumps(marked) + "\n")
    learned, held_out = read(two_answers)
    assert held_out.whole() == held_out
    conversations = [learned.whole(), held_out]
    store = FeatureStore(two_answers.parent / "store", conversations, 64)
    store.fill(tiny)
    for features in (StoredFeatures([store]), LiveFeatures(tiny, conversations)):
        batch = features.load([0, 1])
        predicted = [
            batch.ids[b, batch.supervised[b].nonzero().flatten() + 2].tolist() for b in (0, 1)
        ]
        assert predicted == [list(range(2, 20)), [5, 6, 7, *range(14, 19)]]
        logits = tiny.lm_head(batch.features[:, 1:][batch.supervised[:, :-1]].double())
        expected = logits.logsumexp(-1)
        torch.testing.assert_close(batch.normaliser.double(), expected, rtol=0, atol=0.05)


def test_a_data_set_that_grows_keeps_the_features_it_has(
    tiny, conversations, tmp_path, monkeypatch
):
    """Each file has a store of its own; together they hold what one store of all would hold."""
    lines = conversations.read_text().splitlines(keepends=True)
    for number, part in enumerate((lines[:25], lines[25:])):
        (tmp_path / f"shard-0000{number}.jsonl").write_text("".join(part))
    files = read_files([tmp_path], 97, 64)
    stores = [FeatureStore(tmp_path / file.path.stem, file.conversations, 64) for file in files]
    StoredFeatures(stores[:1]).fill(tiny)
    monkeypatch.setattr(stores[0], "_compute", fail)
    parts = StoredFeatures(stores)
    parts.fill(tiny)
    whole = StoredFeatures([FeatureStore(tmp_path / "whole", read(conversations), 64)])
    whole.fill(tiny)
    assert parts.conversations == whole.conversations
    for actual, expected in zip(parts.load([30, 3]), whole.load([30, 3]), strict=True):
        # groups of other sizes round differently
        torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.01)


def test_an_interrupted_store_continues(tiny, store, monkeypatch):
    before = store.features.copy()
    again = FeatureStore(store.folder, store.conversations, 64)
    monkeypatch.setattr(again, "_compute", fail)
    again.fill(tiny)
    assert (again.features == before).all()
    store.done.write_text("0")
    anew = FeatureStore(store.folder, store.conversations, 64)
    anew.features[:] = 0
    anew.fill(tiny)
    assert (anew.features == before).all()


def test_a_store_whose_arrays_are_gone_is_filled_again(tiny, store):
    before = StoredFeatures([store]).load([0]).features
    (store.folder / "features.bin").unlink()
    again = FeatureStore(store.folder, store.conversations, 64)
    assert not again.done.exists()
    again.fill(tiny)
    assert torch.equal(StoredFeatures([again]).load([0]).features, before)


def test_a_full_disk_is_an_error_and_not_a_crash(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store.os, "posix_fallocate", full)
    (store.folder / "normaliser.bin").unlink()
    with pytest.raises(OSError, match="No space left"):
        FeatureStore(store.folder, store.conversations, 64)


def test_no_sequences_make_no_group():
    assert list(by_length([], 10)) == []


def test_groups_keep_to_their_budget_and_hold_every_sequence():
    lengths = [5, 90, 12, 12, 3, 40, 7]
    groups = list(by_length(lengths, 48))
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 48 for g in groups)


@pytest.mark.parametrize("content", ["", "half", "-3", "999", "1.5", "\0", "1", "1 ab"])
def test_a_damaged_count_is_computed_anew(tiny, conversations, tmp_path, content):
    learned = all_conversations(read_files([conversations], 97, 64))
    store = FeatureStore(tmp_path / "store", learned, 64)
    store.fill(tiny)
    whole = store.features.copy()
    store.features[:] = 0
    store.done.write_text(content)
    again = FeatureStore(tmp_path / "store", learned, 64)
    assert again.ready() == 0
    again.fill(tiny)
    assert (again.features == whole).all()


def swapped(first, second, name):
    """Swap a file of two stores."""
    content = (first / name).read_bytes()
    (first / name).write_bytes((second / name).read_bytes())
    (second / name).write_bytes(content)


@pytest.mark.parametrize("name", ["features.bin", "normaliser.bin", "choice.bin", "done"])
def test_arrays_of_another_store_are_computed_anew(tiny, store, tmp_path, name):
    before = StoredFeatures([store]).load([0, 5])
    turned = [replace(c, tokens=c.tokens[::-1]) for c in store.conversations]
    other = FeatureStore(tmp_path / "other", turned, 64)
    other.fill(tiny)
    swapped(store.folder, other.folder, name)
    again = FeatureStore(store.folder, store.conversations, 64)
    assert again.ready() == 0
    again.fill(tiny)
    after = StoredFeatures([again]).load([0, 5])
    known = [(b, a) for b, a in zip(before, after, strict=True) if b is not None]
    assert all(torch.equal(b, a) for b, a in known)


def test_a_count_that_was_raised_is_computed_anew(tiny, store):
    count, digest = store.done.read_text().split()
    assert store.ready() == int(count) == len(store.groups)
    store.done.write_text(f"{len(store.groups) - 1} {digest}")
    assert store.ready() == 0
