"""Scripts of the checkout, run in a folder of the test, with an interpreter that is a stub."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from parts import SMALL

CHECKOUT = Path(__file__).parents[2]
# Stands for the interpreter: a verb prints a line and does what the variable STUB_<verb> says.
STUB = f"""#!/usr/bin/env bash
if [ "$1" != -m ] || [ "$2" = pip ]; then exec {sys.executable} "$@"; fi
shift
name=$2
if [ "$1" = pytest ]; then name=pytest; fi
echo "$*" >> "$CALLS"
echo "report of $name"
action=STUB_$name
eval "${{!action:-true}}"
"""


@pytest.fixture
def start_script(tmp_path):
    """`start_script(path, *words, **environment)` starts a script of the checkout in `tmp_path`."""
    started = []

    def start_script(path, *words, **changes):
        environment = os.environ | {
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "FSPAD_BENCH_CACHE": str(tmp_path / "cache"),
            "CALLS": str(tmp_path / "calls"),
            **SMALL,
            **changes,
        }
        # not as a background command or under nohup, which ignore signals
        command = [
            "env",
            "--default-signal=INT,HUP",
            "bash",
            str(CHECKOUT / path),
            *map(str, words),
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes))
        return started[-1]

    yield start_script
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def script(start_script):
    """`script(path, *words, **environment)` runs such a script to its end."""

    def script(path, *words, **changes):
        process = start_script(path, *words, **changes)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return script


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "stub-python"
    path.write_text(STUB)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def port():
    """Return the first of five free ports, below those that a system hands out by itself."""
    own = 20_000 + os.getpid() % 1000 * 10
    return next(str(first) for first in range(own, 32_000, 10) if are_free(first))


def are_free(first):
    try:
        with ExitStack() as stack:
            for port in range(first, first + 5):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
    except OSError:
        return False
    return True
