"""Locks of records: one writer at a time, on any file system."""

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from by_hand import SAMPLE, written_record

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.util import locks
from fspad_bench.util.errors import BenchError


def test_a_record_has_one_writer_at_a_time(path):
    RecordFile(path, {}).end()  # its lock goes with the object
    first = RecordFile.reopen(path)
    with pytest.raises(BenchError, match=f"another run is writing {path}") as caught:
        RecordFile.reopen(path)
    assert "--output" in caught.value.hint
    first.release()
    RecordFile.reopen(path).add(SAMPLE)


def test_a_new_record_is_held_from_its_first_line_on(path):
    written = written_record(path)
    with pytest.raises(BenchError, match="another run is writing"):
        RecordFile.reopen(path)
    written.release()
    RecordFile.reopen(path)


def test_another_process_cannot_write_a_record(path):
    written = written_record(path)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fspad_bench.benchmark.record_file import RecordFile\n"
        "RecordFile.reopen(Path(sys.argv[1]))\n"
    )
    words = [sys.executable, "-c", program, str(path)]
    assert "another run is writing" in subprocess.run(words, capture_output=True, text=True).stderr
    written.release()
    assert subprocess.run(words).returncode == 0


def test_the_lock_file_is_no_record_and_goes_with_the_run(path):
    written = written_record(path)
    assert list(path.parent.rglob("*.jsonl")) == [path]
    written.release()
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_file_of_a_crashed_run_is_no_obstacle(path):
    written_record(path).release()
    Path(f"{path}.lock").write_text("")
    RecordFile.reopen(path).add(SAMPLE)


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "no")])
def test_a_file_system_without_locks_works(path, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(locks.FileLock, "acquire", fail)
    written_record(path, SAMPLE).release()
    RecordFile.reopen(path).add(replace(SAMPLE, sample="two"))
    assert [s.sample for s in Records.read(path).samples] == ["one", "two"]


def test_a_lock_that_may_not_be_taken_is_one_clear_error(path, monkeypatch):
    written_record(path, SAMPLE).release()

    def fail(self):
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(locks.FileLock, "acquire", fail)
    with pytest.raises(BenchError, match=f"cannot write {path}: not yours") as caught:
        RecordFile.reopen(path)
    assert "--output" in caught.value.hint
