"""Whether a model folder that this package wrote is still whole.

- Every file must be readable: JSON must be JSON, weights as long as they say, nothing empty. Texts
  may have been edited.
- Weights must be those that were written. Their size and hash stand in a file of the folder that is
  no part of the model; they are hashed again only where size or time have changed.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from fspad_bench.util.paths import write_atomically
from fspad_bench.util.text import json_value

CONTENTS = ".contents"
NEEDED = ("config.json", "tokenizer.json", "model.safetensors")

Entry = tuple[int, int, str]
"""Size, modification time in ns, sha256."""


def remember(folder: Path) -> None:
    """Write down which weights the folder holds, unless it cannot be written to."""
    entries = {path.name: _entry(path) for path in folder.glob("*.safetensors")}
    with suppress(OSError):
        write_atomically(folder / CONTENTS, json.dumps(entries, indent=2) + "\n")


def damaged(folder: Path, *, thorough: bool = False) -> str:
    """Return the name of a file that is damaged or missing, or nothing.

    `thorough`: hash the weights, whatever their time says.
    """
    for name in _names(folder):
        if not _is_readable(folder / name):
            return name
    known = _known(folder)
    if not known:  # converted by an earlier version
        remember(folder)
    for name, entry in known.items():
        if not _is_unchanged(folder / name, entry, thorough=thorough):
            return name
    return ""


def _is_unchanged(path: Path, known: Entry, *, thorough: bool) -> bool:
    if not path.is_file() or path.stat().st_size != known[0]:
        return False
    if not thorough and path.stat().st_mtime_ns == known[1]:
        return True
    return _sha256(path) == known[2]


def _is_readable(path: Path) -> bool:
    """Whether a file can be read whole: JSON is JSON, and weights are as long as they say."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".json":
            json_value(path.read_bytes())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                pass
        return path.stat().st_size > 0
    except (OSError, ValueError, SafetensorError):
        return False


def _known(folder: Path) -> dict[str, Entry]:
    try:
        entries = json_value((folder / CONTENTS).read_bytes())
        return {str(name): _read(entry) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _read(entry: Any) -> Entry:
    size, time, digest = entry
    return int(size), int(time), str(digest)


def _entry(path: Path) -> Entry:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    files = {path.name for path in folder.iterdir() if path.is_file()}
    return sorted({*NEEDED, *files} - {CONTENTS})
