"""What a lent machine gives back: archives in pieces, whole whatever ends the script."""

import os
import random
import tarfile

import pytest
from parts import summary

pytestmark = pytest.mark.wide


def test_what_is_packed_goes_on_elsewhere(script, stub, tmp_path):
    kept = tmp_path / "kept"
    settings = {"PYTHON": stub, "PACK": str(kept)}
    first = script("results/gpu.sh", "certify", OUTPUT=str(tmp_path / "one"), **settings)
    assert first.returncode == 0, first.stderr
    assert [path.name for path in kept.iterdir()] == ["gpu.tgz.part-aa"]
    settings |= {"FROM": str(kept), "OUTPUT": str(tmp_path / "two")}
    assert script("results/gpu.sh", "certify", **settings).returncode == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def random_file(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.randbytes(size))  # which no archive makes smaller


def test_an_archive_that_would_be_too_large_leaves_weights_out(script, stub, tmp_path):
    output = tmp_path / "out"
    for name in ("head/checkpoint.pt", "data/shard-00000.jsonl", "head/head.safetensors"):
        random_file(output / name, 1_200_000)
    (output / "head" / "head.json").write_text("{}")
    settings = {"PYTHON": stub, "OUTPUT": str(output), "PACK_MIB": "1"}
    done = script("results/gpu.sh", "certify", **settings, PACK=str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "kept").iterdir()
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert {"./head/head.json", "./summary.tsv", "./certify.log"} <= set(names)
    assert not any(name.endswith((".safetensors", ".pt")) for name in names)


def test_an_archive_that_cannot_be_small_enough_is_a_failure(script, stub, tmp_path):
    """The earlier archive stays; a later one that fits mends it."""
    kept = tmp_path / "kept"
    large = tmp_path / "out" / "record.jsonl"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "PACK": str(kept), "PACK_MIB": "1"}
    assert script("results/gpu.sh", "certify", **settings).returncode == 0
    (archive,) = kept.iterdir()
    before = archive.read_bytes()
    random_file(large, 1_200_000)
    done = script("results/gpu.sh", "machine", **settings)
    assert done.returncode == 1
    assert "out is not packed" in done.stderr
    assert list(kept.iterdir()) == [archive]
    assert archive.read_bytes() == before
    large.unlink()
    assert script("results/gpu.sh", "machine", **settings).returncode == 0
    assert archive.read_bytes() != before


def test_pieces_of_a_larger_archive_do_not_stay(script, stub, tmp_path):
    kept = tmp_path / "kept"
    large = tmp_path / "out" / "record.jsonl"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "PACK": str(kept)}
    random_file(large, 17 << 20)
    script("results/gpu.sh", "certify", **settings)
    assert {path.name for path in kept.iterdir()} == {"gpu.tgz.part-aa", "gpu.tgz.part-ab"}
    large.unlink()
    script("results/gpu.sh", "machine", **settings)
    assert {path.name for path in kept.iterdir()} == {"gpu.tgz.part-aa"}


def test_a_kill_while_an_archive_is_written_leaves_the_earlier_one(script, stub, tmp_path):
    """The pieces are cut by a `split` that kills the script halfway."""
    kept = tmp_path / "kept"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "PACK": str(kept)}
    script("results/gpu.sh", "certify", **settings)
    before = (kept / "gpu.tgz.part-aa").read_bytes()
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "split").write_text('#!/usr/bin/env bash\necho torn > "$4"aa\nkill -9 $PPID\n')
    (bin / "split").chmod(0o755)
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    assert script("results/gpu.sh", "machine", **settings, PATH=path).returncode == -9
    assert (kept / "gpu.tgz.part-aa").read_bytes() == before
    settings |= {"FROM": str(kept), "OUTPUT": str(tmp_path / "two")}
    assert script("results/gpu.sh", "machine", **settings).returncode == 0
    assert [path.name for path in kept.iterdir()] == ["gpu.tgz.part-aa"]
    assert summary(tmp_path / "two").keys() == {"certify", "machine"}
