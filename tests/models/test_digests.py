"""A folder's digest is remembered between runs, and never survives a change of its files."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from fspad_bench.models import digests
from fspad_bench.models.digests import folder_digest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Use an empty cache, and remember files however new they are."""
    home = tmp_path / "cache"
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(home))
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -3600.0)
    return home


@pytest.fixture
def hashed(monkeypatch):
    """Record the names of the files of every hashing."""
    calls = []
    real = digests._hash

    def counted(files):
        calls.append([path.name for path in files])
        return real(files)

    monkeypatch.setattr(digests, "_hash", counted)
    return calls


@pytest.fixture
def folder(cache, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_the_digest_is_over_names_and_contents(folder):
    total = hashlib.sha256()
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights")):
        total.update(name.encode())
        total.update(hashlib.sha256(content).digest())
    assert folder_digest(folder) == folder_digest(folder) == total.hexdigest()


def test_an_unchanged_folder_is_hashed_once(folder, hashed):
    assert folder_digest(folder) == folder_digest(folder)
    assert hashed == [["config.json", "model.safetensors"]]


def test_another_size_is_hashed_again(folder, hashed):
    before = folder_digest(folder)
    (folder / "model.safetensors").write_bytes(b"more weights")
    assert folder_digest(folder) != before
    assert len(hashed) == 2


def test_another_modification_time_is_hashed_again(folder, hashed):
    before = folder_digest(folder)
    state = (folder / "model.safetensors").stat()
    os.utime(folder / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert folder_digest(folder) == before
    assert len(hashed) == 2


def test_a_file_replaced_with_its_size_and_time_kept_is_hashed_again(folder, hashed):
    before = folder_digest(folder)
    path = folder / "model.safetensors"
    state = path.stat()
    other = folder.parent / "other"
    other.write_bytes(b"Weights")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(other, path)
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert path.stat().st_size == state.st_size
    assert folder_digest(folder) != before


def test_a_further_file_is_hashed_again(folder, hashed):
    before = folder_digest(folder)
    (folder / "more.safetensors").write_bytes(b"")
    assert folder_digest(folder) != before
    assert len(hashed) == 2


def test_files_still_changing_are_not_remembered(folder, hashed, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 2.0)
    folder_digest(folder)
    folder_digest(folder)
    assert len(hashed) == 2


def test_files_changed_while_they_are_hashed_are_not_remembered(folder, monkeypatch):
    real = digests._hash

    def disturbed(files):
        digest = real(files)
        (folder / "model.safetensors").write_bytes(b"other weights")
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(digests, "_hash", disturbed)
        before = folder_digest(folder)
    assert folder_digest(folder) != before


@pytest.mark.parametrize("content", ["", "{}", "[]", '"x"', '{"sha256": 5}', "[" * 100_000])
def test_a_damaged_cache_is_hashed_again(folder, cache, hashed, content):
    before = folder_digest(folder)
    (path,) = (cache / "digests").iterdir()
    path.write_text(content)
    assert folder_digest(folder) == before
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(folder, cache, hashed):
    cache.write_text("not a folder")
    assert folder_digest(folder) == folder_digest(folder)
    assert len(hashed) == 2


@pytest.mark.parametrize("digest", ["ab", "g" * 64, "A" * 64, 5, None])
def test_a_digest_that_is_none_is_hashed_again(folder, cache, hashed, digest):
    before = folder_digest(folder)
    (path,) = (cache / "digests").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": digest}))
    assert folder_digest(folder) == before
    assert len(hashed) == 2


def test_a_digest_of_other_files_is_hashed_again(folder, cache, hashed):
    first = folder_digest(folder)
    (path,) = (cache / "digests").iterdir()
    (folder / "model.safetensors").write_bytes(b"more weights")
    second = folder_digest(folder)
    (other,) = {*(cache / "digests").iterdir()} - {path}
    other.write_bytes(path.read_bytes())
    assert folder_digest(folder) == second != first
