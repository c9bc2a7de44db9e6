"""The library is compiled once, by any compiler, into a folder that no other user may write."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

import pytest

from fspad_bench.engine.cpu import compiler

SCRIPT = """#!/bin/sh
for argument in "$@"; do
    if [ "$argument" = --version ]; then echo "fake 1"; exit; fi
done
echo "$@" >> "$LOG"
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then echo library > "$2"; chmod +x "$2"; fi
    shift
done
"""


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def calls(home, monkeypatch, tmp_path):
    """Stand a script in for the compiler; return a function that reads its command lines."""
    script = tmp_path / "a compiler"
    script.write_text(SCRIPT)
    script.chmod(0o700)
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setenv("CXX", f"'{script}'")
    return lambda: log.read_text().splitlines()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_library_is_compiled_once(calls, home):
    path = compiler.built()
    assert path.parent == home / "native"
    assert compiler.built() == path
    assert len(calls()) == 1
    assert list(path.parent.iterdir()) == [path]
    assert str(compiler.SOURCE) in calls()[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"x" + content[1:],
        lambda content: content + b"x",
        lambda content: content[:-32],  # as earlier versions wrote it
    ],
    ids=["empty", "cut", "a byte short", "changed", "longer", "without its hash"],
)
def test_a_damaged_library_is_compiled_anew(calls, damage):
    path = compiler.built()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert compiler.built() == path
    assert path.read_bytes() == whole
    assert len(calls()) == 2
    assert compiler.built(anew=True) == path
    assert len(calls()) == 3


def test_a_library_of_another_name_is_compiled_anew(calls):
    path = compiler.built()
    whole = path.read_bytes()
    other = compiler.built("-mno-avx512f")
    path.write_bytes(other.read_bytes())
    assert compiler.built() == path
    assert path.read_bytes() == whole
    assert len(calls()) == 3


def test_a_command_that_no_shell_could_read_is_no_compiler(home, monkeypatch):
    monkeypatch.setenv("CXX", "'g++")
    with pytest.raises(FileNotFoundError, match="CXX is no command: No closing quotation"):
        compiler.built()


def test_other_options_flags_and_sources_are_other_libraries(calls, monkeypatch, tmp_path):
    paths = [compiler.built(), compiler.built("-mno-avx512f")]
    monkeypatch.setattr(compiler, "FLAGS", ("-O2",))
    paths.append(compiler.built())
    source = tmp_path / "native.cpp"
    source.write_text("// other")
    monkeypatch.setattr(compiler, "SOURCE", source)
    paths.append(compiler.built())
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    paths.append(compiler.built())
    assert len(set(paths)) == len(calls()) == 5


HEADERS = sorted(path.name for path in compiler.SOURCE.parent.glob("*.hpp"))


def test_the_source_includes_headers():
    texts = [path.read_text() for path in compiler.SOURCE.parent.glob("*.[ch]pp")]
    included = {name for name in HEADERS for text in texts if f'#include "{name}"' in text}
    assert HEADERS
    assert included == set(HEADERS)


@pytest.mark.parametrize("header", HEADERS)
def test_another_header_is_another_library(calls, monkeypatch, tmp_path, header):
    folder = tmp_path / "sources"
    folder.mkdir()
    for path in compiler.SOURCE.parent.glob("*.[ch]pp"):
        shutil.copy(path, folder)
    monkeypatch.setattr(compiler, "SOURCE", folder / compiler.SOURCE.name)
    before = compiler.built()
    assert compiler.built() == before
    with (folder / header).open("a") as file:
        file.write("// changed")
    assert compiler.built() != before
    assert len(calls()) == 2


def test_the_variable_may_hold_arguments(calls, monkeypatch):
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} --first '--second with a space'")
    compiler.built()
    assert calls()[0].startswith("--first --second with a space -O3")


@pytest.mark.wide
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_a_wrapped_compiler_compiles(home, monkeypatch):
    monkeypatch.setenv("CXX", "env A=1 g++")
    monkeypatch.setattr(compiler, "FLAGS", ("-std=c++17", "-O0", "-march=native"))
    library = compiler.loaded(compiler.built())
    assert all(hasattr(library, f"fspad_{name}") for name in compiler.FUNCTIONS)


def test_without_a_compiler_the_names_that_were_tried_are_named(home, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"c\+\+, g\+\+, clang\+\+, or CXX"):
        compiler.built()
    assert not home.exists()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000], ids=oct)
def test_whatever_the_umask_no_other_user_may_write(calls, umask):
    before = os.umask(umask)
    try:
        path = compiler.built()
        assert compiler.built() == path
    finally:
        os.umask(before)
    assert mode(path.parent) == 0o700
    assert not mode(path) & compiler.OTHERS_MAY_WRITE


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o777], ids=oct)
def test_a_folder_that_others_may_write_is_refused(calls, home, bits):
    folder = home / "native"
    folder.mkdir(parents=True)
    folder.chmod(bits)
    with pytest.raises(PermissionError, match="can be written by other users") as caught:
        compiler.built()
    assert "FSPAD_BENCH_CACHE" in str(caught.value)
    assert "chmod" in str(caught.value)
    assert not calls()


def test_a_library_that_others_may_write_is_refused(calls):
    path = compiler.built()
    path.chmod(0o722)
    with pytest.raises(PermissionError, match=f"{path.name} can be written"):
        compiler.built()


def test_a_folder_of_another_user_is_refused(calls, monkeypatch):
    compiler.built()
    monkeypatch.setattr(compiler.os, "getuid", lambda: os.stat(compiler.SOURCE).st_uid + 1)
    with pytest.raises(PermissionError, match="can be written by other users"):
        compiler.built()


def test_a_compiler_that_fails_leaves_nothing(calls, home, monkeypatch):
    monkeypatch.setenv("CXX", "sh -c 'case $0 in --version) echo 1;; *) exit 3;; esac'")
    with pytest.raises(subprocess.CalledProcessError):
        compiler.built()
    assert list((home / "native").iterdir()) == []
