"""Files that a decoder opened without declaring them.

- Declared are the files and folders that its options and settings name. What Python, this package
  and their caches read belongs to them; code is part of a row's key by other means.
- Python reports every `open` of its own to an audit hook. A file that compiled code opens by itself
  is not seen: safetensors' and torch's own readers, for one.
- The hook runs for audit events only, which decoding does not raise, so an honest decoder pays
  nothing on the clock.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fspad_bench.util.paths import PACKAGE, cache_home, data_folder

CODE = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", ".pth")
INSTALLED = ("site-packages", "dist-packages")
SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr")
MOST = 1000  # files that are kept of one turn
MOST_NAMED = 3  # files that a row names


class _Hook:
    """The one audit hook of this process, which cannot be taken away: it reports to `opened`."""

    installed = False
    opened: list[str] | None = None

    @classmethod
    def install(cls) -> None:
        if not cls.installed:
            sys.addaudithook(cls.event)
            cls.installed = True

    @classmethod
    def event(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and cls.opened is not None and len(cls.opened) < MOST:
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                cls.opened.append(os.fsdecode(path))


class FilesGuard:
    """Collects what is opened between `begin` and `end`, and tells what was not declared."""

    def __init__(self) -> None:
        _Hook.install()
        self.allowed = _own_folders()

    def begin(self) -> None:
        _Hook.opened = []

    def end(self, declared: Callable[[], Iterable[Any]]) -> list[str]:
        """Return the files opened since `begin` outside of the `declared` ones, sorted."""
        opened = _Hook.opened or []
        _Hook.opened = None
        if not opened:
            return []
        allowed = [*self.allowed, *_existing(declared())]
        return sorted({path for path in map(_resolved, opened) if not _is_known(path, allowed)})


def opened_files(files: Iterable[str]) -> str:
    """Return in words that a decoder opened these files."""
    names = sorted(files)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"it opened files that it does not declare: {', '.join(names[:MOST_NAMED])}{more}"


def _own_folders() -> list[str]:
    """Return the folders that Python, this package, its data and its caches live in."""
    folders = [*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, *SYSTEM]
    folders += map(str, (PACKAGE, data_folder("baselines"), cache_home()))
    folders += [folder for folder in sys.path if Path(folder).name in INSTALLED]
    folders += [os.environ.get("HF_HOME") or "~/.cache/huggingface", "~/.triton"]
    return [_resolved(folder) for folder in folders]


def _existing(values: Iterable[Any]) -> list[str]:
    """Return the texts among option values that name a file or folder."""
    paths = [value for value in values if isinstance(value, str | Path) and value]
    return [_resolved(path) for path in paths if os.path.exists(os.path.expanduser(path))]


def _resolved(path: str | Path) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _is_known(path: str, allowed: Iterable[str]) -> bool:
    if path.endswith(CODE) or os.path.isdir(path):
        return True
    return any(path == folder or path.startswith(f"{folder}{os.sep}") for folder in allowed)
