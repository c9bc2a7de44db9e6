"""Exclusive use of an output folder by one process.

The lock is a file in the folder, `LOCK`, next to `OWNER`, which says who holds it. Neither counts
as content of the folder, and a folder that holds nothing else at the end is removed if it was
created here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from fspad_bench.util import locks
from fspad_bench.util.errors import BenchError

LOCK = ".lock"
OWNER = ".lock-owner"  # its own file, because filelock truncates the lock file


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create the folder where it is missing and hold its lock.

    Raise BenchError at once where another process holds it, or the folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"{folder} is a file", "give --output the name of a folder")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locks.hold(folder / LOCK)
    except Timeout as error:
        raise BenchError(
            f"{folder} is in use by {_owner(folder)}",
            "wait until it has ended, or give another --output",
        ) from error
    except OSError as error:
        raise BenchError(
            f"cannot write to {folder}: {error.strerror}", "give another --output"
        ) from error
    try:
        with suppress(OSError):  # only a message needs it
            (folder / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        if lock:
            locks.drop(lock)
        if is_new:
            with suppress(OSError):  # it has content now
                folder.rmdir()


def has_content(folder: Path) -> bool:
    """Whether the folder holds anything but the lock."""
    return any(path.name not in (LOCK, OWNER) for path in folder.iterdir())


def _owner(folder: Path) -> str:
    try:
        return (folder / OWNER).read_text(encoding="utf-8") or "another process"
    except (OSError, ValueError):
        return "another process"
