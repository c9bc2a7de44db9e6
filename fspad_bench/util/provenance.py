"""Which software a run used: versions of packages, the commit, and a hash of this package's own
source.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fspad_bench.util import machine
from fspad_bench.util.paths import PACKAGE

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "sacrebleu",
    "triton",
)
SOURCES = (".py", ".cpp", ".hpp")
GIT_SECONDS = 5


def provenance() -> dict[str, Any]:
    """Return the machine and the software of this process, for the first line of a record.

    `commit` and `dirty` are present where the installed package is a git checkout.
    """
    return {
        "machine": machine.describe(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": dict(_packages()),
        "argv": sys.argv[1:],
        "source_sha256": source_hash(),
        **_commit(),
    }


def environment(threads: int) -> dict[str, Any]:
    """Return what decides how a forward rounds: torch, this package's source, machine, threads.

    Data sets and trainings name each environment that wrote them.
    """
    return {
        "torch": version("torch"),
        "source_sha256": source_hash(),
        "machine": machine.describe(),
        "threads": threads,
    }


def is_of_package(kind: type) -> bool:
    """Whether a class is written in this package, so that `source_hash` tells its code."""
    return str(getattr(kind, "__module__", "")).partition(".")[0] == PACKAGE.name


@cache
def source_hash() -> str:
    """Return the sha256 of this package's own source files: their names and contents, sorted by
    name.
    """
    return hash_files(PACKAGE, SOURCES)


def hash_files(folder: Path, suffixes: tuple[str, ...]) -> str:
    """Return the sha256 of every file below `folder` with one of `suffixes`, name and content.

    Lengths are part of it, so that no content can pass for the name of the next file.
    """
    digest = hashlib.sha256()
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix in suffixes and path.is_file()
    }
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{len(name)} {name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


@cache
def _packages() -> dict[str, str]:
    """Return name -> version of the packages that are installed; reading one takes 1 ms."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _commit() -> dict[str, Any]:
    """Return the commit of the checkout that holds this package, or nothing where it is none."""
    try:
        if not _git("ls-files", "--error-unmatch", __file__):
            return {}
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return {}


def _git(*words: str) -> str:
    command = ["git", "-C", str(PACKAGE), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
    return done.stdout.strip()
