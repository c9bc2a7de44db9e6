"""The report file: the answers of a batch are on disk before the next batch is asked for.

- A question that the file already answers is not asked again: the same command resumes, and what
  was measured is kept when a server dies. All verdicts are functions of the file's answers.
- The first line holds the plan and what is known of the servers; another is refused where the file
  holds answers. A torn last line is dropped. A complete file is kept under another name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fspad_bench.benchmark.record_lines import lines
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.util import locks
from fspad_bench.util.errors import BenchError
from fspad_bench.util.plain import plain
from fspad_bench.util.terminal import note

KIND = "served"
ANSWERS = "answers"
END = "end"


class Ledger:
    """Answers by what was asked; in memory alone without a path."""

    def __init__(self, path: Path | None, plan: dict[str, Any]) -> None:
        self.path = path
        self.known: dict[str, list[Observation]] = {}
        self.lock: FileLock | None = None
        if path is not None:
            self._open(path, json.loads(json.dumps(plan, default=plain)))

    def answers(self, name: str, ask: Callable[[], Sequence[Observation]]) -> list[Observation]:
        """Return the answers to a question, asking it if the file does not hold them."""
        if name not in self.known:
            answers = list(ask())
            self.known[name] = answers
            content = [answer.as_json() for answer in answers]
            self.write({"kind": ANSWERS, "name": name, "answers": content})
        return self.known[name]

    def write(self, content: dict[str, Any]) -> None:
        """Append a line, whole and on disk."""
        if self.path is None:
            return
        text = json.dumps(content, default=plain) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BenchError(
                f"cannot write {self.path}: {error.strerror}",
                "free some space there, then give the same command again: it resumes",
            ) from error

    def close(self) -> None:
        if self.lock:
            locks.drop(self.lock)
            self.lock = None

    def _open(self, path: Path, plan: dict[str, Any]) -> None:
        header = {"kind": KIND, **plan}
        self._hold(path)
        try:
            if path.exists() and path.stat().st_size:
                self._read(path, header)
            else:
                self.write(header)
        except BaseException:
            self.close()
            raise

    def _hold(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.lock = locks.hold(Path(f"{path}.lock"))
        except Timeout as error:
            raise BenchError(
                f"another certification is writing {path}", "wait for it, or give another --output"
            ) from error
        except OSError as error:
            raise _unwritable(path, error) from error

    def _read(self, path: Path, header: dict[str, Any]) -> None:
        held = list(lines(path))
        if held[0]["kind"] != KIND if held else not _is_torn_header(path):
            raise BenchError(f"{path} is of no certification", "give another --output")
        if held and held[-1]["kind"] == END:
            self._put_aside(path)
            self.write(header)
        elif not any(line["kind"] == ANSWERS for line in held):
            _cut(path, 0)  # nothing is lost, and what was asked may have been mended since
            self.write(header)
        elif held[0] != header:
            raise BenchError(
                f"{path} is of another plan, or of other servers",
                "give this one another --output, or move the file away",
            )
        else:
            _cut(path, path.read_bytes().rfind(b"\n") + 1)
            self._take(path, held)

    def _put_aside(self, path: Path) -> None:
        old = _free_name(path)
        try:
            path.rename(old)
        except OSError as error:
            raise _unwritable(path, error) from error
        note(f"{path} was complete, and is now {old}")

    def _take(self, path: Path, held: Sequence[dict[str, Any]]) -> None:
        """Keep the answers of a file's lines."""
        for number, line in enumerate(held, start=1):
            if line["kind"] != ANSWERS:
                continue
            try:
                self.known[line["name"]] = list(map(Observation.read, line["answers"]))
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise BenchError(
                    f"{path}:{number}: not answers of a certification",
                    "restore the file, or give another --output",
                ) from error


def _is_torn_header(path: Path) -> bool:
    """Whether a file without a whole line is the beginning of a report."""
    begins = json.dumps({"kind": KIND}).removesuffix("}").encode()
    return path.read_bytes()[: len(begins)] == begins


def _cut(path: Path, size: int) -> None:
    try:
        os.truncate(path, size)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> BenchError:
    return BenchError(f"cannot write {path}: {error.strerror}", "give another --output")


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in count(1))
    return next(name for name in names if not name.exists())
