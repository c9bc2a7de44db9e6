"""Where the package's data lie: the task cards, the baselines and their heads; and files written whole or not at all.

In a checkout and an editable install they are top-level folders; in a wheel they ship as `fspad_bench/data/...`.
"""

from __future__ import annotations

import os
from pathlib import Path

from fspad_bench.errors import BenchError

PACKAGE = Path(__file__).parent.parent


def data_folder(name: str) -> Path:
    """The folder `tasks` or `baselines`, wherever this installation keeps it."""
    for folder in (PACKAGE / "data" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise BenchError(f"the package's data folder '{name}' is missing", "install fspad-bench again")


def write_whole(path: Path, text: str) -> None:
    """Replace a file by its new content; whoever is killed meanwhile leaves the old one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def cache_home() -> Path:
    """Return the folder of converted targets, features, costs and compiled code.

    FSPAD_BENCH_CACHE names it; elsewhere it is the platform's cache folder.
    """
    if override := os.environ.get("FSPAD_BENCH_CACHE"):
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fspad-bench")
