"""Locate the package's data and the user's cache, and write files atomically.

The package's data (task cards, baselines and their heads) are top-level folders in a checkout and
an editable install; in a wheel they are `fspad_bench/data/...`.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from fspad_bench.errors import BenchError

PACKAGE = Path(__file__).parent.parent


def data_folder(name: str) -> Path:
    """Return the folder `tasks` or `baselines` of this installation."""
    for folder in (PACKAGE / "data" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise BenchError(f"the package's data folder '{name}' is missing", "install fspad-bench again")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content as a whole.

    A process killed meanwhile leaves the old content; of several writers the last one wins.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        with temporary.open("x", encoding="utf-8") as file:  # its permissions honour the umask
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def cache_home() -> Path:
    """Return the folder of converted targets, features, costs and compiled code.

    It is FSPAD_BENCH_CACHE if that is set, else in the platform's cache folder.
    """
    if override := os.environ.get("FSPAD_BENCH_CACHE"):
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fspad-bench")
