"""Provenance: which software a run used."""

import subprocess
import sys

import pytest

from fspad_bench.util import machine, provenance
from fspad_bench.util.provenance import SOURCES, hash_files, source_hash


def test_machine_and_packages_are_named():
    about = provenance.provenance()
    assert about["machine"] == machine.describe()
    assert "cores" in about["machine"]
    assert {"torch", "transformers", "numpy"} <= about["packages"].keys()
    assert about["source_sha256"] == source_hash()


def test_the_source_hash_is_the_same_in_every_process():
    program = "from fspad_bench.util.provenance import source_hash; print(source_hash())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == source_hash()
    assert len(source_hash()) == 64


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "package"
    (root / "inner").mkdir(parents=True)
    (root / "a.py").write_text("one")
    (root / "inner" / "b.cpp").write_text("two")
    (root / "inner" / "c.hpp").write_text("header")
    (root / "notes.md").write_text("three")
    return root


def digest(folder):
    return hash_files(folder, SOURCES)


def test_other_files_do_not_count(folder):
    before = digest(folder)
    (folder / "notes.md").write_text("other")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_bytes(b"bytes")
    assert digest(folder) == before


@pytest.mark.parametrize("name", ["a.py", "inner/b.cpp", "inner/c.hpp"])
def test_content_counts(folder, name):
    before = digest(folder)
    (folder / name).write_text("changed")
    assert digest(folder) != before


def test_names_count(folder):
    before = digest(folder)
    (folder / "a.py").rename(folder / "c.py")
    assert digest(folder) != before


def test_a_new_file_counts_even_if_empty(folder):
    before = digest(folder)
    (folder / "inner" / "new.py").write_text("")
    assert digest(folder) != before


def test_content_cannot_move_between_files(folder):
    before = digest(folder)
    (folder / "a.py").write_text("onet")
    (folder / "inner" / "b.cpp").write_text("wo")
    assert digest(folder) != before
