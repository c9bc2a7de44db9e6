"""Locate the package's data and the user's cache, and write files atomically.

The package's data (task cards, baselines and their heads) are top-level folders in a checkout and
an editable install; in a wheel they are `fspad_bench/data/...`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fspad_bench.util.errors import BenchError

PACKAGE = Path(__file__).parent.parent


def data_folder(name: str) -> Path:
    """Return the folder `tasks` or `baselines` of this installation."""
    for folder in (PACKAGE / "data" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise BenchError(f"the package's data folder '{name}' is missing", "install fspad-bench again")


def user_path(text: str | Path) -> Path:
    """Return a path as a user gives it, `~` read as the home folder.

    An unknown user's `~name` stays as it is, a folder that does not exist; `Path.expanduser` would
    raise.
    """
    return Path(os.path.expanduser(text))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path`, which takes the place of `path` at the end.

    A process killed meanwhile leaves the old content; of several writers the last one wins. An
    OSError names `path`.
    """
    temporary = path.with_name(f"{path.name}.{os.urandom(16).hex()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def disk_errors(place: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a full or read-only disk raises into a BenchError that names `place`.

    `kinds` are the exceptions, besides OSError, by which a library says that it cannot write.
    """
    caught: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except caught as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchError(
            f"cannot write to {place}: {reason}", "free some space there, or give another folder"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content as a whole."""
    # "x": its permissions honour the umask
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        file.write(text)


def cache_home() -> Path:
    """Return the folder of converted targets, features, costs and compiled code.

    It is FSPAD_BENCH_CACHE if that is set, else in the platform's cache folder.
    """
    if override := os.environ.get("FSPAD_BENCH_CACHE"):
        return user_path(override)
    from platformdirs import user_cache_path

    return user_cache_path("fspad-bench")
