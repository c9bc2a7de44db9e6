"""Writing a record: append-only JSON lines, each on disk before the next generation starts."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fspad_bench.benchmark.record import SCHEMA, Audit, Finding, Key, Pit, Records, Sample, Score
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.util import locks
from fspad_bench.util.errors import BenchError
from fspad_bench.util.plain import plain

Header = dict[str, Any]


def header_of(path: Path) -> Header:
    """Return the first line of a record, and nothing for any other file."""
    try:
        return next(lines(path), {})
    except BenchError:
        return {}


def is_complete(path: Path) -> bool:
    """Return whether a record is known to be complete; one that cannot be read here is not."""
    try:
        return Records.read(path).complete
    except BenchError:
        return False


class RecordFile:
    """A record being written. Every append is a whole line, on disk before the next generation
    starts.

    With a `header` the record is new, and its file appears with the first line: a plan that fails
    to load leaves nothing behind. One process at a time may write a record, which it holds by a
    lock file beside it.
    """

    def __init__(self, path: Path, header: Header | None = None) -> None:
        self.path = path.absolute()  # a decoder may change the working directory
        self.header = header
        self.lock: FileLock | None = None
        self.known: set[str] = set()
        self.size = 0  # of what this object has read or written

    @classmethod
    def reopen(cls, path: Path) -> RecordFile:
        """Continue an interrupted record, dropping a torn last line."""
        record = cls(path)
        record.hold()
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        record.known = set(Records.read(path).keys)
        record.size = whole
        return record

    def hold(self) -> None:
        """Keep other processes from writing the record.

        Raises BenchError where one is writing it, or it cannot be written.
        """
        try:
            self.lock = locks.hold(Path(f"{self.path}.lock"))
        except Timeout as error:
            raise BenchError(
                f"another run is writing {self.path}",
                "wait for it, or give this one another --output",
            ) from error
        except OSError as error:
            raise BenchError(
                f"cannot write {self.path}: {error.strerror}", "give another --output"
            ) from error

    def release(self) -> None:
        """Let other processes write the record."""
        if self.lock:
            locks.drop(self.lock)
            self.lock = None

    def key(self, key: Key) -> str:
        """Return the key's hash; write its fields the first time."""
        if key.hash not in self.known:
            self.line({"kind": "key", "key": key.hash, **asdict(key)})
            self.known.add(key.hash)
        return key.hash

    def add(self, entry: Sample | Audit | Score | Pit | Finding, kind: str = "") -> None:
        """Append an entry; its empty fields are left out where reading fills them in again.

        `kind` is that of the line, where it is not the entry's own.
        """
        needed = {f.name for f in fields(entry) if f.default is f.default_factory is MISSING}
        content = {
            name: value
            for name, value in asdict(entry).items()
            if name in needed or value not in ("", None)
        }
        self.line({"kind": kind or type(entry).__name__.lower(), **content})

    def costs(self, decoder: str, seconds: dict[str, Any], origin: str = "") -> None:
        """Write the costs by which a decoder sizes its trees; `origin` hashes what they are of."""
        self.line({"kind": "costs", "decoder": decoder, "origin": origin, "seconds": seconds})

    def end(self) -> None:
        self.line({"kind": "end", "status": "complete"})

    def line(self, content: dict[str, Any]) -> None:
        """Append a line, after the header if that is not written yet."""
        if self.header is not None:
            header = self.header
            self.header = None
            self._make_folder()
            self.hold()
            self._append({"kind": "run", "schema": SCHEMA, **header})
        self._append(content)

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _append(self, content: dict[str, Any]) -> None:
        """Append a whole line or nothing, also where Ctrl-C comes in between."""
        text = json.dumps(content, ensure_ascii=False, default=plain)
        line = text.encode(errors="replace") + b"\n"
        self._check_size()
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            self._cut_back()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        self.size += len(line)

    def _check_size(self) -> None:
        """Raise BenchError where the file is not what this object has written: a line at its end
        would belong to no record.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.size:
            raise BenchError(
                f"{self.path} was removed or changed while this run was writing it",
                "restore it, or give the same command again: what it lacks is measured again",
            )

    def _cut_back(self) -> None:
        """Drop a line that is not whole, and a file that has no other."""
        with suppress(OSError):
            if self.size:
                os.truncate(self.path, self.size)
            else:
                self.path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> BenchError:
        return BenchError(
            f"cannot write {self.path}: {error.strerror}",
            "free some space there, then give the same command again: it continues the run",
        )
