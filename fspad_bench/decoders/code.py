"""The code of a decoder from outside this package: the file of its class, and the helper modules
that it imports from its own folder or package.

- Imports are read from the source, those inside functions too, and followed from file to file.
- Installed packages other than the decoder's own are not its code.
- What cannot be read (built at run time, compiled) has no hash.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fspad_bench.util.paths import PACKAGE
from fspad_bench.util.provenance import is_of_package

PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
INSTALLED = tuple(Path(sysconfig.get_paths()[name]).resolve() for name in PLACES)


def code_hashes(decoder: type) -> dict[str, str]:
    """Return `code_sha256` of the decoder's file and, where there are any, `helpers_sha256`.

    Nothing for a decoder of this package, whose source has a hash of its own.
    """
    if is_of_package(decoder):
        return {}
    module = str(getattr(decoder, "__module__", ""))
    try:
        path = Path(inspect.getsourcefile(decoder) or "").resolve()
        hashes = {"code_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except (TypeError, OSError):
        return {}
    helpers = _helpers(path, module)
    if helpers:
        hashes["helpers_sha256"] = _hash(helpers)
    return hashes


def _hash(helpers: dict[str, Path]) -> str:
    """Return the sha256 over the names and contents of helper modules, sorted by name."""
    total = hashlib.sha256()
    for name in sorted(helpers):
        content = hashlib.sha256(helpers[name].read_bytes()).hexdigest()
        total.update(f"{name} {content}\n".encode())
    return total.hexdigest()


def _helpers(path: Path, module: str) -> dict[str, Path]:
    """Return the modules that a module imports from where it lies, directly or not, by name."""
    depth = module.count(".") + (path.stem == "__init__")
    root = path.parents[min(depth, len(path.parents) - 1)]
    top = module.partition(".")[0]
    found: dict[str, Path] = {}
    waiting = [(module, path)]
    while waiting:
        name, file = waiting.pop()
        for wanted in _imported(name, file):
            helper = _file_of(root, wanted)
            is_own = wanted.partition(".")[0] == top or root not in INSTALLED
            if helper is None or helper == path or wanted in found or not is_own:
                continue
            found[wanted] = helper
            waiting.append((wanted, helper))
    return found


def _imported(module: str, file: Path) -> Iterator[str]:
    """Yield the full names that a file imports, and those of the packages they lie in."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(package, node)
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _base(package: str, node: ast.ImportFrom) -> str:
    """Return the full name of the module that `from ... import` names."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    above = parts[: len(parts) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])


def _file_of(root: Path, module: str) -> Path | None:
    """Return the source file of a module below `root`, None where there is none of ours to see."""
    place = root.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if module and path.is_file() and PACKAGE not in path.parents:
            return path
    return None
