"""The script that certifies served engines: its doubles, its ports, its faults."""

import socket
import sys

import pytest
from parts import LISTENER

pytestmark = pytest.mark.wide

# Stands for the interpreter of served.sh: a double that lists models, a certification that exits
# with the variable STUB_<its report's name>.
ENGINE = f"""#!/usr/bin/env bash
if [ "$1" = -m ] && [ "$2" = fspad_bench.serving.double ]; then
    {LISTENER} "$4"
elif [ "$1" = -m ]; then
    name=$(basename "$5" .jsonl)
    code=STUB_${{name//-/_}}
    said=${{code}}_SAYS
    echo "${{!said:-}}"
    exit "${{!code}}"
fi
exec {sys.executable} "$@"
"""


def test_served_engines_that_are_not_there_are_skipped(script, tmp_path):
    done = script("results/served.sh", "transformers", "llama", OUTPUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped, it needs") == 2
    assert (tmp_path / "out" / "summary.txt").read_text() == ""


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "engine-python"
    path.write_text(ENGINE)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("double", "fault", "says", "wrong"),
    [
        (0, 1, "FAIL", 0),
        (1, 1, "FAIL", 1),
        (2, 0, "PASS", 2),
        (0, 1, "INCONCLUSIVE", 1),
        (0, 2, "", 1),
    ],
)
def test_a_fault_that_passes_and_a_double_that_does_not_fail(
    script, engine, port, tmp_path, double, fault, says, wrong
):
    settings = {"STUB_double": str(double), "STUB_fault_filter_order": str(fault)}
    settings |= {"STUB_fault_filter_order_SAYS": says, "PYTHON": engine, "PORT": port}
    settings |= {"FAULTS": "filter-order", "OUTPUT": "out"}
    done = script("results/served.sh", "double", "faults", **settings)
    assert done.returncode == min(1, wrong), done.stderr
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert lines[0].startswith(f"double: exit code {double}")
    assert lines[1].startswith(f"fault-filter-order: exit code {fault}")
    assert sum("and not: it" in line for line in lines) == wrong


def test_another_process_on_the_port_is_not_taken_for_the_server(script, engine, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        settings = {"PYTHON": engine, "PORT": taken, "OUTPUT": "out", "STUB_double": "0"}
        done = script("results/served.sh", "double", **settings)
    assert done.returncode == 1
    assert f"port {taken} is another process's" in done.stderr
    assert (tmp_path / "out" / "summary.txt").read_text() == ""


def test_llama_that_drafts_with_its_target_says_so(script, engine, port, tmp_path):
    settings = {"PYTHON": engine, "PORT": port, "OUTPUT": "out", "MODEL": "m", "GGUF": "g"}
    settings |= {"LLAMA_SERVER": "false"}  # a server that ends at once
    done = script("results/served.sh", "llama", **settings)
    assert done.returncode == 1
    assert "the target drafts for itself" in done.stdout
    assert "no server on port" in done.stderr
    assert (
        "drafts for itself"
        not in script("results/served.sh", "llama", **settings, DRAFT="d").stdout
    )
