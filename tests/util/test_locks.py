"""Lock files: exclusive, removed before they are free, and no obstacle where they cannot be had."""

import errno

import pytest
from filelock import Timeout

from fspad_bench.distill.lock import exclusive
from fspad_bench.util import locks
from fspad_bench.util.errors import BenchError


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path):
    first = locks.hold(tmp_path / "lock")
    with pytest.raises(Timeout):
        locks.hold(tmp_path / "lock")
    locks.drop(first)
    assert list(tmp_path.iterdir()) == []
    locks.drop(locks.hold(tmp_path / "lock"))


def test_the_file_goes_before_the_lock_is_free(tmp_path, monkeypatch):
    """The next holder's file would go otherwise, and a third process could hold a new one."""
    path = tmp_path / "lock"
    lock = locks.hold(path)
    there = []
    release = lock.release
    monkeypatch.setattr(lock, "release", lambda: (there.append(path.exists()), release()))
    locks.drop(lock)
    assert there == [False]


@pytest.mark.parametrize(
    "error",
    [NotImplementedError("no flock")] + [OSError(code, "no") for code in locks.WITHOUT_LOCKS],
)
def test_a_file_system_without_locks_does_not_stop_work(tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(locks.FileLock, "acquire", fail)
    assert locks.hold(tmp_path / "lock") is None
    with exclusive(tmp_path / "folder"):
        (tmp_path / "folder" / "data").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["data"]


def test_other_errors_are_errors(tmp_path, monkeypatch):
    def fail(self):
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(locks.FileLock, "acquire", fail)
    with pytest.raises(PermissionError):
        locks.hold(tmp_path / "lock")


def test_an_owner_that_cannot_be_written_or_removed_ends_no_work(tmp_path):
    (tmp_path / ".lock-owner").mkdir()
    with exclusive(tmp_path):
        pass
    with exclusive(tmp_path):  # the lock was given up
        pass


def test_a_lock_that_is_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(BenchError, match="Is a directory"), exclusive(tmp_path):
        pass


def test_a_lock_left_by_a_killed_process_is_taken(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".lock-owner").write_text("process 1 on elsewhere")
    with exclusive(tmp_path):
        assert (tmp_path / ".lock-owner").read_text().startswith("process ")
    assert not list(tmp_path.iterdir())
