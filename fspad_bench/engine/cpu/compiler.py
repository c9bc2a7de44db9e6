"""Compile `native.cpp` and its headers for this machine, once, into the user's cache, and load it.

- The name of the library is a hash of all that decides it: all C++ files of this folder, compiler,
  flags, processor.
- A library ends with the hash of its name and content, which a loader does not read: one that is
  cut, damaged or another's is compiled anew.
- A library is code: the folder it is loaded from must belong to this user and be writable by nobody
  else.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from fspad_bench.util.paths import cache_home
from fspad_bench.util.provenance import hash_files

SOURCE = Path(__file__).with_name("native.cpp")  # includes the headers beside it
SUFFIXES = (".cpp", ".hpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)
LINKED = ("-fopenmp", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-psabi")
FUNCTIONS = ("pack", "product", "add_norm", "gated", "tail", "attend", "layer", "leading")
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def built(*options: str, anew: bool = False) -> Path:
    """Return the shared library for this processor and compiler, compiled on first use.

    `anew` compiles it in any case, such as where it cannot be loaded.
    Raises OSError or SubprocessError where there is no compiler, no safe folder, or the compiler
    fails.
    """
    compiler = _compiler()
    command = [*compiler, *FLAGS, *options, str(SOURCE), *_openmp(), *LINKED]
    version = _output([*compiler, "--version"], timeout=60)
    sources = hash_files(SOURCE.parent, SUFFIXES)
    key = "\n".join([version, _processor(), *command[1:], sources])
    folder = cache_home() / "native"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(folder)
    if anew or not _is_whole(path):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            library = Path(scratch) / path.name
            _output([*command, "-o", str(library)], timeout=300)
            _seal(library)
            library.chmod(0o700)  # a linker leaves it writable for the group where the umask does
            os.replace(library, path)
    check_private(path)
    return path


def _output(command: list[str], timeout: float) -> str:
    """Run a command and return what it prints, in whatever encoding."""
    return subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace", timeout=timeout
    ).stdout


def _seal(library: Path) -> None:
    """Append the hash of a library's name and content."""
    digest = _digest(library.name, library.read_bytes())
    with library.open("ab") as file:
        file.write(digest)


def _is_whole(library: Path) -> bool:
    """Whether a library exists and is as it was compiled."""
    if not library.is_file():
        return False
    content = library.read_bytes()
    size = hashlib.sha256().digest_size
    return _digest(library.name, content[:-size]) == content[-size:]


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def check_private(path: Path) -> None:
    """Raise PermissionError unless this user owns the path and no other may write it."""
    if not hasattr(os, "getuid"):
        return
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & OTHERS_MAY_WRITE:
        raise PermissionError(
            f"{path} can be written by other users: set FSPAD_BENCH_CACHE to a folder of your own, "
            f"or `chmod -R go-w` it"
        )


def loaded(path: Path) -> ctypes.CDLL:
    """Load the library and declare its functions."""
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    number = ctypes.c_long
    dtype = ctypes.c_int
    last: list[Any] = [ctypes.c_float, ctypes.c_int]
    library.fspad_pack.argtypes = [dtype, pointer, pointer, number, number]
    library.fspad_product.argtypes = [dtype, *[pointer] * 4, number, number, number, ctypes.c_int]
    norm: list[Any] = [ctypes.c_float, *last]
    library.fspad_add_norm.argtypes = [dtype, *[pointer] * 4, number, number, *norm]
    library.fspad_gated.argtypes = [dtype, pointer, pointer, number, number, *[ctypes.c_int] * 2]
    library.fspad_tail.argtypes = [dtype, *[pointer] * 5, number, *norm]
    library.fspad_attend.argtypes = [dtype, *[pointer] * 10, *last]
    library.fspad_layer.argtypes = [dtype, *[pointer] * 11, ctypes.c_float, *last]
    word = ctypes.c_uint32
    library.fspad_leading.argtypes = [
        pointer, pointer, *[number] * 3, pointer, pointer, word, word, *last,
    ]  # fmt: skip
    for name in FUNCTIONS:
        getattr(library, f"fspad_{name}").restype = None
    return library


def _compiler() -> list[str]:
    """Return the command of the compiler; CXX may hold arguments."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise FileNotFoundError(f"CXX is no command: {error}") from error
    if named:
        return named
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise FileNotFoundError(f"no C++ compiler ({', '.join(COMPILERS)}, or CXX) is installed")


def _openmp() -> list[str]:
    """Return torch's own OpenMP, to link before any other.

    Two pools of threads would spin against each other.
    """
    return [str(path) for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))]


def _processor() -> str:
    """Return what `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    features = (line for line in lines if line.startswith(("flags", "Features")))
    return next(features, platform.processor())
