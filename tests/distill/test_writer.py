"""A data set on disk: whole shards, resumed to the same end, refused where it would be mixed."""

import json

import pytest

from fspad_bench.distill import writer
from fspad_bench.distill.imported import read_given
from fspad_bench.distill.writer import answer_tokens, distill_given, shard_files
from fspad_bench.engine.batch import Wave
from fspad_bench.errors import BenchError
from fspad_bench.training.features import read_conversations


def content(folder):
    return [path.read_text() for path in shard_files(folder)]


def test_a_data_set_has_as_many_answer_tokens_as_were_asked_for(write, tmp_path):
    folder = write(tmp_path / "set")
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = [answer_tokens(path) for path in shard_files(folder)]
    assert manifest["answer_tokens"] == sum(counts) >= 1500 > sum(counts[:-1])
    assert manifest["shards"] == len(counts) >= 2
    assert read_conversations([folder], 97, 8192)


def test_interrupted_it_goes_on_to_the_same_end(write, tmp_path, monkeypatch):
    whole = content(write(tmp_path / "whole", tokens=3000))
    real, calls = writer.Talks.free, []

    def third_one_torn(self, count):
        calls.append(1)
        torn = len(calls) == 3
        made = yield from real(self, count)
        if torn:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(writer.Talks, "free", third_one_torn)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "torn", tokens=3000)
    held = content(tmp_path / "torn")
    assert held == whole[: len(held)]
    assert len(held) < len(whole)
    assert content(write(tmp_path / "torn", tokens=3000)) == whole


def test_shards_are_the_same_however_many_are_at_work(write, tmp_path, monkeypatch):
    whole = content(write(tmp_path / "whole"))
    monkeypatch.setattr(writer, "AHEAD", 1)
    assert content(write(tmp_path / "alone")) == whole


def test_no_shard_is_begun_that_is_not_wanted(write, tmp_path, monkeypatch):
    real, begun = writer.Talks.free, []
    monkeypatch.setattr(
        writer.Talks, "free", lambda self, count: begun.append(1) or real(self, count)
    )
    folder = write(tmp_path / "set", tokens=200)
    assert len(begun) == len(shard_files(folder)) == 1
    more = write(tmp_path / "set", tokens=4 * answer_tokens(shard_files(folder)[0]))
    assert len(shard_files(more)) <= len(begun) <= len(shard_files(more)) + 1


def test_a_shard_that_is_gone_is_made_again(write, tmp_path):
    whole = content(write(tmp_path / "set"))
    (tmp_path / "set" / "shard-00000.jsonl").unlink()
    assert content(write(tmp_path / "set")) == whole
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["shards"] == len(whole)


def test_a_file_is_no_folder(write, tmp_path):
    (tmp_path / "set").write_text("")
    with pytest.raises(BenchError, match="is a file"):
        write(tmp_path / "set")


def test_more_tokens_continue_a_finished_one(write, tmp_path):
    first = content(write(tmp_path / "set", tokens=200))
    more = content(write(tmp_path / "set", tokens=1500))
    assert len(more) > len(first)
    assert more[: len(first)] == first


@pytest.mark.parametrize(
    ("changes", "said"), [({"seed": 4}, "another seed: 3, not 4"), ({"shard": 5}, "another shard")]
)
def test_other_settings_are_refused(write, tmp_path, changes, said):
    write(tmp_path / "set", tokens=100)
    with pytest.raises(BenchError, match=said):
        write(tmp_path / "set", **changes)


def test_a_set_by_another_recipe_stays_what_it_is_and_does_not_grow(write, tmp_path, monkeypatch):
    write(tmp_path / "set", tokens=100)
    before = (tmp_path / "set" / "manifest.json").read_text()
    monkeypatch.setattr(writer, "recipe", lambda: "another")
    write(tmp_path / "set", tokens=100)
    assert (tmp_path / "set" / "manifest.json").read_text() == before
    with pytest.raises(BenchError, match="another recipe"):
        write(tmp_path / "set")


def test_a_folder_of_something_else_is_refused(write, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BenchError, match="is not empty and holds no data set"):
        write(tmp_path)


def test_a_target_that_says_nothing_is_refused(write, tmp_path, monkeypatch):
    def silent(self, count):
        yield Wave([], [])
        return []

    monkeypatch.setattr(writer.Talks, "free", silent)
    with pytest.raises(BenchError, match="says nothing"):
        write(tmp_path / "set")


@pytest.mark.parametrize("regenerate", [False, True])
def test_given_conversations_become_a_data_set(tiny, short, tmp_path, regenerate):
    source = tmp_path / "given.jsonl"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    source.write_text(
        json.dumps({"messages": talk}) + "\n" + json.dumps({"messages": talk * 2}) + "\n"
    )
    folder = distill_given(
        tiny,
        tmp_path / "set",
        read_given(str(source)),
        regenerate=regenerate,
        seed=0,
        rows=2,
        shard=1,
    )
    assert len(shard_files(folder)) == 2
    first, second = read_conversations([folder], 97, 8192)
    assert (len(first.answers), len(second.answers)) == (1, 2)
    said = tiny.tokenizer.decode(first.tokens[slice(*first.answers[0])])
    assert (said == "Hello there<|end|>") != regenerate
