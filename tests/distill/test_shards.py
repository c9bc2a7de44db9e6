"""Shards are believed by their content: damaged ones are made again."""

import json
import shutil

import pytest

from fspad_bench.distill.shards import check_shards, shard_files
from fspad_bench.distill.writer import distill_own
from fspad_bench.util.errors import BenchError


def content(folder):
    return {path.name: path.read_bytes() for path in shard_files(folder)}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def emptied(path):
    path.write_bytes(b"")


def torn(path):
    path.write_bytes(path.read_bytes()[:-20])


def other(path):
    path.write_bytes(path.read_bytes().replace(b"[1", b"[2"))


def cut(path):
    """Drop the last conversation, whole."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


def binary(path):
    path.write_bytes(b"\xff\xfe\x00")


def gone(path):
    path.unlink()


DAMAGES = [emptied, torn, other, cut, binary, gone]


@pytest.fixture(scope="module")
def written(tiny, shorten, tmp_path_factory):
    """A data set, which tests copy."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        folder = tmp_path_factory.mktemp("data") / "set"
        return distill_own(tiny, folder, tokens=600, seed=3, slots=8, shard=8)


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "set")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused_by_train_and_made_again_by_distill(write, folder, damage):
    whole = content(folder)
    assert len(whole) > 1
    before = manifest(folder)
    damage(folder / "shard-00000.jsonl")
    with pytest.raises(BenchError, match=r"shard-00000\.jsonl is damaged or missing") as caught:
        check_shards(folder, before)
    assert "distill" in caught.value.hint
    write(folder, tokens=600, shard=8)
    assert content(folder) == whole
    assert manifest(folder) == before
    check_shards(folder, before)


@pytest.mark.parametrize("damage", [emptied, torn, binary])
def test_a_damaged_shard_beyond_the_goal_is_made_again_too(write, folder, damage):
    """The other shards alone have tokens enough, but the file is there and would be read."""
    whole = content(folder)
    damage(folder / max(whole))
    write(folder, tokens=1, shard=8)
    assert content(folder) == whole


@pytest.mark.parametrize("damage", [emptied, torn, binary])
def test_a_data_set_without_hashes_is_believed_by_its_lines(write, folder, damage):
    whole = content(folder)
    earlier = {name: value for name, value in manifest(folder).items() if name != "files"}
    path = folder / "manifest.json"
    path.write_text(json.dumps(earlier))
    damage(folder / "shard-00000.jsonl")
    write(folder, tokens=600, shard=8)
    assert content(folder) == whole
    assert manifest(folder)["files"].keys() == whole.keys()


@pytest.mark.parametrize("text", ["", "{", "[]", "5"])
def test_a_damaged_manifest_is_one_clear_error(write, folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BenchError, match=r"manifest\.json") as caught:
        write(folder, tokens=600, shard=8)
    assert "another --output" in caught.value.hint


@pytest.mark.parametrize("name", ["shard-00900.jsonl", "shard-x.jsonl", "shard-1.jsonl"])
def test_a_stray_shard_is_refused_and_not_filled_up_to(write, folder, name):
    """Its number would have all shards before it generated, and a name without one would never."""
    rows = (folder / "shard-00000.jsonl").read_bytes()
    for content in (b"{}\n", rows):  # also where it holds conversations of another data set
        (folder / name).write_bytes(content)
        with pytest.raises(BenchError, match=f"{name} is no shard of this data set"):
            write(folder, tokens=600, shard=8)
        with pytest.raises(BenchError, match=f"{name} is not in the data set's manifest"):
            check_shards(folder, manifest(folder))


@pytest.mark.parametrize("name", ["../../elsewhere", "shard-99999.jsonl", ""])
def test_a_manifest_that_names_other_files_is_refused(write, folder, name):
    facts = manifest(folder)
    facts["files"][name] = "ab"
    (folder / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(BenchError, match="is no shard of this data set"):
        write(folder, tokens=600, shard=8)


def test_a_shard_written_before_its_manifest_is_read_by_train(folder):
    """One alone, and whole: a process may be killed between the two."""
    last = max(content(folder))
    facts = manifest(folder)
    del facts["files"][last]
    with pytest.raises(BenchError, match=f"{last} is not in the data set's manifest"):
        check_shards(folder, facts)  # of a complete set
    del facts["shards"]
    check_shards(folder, facts)
    further = f"shard-{len(facts['files']) + 1:05}.jsonl"
    shutil.copy(folder / last, folder / further)
    with pytest.raises(BenchError, match=f"{further} is not in the data set's manifest"):
        check_shards(folder, facts)
    (folder / further).unlink()
    torn(folder / last)
    with pytest.raises(BenchError, match=f"{last} is not in the data set's manifest"):
        check_shards(folder, facts)


def test_a_shard_written_before_its_manifest_is_kept(write, folder):
    """A process may be killed between the two."""
    whole = content(folder)
    facts = manifest(folder)
    del facts["files"][max(whole)]
    (folder / "manifest.json").write_text(json.dumps(facts))
    write(folder, tokens=600, shard=8)
    assert content(folder) == whole
    assert manifest(folder)["files"].keys() == whole.keys()
