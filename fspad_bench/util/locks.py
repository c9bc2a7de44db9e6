"""Lock files: one process at a time, and no file left behind."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def hold(path: Path) -> FileLock | None:
    """Take the lock at once and return it; None on a file system without locks.

    Raises filelock.Timeout where another process holds it, OSError where the file cannot be made.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except NotImplementedError:
        return None
    except OSError as error:
        if isinstance(error, TimeoutError) or error.errno not in WITHOUT_LOCKS:
            raise
        return None
    return lock


def drop(lock: FileLock) -> None:
    """Give up the lock and remove its file.

    The file goes first: whoever takes the lock afterwards would lose a file that is theirs.
    """
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()
