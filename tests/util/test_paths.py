"""Files are replaced as a whole, whoever else writes them."""

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fspad_bench.util import paths
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import cache_home, user_path, write_atomically

WRITER = """
import sys
from pathlib import Path
from fspad_bench.util.paths import write_atomically
for _ in range(200):
    write_atomically(Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


def test_content_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "file.json"
    for content in ("one", "two, ä"):
        write_atomically(path, content)
        assert path.read_text(encoding="utf-8") == content
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_writing_one_file_leave_it_whole(tmp_path):
    path = tmp_path / "file"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), word]) for word in "ab"]
    contents = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            contents.add(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    contents.add(path.read_text())
    assert contents <= {"a" * 50_000, "b" * 50_000}
    assert list(tmp_path.iterdir()) == [path]


def test_threads_writing_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda word: write_atomically(path, word * 10_000), "abcd" * 50))
    assert path.read_text() in {word * 10_000 for word in "abcd"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_permissions_are_those_of_a_normal_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_failure_leaves_the_old_content_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no"):
            write_atomically(path, "new")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_data_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    with pytest.raises(BenchError, match="data folder 'tasks' is missing"):
        paths.data_folder("tasks")


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught, paths.replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("Read-only file system\nat 0x0"),
    ],
)
def test_what_a_library_says_of_the_disk_is_one_clear_error(tmp_path, error):
    with pytest.raises(BenchError) as caught, paths.disk_errors(tmp_path, RuntimeError):
        raise error
    assert caught.value.message == f"cannot write to {tmp_path}: Read-only file system"
    assert caught.value.hint


@pytest.mark.parametrize("text", ["~nosuchuser/x", "a/~/b", "/x", ""])
def test_a_path_that_is_nobodys_home_stays_as_it_is(text):
    assert user_path(text) == Path(text)


def test_the_home_folder_is_read(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/x") == Path("/home/me/x")
    monkeypatch.setenv("FSPAD_BENCH_CACHE", "~nosuchuser/cache")
    assert cache_home() == Path("~nosuchuser/cache")
