"""The scripts for a lent GPU, in small on the CPU: bounded parts, kept failures, resumption."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from served import Served

from fspad_bench.benchmark import runner
from fspad_bench.profiling import timing

pytestmark = pytest.mark.wide

CHECKOUT = Path(__file__).parent.parent
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
# Stands for the interpreter of served.sh: a double that lists models, a certification that exits
# with the variable STUB_<its report's name>.
ENGINE = f"""#!/usr/bin/env bash
if [ "$1" = -m ] && [ "$2" = fspad_bench.serving.double ]; then
    exec {sys.executable} -c "
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
" "$4"
elif [ "$1" = -m ]; then
    name=$(basename "$5" .jsonl)
    code=STUB_${{name//-/_}}
    said=${{code}}_SAYS
    echo "${{!said:-}}"
    exit "${{!code}}"
fi
exec {sys.executable} "$@"
"""
TRACEBACK = "printf 'Traceback (most recent call last):\\nValueError: kept\\n' >&2; exit 1"
SMALL = {
    "DEVICE": "cpu",
    "TARGET": "tiny",
    "SHAPES": "tiny@1",
    "PREFIXES": "16",
    "NODES": "2",
    "TOKENS": "4",
    "LEAST": "1",
}


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
        # not as a background command, which ignores SIGINT
        command = ["env", "--default-signal=INT", "bash", str(CHECKOUT / path), *map(str, words)]
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


def summary(folder):
    """name -> (exit code, state) of the last line of each part."""
    lines = (folder / "summary.tsv").read_text().splitlines()
    return {
        name: (int(code), state)
        for name, code, seconds, state in (line.split("\t") for line in lines)
        if int(seconds) >= 0
    }


@pytest.mark.parametrize(
    "path",
    [
        "baselines/parts.sh",
        "baselines/heads/train.sh",
        "results/gpu.sh",
        "results/variants.sh",
        "results/trees.sh",
        "results/served.sh",
    ],
)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", str(CHECKOUT / path)], check=True)


def test_a_failing_part_stops_no_other_and_its_traceback_is_kept(script, stub, tmp_path):
    """Exit code 1 without a traceback is a finding; every other failure is repeated."""
    output = tmp_path / "out"
    settings = {"PYTHON": stub, "OUTPUT": str(output), "STUB_run": TRACEBACK}
    done = script("results/gpu.sh", **settings, STUB_pytest="exit 3", STUB_certify="exit 1")
    assert done.returncode == 1, done.stderr
    states = summary(output)
    assert states["kernels"] == (3, "failed")
    assert states["speed-tiny"] == (1, "failed")
    assert states["certify"] == (1, "finding")
    assert states["costs-tiny@1"] == (0, "done")
    assert "ValueError: kept" in (output / "speed-tiny.log").read_text()
    calls = len((tmp_path / "calls").read_text().splitlines())
    again = script("results/gpu.sh", PYTHON=stub, OUTPUT=str(output))
    assert again.returncode == 0, again.stderr
    assert {state for _, state in summary(output).values()} == {"done", "finding"}
    new = (tmp_path / "calls").read_text().splitlines()[calls:]
    assert {line.split()[1] for line in new} == {"-q", "run"}  # pytest and runs alone


def test_a_part_that_hangs_is_cut_off_and_the_budget_ends_the_call(script, stub, tmp_path):
    output = tmp_path / "out"
    settings = {"PYTHON": stub, "OUTPUT": str(output)}
    words = ["forwards-tiny@1", "certify"]
    done = script("results/gpu.sh", *words, **settings, BUDGET="3", STUB_profile="exec sleep 60")
    assert done.returncode == 1
    assert summary(output) == {"forwards-tiny@1": (124, "timeout")}
    none = script("results/gpu.sh", *words, **settings, BUDGET="0")
    assert none.returncode == 75
    done = script("results/gpu.sh", *words, **settings)
    assert done.returncode == 0, done.stderr
    assert list(summary(output)) == ["forwards-tiny@1", "certify"]
    order = [line.split("\t")[0] for line in (output / "summary.tsv").read_text().splitlines()]
    assert order == ["forwards-tiny@1", "certify", "forwards-tiny@1"]  # what failed comes last


def test_a_module_that_is_missing_is_a_failure(script, stub, tmp_path):
    """It may be there in a later call; a check that does not hold would not."""
    missing = "echo '/usr/bin/python3: No module named pytest' >&2; exit 1"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out")}
    assert script("results/gpu.sh", "kernels", **settings, STUB_pytest=missing).returncode == 1
    assert summary(tmp_path / "out") == {"kernels": (1, "failed")}
    assert script("results/gpu.sh", "kernels", **settings).returncode == 0
    assert summary(tmp_path / "out") == {"kernels": (0, "done")}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_part_and_then_the_script(start_script, stub, tmp_path, number, code):
    """The script alone gets it, as of a batch system; the part cleans up before it ends."""
    body = """
    for name in INT TERM HUP; do
        trap "sleep 0.3; echo $name > ended; kill $(jobs -p); exit 3" $name
    done
    sleep 60 &
    echo $$ > pid
    wait"""
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "STUB_certify": body}
    process = start_script("results/gpu.sh", "certify", "machine", **settings)
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    process.send_signal(number)
    assert process.wait(30) == code
    assert (tmp_path / "ended").read_text().strip() == number.name.removeprefix("SIG")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "out" / "summary.tsv").exists()


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_limit_interrupts_as_ctrl_c_does(script, stub, tmp_path):
    """Though a shell lets what it starts in the background ignore that."""
    body = f"""exec {sys.executable} -c "
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    print('interrupted')
" """
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "STUB_certify": body}
    assert script("results/gpu.sh", "certify", **settings, BUDGET="3").returncode == 1
    assert summary(tmp_path / "out") == {"certify": (124, "timeout")}
    assert "interrupted" in (tmp_path / "out" / "certify.log").read_text()


def test_done_parts_are_repeated_on_request(script, stub, tmp_path):
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out")}
    for changes in ({}, {}, {"AGAIN": "1"}):
        assert script("results/gpu.sh", "certify", **settings, **changes).returncode == 0
    assert len((tmp_path / "out" / "summary.tsv").read_text().splitlines()) == 2


def test_an_unknown_part_is_refused(script, tmp_path):
    done = script("results/gpu.sh", "kernel", OUTPUT=str(tmp_path / "out"))
    assert done.returncode == 2
    assert "no part is called kernel" in done.stderr


def test_what_is_packed_goes_on_elsewhere(script, stub, tmp_path):
    kept = tmp_path / "kept"
    settings = {"PYTHON": stub, "PACK": str(kept)}
    first = script("results/gpu.sh", "certify", OUTPUT=str(tmp_path / "one"), **settings)
    assert first.returncode == 0, first.stderr
    assert [path.name for path in kept.iterdir()] == ["gpu.tgz.part-aa"]
    settings |= {"FROM": str(kept), "OUTPUT": str(tmp_path / "two")}
    assert script("results/gpu.sh", "certify", **settings).returncode == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def random_file(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.randbytes(size))  # which no archive makes smaller


def test_an_archive_that_would_be_too_large_leaves_weights_out(script, stub, tmp_path):
    output = tmp_path / "out"
    for name in ("head/checkpoint.pt", "data/shard-00000.jsonl", "head/head.safetensors"):
        random_file(output / name, 1_200_000)
    (output / "head" / "head.json").write_text("{}")
    settings = {"PYTHON": stub, "OUTPUT": str(output), "PACK_MIB": "1"}
    done = script("results/gpu.sh", "certify", **settings, PACK=str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "kept").iterdir()
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert {"./head/head.json", "./summary.tsv", "./certify.log"} <= set(names)
    assert not any(name.endswith((".safetensors", ".pt")) for name in names)


def test_an_archive_that_cannot_be_small_enough_is_a_failure(script, stub, tmp_path):
    """The earlier archive stays; a later one that fits mends it."""
    kept = tmp_path / "kept"
    large = tmp_path / "out" / "record.jsonl"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "PACK": str(kept), "PACK_MIB": "1"}
    assert script("results/gpu.sh", "certify", **settings).returncode == 0
    (archive,) = kept.iterdir()
    before = archive.read_bytes()
    random_file(large, 1_200_000)
    done = script("results/gpu.sh", "machine", **settings)
    assert done.returncode == 1
    assert "out is not packed" in done.stderr
    assert list(kept.iterdir()) == [archive]
    assert archive.read_bytes() == before
    large.unlink()
    assert script("results/gpu.sh", "machine", **settings).returncode == 0
    assert archive.read_bytes() != before


def test_pieces_of_a_larger_archive_do_not_stay(script, stub, tmp_path):
    kept = tmp_path / "kept"
    large = tmp_path / "out" / "record.jsonl"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "PACK": str(kept)}
    random_file(large, 17 << 20)
    script("results/gpu.sh", "certify", **settings)
    assert {path.name for path in kept.iterdir()} == {"gpu.tgz.part-aa", "gpu.tgz.part-ab"}
    large.unlink()
    script("results/gpu.sh", "machine", **settings)
    assert {path.name for path in kept.iterdir()} == {"gpu.tgz.part-aa"}


def test_a_kill_while_an_archive_is_written_leaves_the_earlier_one(script, stub, tmp_path):
    """The pieces are cut by a `split` that kills the script halfway."""
    kept = tmp_path / "kept"
    settings = {"PYTHON": stub, "OUTPUT": str(tmp_path / "out"), "PACK": str(kept)}
    script("results/gpu.sh", "certify", **settings)
    before = (kept / "gpu.tgz.part-aa").read_bytes()
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "split").write_text('#!/usr/bin/env bash\necho torn > "$4"aa\nkill -9 $PPID\n')
    (bin / "split").chmod(0o755)
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    assert script("results/gpu.sh", "machine", **settings, PATH=path).returncode == -9
    assert (kept / "gpu.tgz.part-aa").read_bytes() == before
    settings |= {"FROM": str(kept), "OUTPUT": str(tmp_path / "two")}
    assert script("results/gpu.sh", "machine", **settings).returncode == 0
    assert [path.name for path in kept.iterdir()] == ["gpu.tgz.part-aa"]
    assert summary(tmp_path / "two").keys() == {"certify", "machine"}


def test_the_model_is_joined_of_pieces(script, stub, tmp_path):
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    (pieces / "smollm2.gguf.part-ab").write_text("second")
    (pieces / "smollm2.gguf.part-aa").write_text("first ")
    settings = {"PYTHON": stub, "MODEL": str(pieces), "OUTPUT": str(tmp_path / "out")}
    done = script("results/gpu.sh", "model", **settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cache" / "pieces" / "smollm2.gguf").read_text() == "first second"
    assert "fetch --from" in (tmp_path / "calls").read_text()


def test_a_checkout_that_is_not_installed_has_its_decoders(script, tmp_path):
    """The interpreter sees no site packages, as on a machine where nothing was installed."""
    probe = (
        "from importlib.metadata import distributions as found\n"
        "print([d.name for d in found(path=['cache/site'])])"
    )
    hidden = tmp_path / "hidden-python"
    hidden.write_text(f'#!/usr/bin/env bash\nexec {sys._base_executable} -S "$@"\n')
    hidden.chmod(0o755)
    done = script("results/gpu.sh", "machine", PYTHON=str(hidden), OUTPUT="out", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True)
    assert shown.stdout.decode().strip() == "['fspad-bench']"


def test_kernels_and_decoders_run_in_small(tmp_path, monkeypatch, device):
    """The true verbs, on the CPU with Triton's kernels in the interpreter."""
    output = tmp_path / "out"
    words = ["identity-tiny", "costs-tiny@1"]
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FSPAD_KERNELS", "reference")
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 2)
    monkeypatch.setattr(timing, "CPU_COPY", 1 << 20)
    monkeypatch.setattr(timing, "CPU_TURNS", 1)
    variables = SMALL | {"DEVICE": device.type, "OUTPUT": str(output)}
    variables |= {"SLOWER": "9", "BUDGET": "2000"}
    command = ["bash", str(CHECKOUT / "results" / "gpu.sh"), *words]
    done = Served(tmp_path / "served").run(command, os.environ | variables, tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(output) == dict.fromkeys(words, (0, "done"))
    assert "rows identical to vanilla" in (output / "identity-tiny.log").read_text()
    assert "a matrix product does" in (output / "costs-tiny@1.log").read_text()
    assert len(list(output.glob("*/*.jsonl"))) == 1


def test_a_head_is_trained_on_what_there_is_when_time_is_up(script, stub, tmp_path):
    """The data set and the training are cut off; the head is ended at its last checkpoint."""
    output = tmp_path / "heads"
    head = output / "fspad-tiny-0"
    body = f"""
case "$*" in *"--epochs 3 "*) mkdir -p {head}
    printf 'step,steps\\n10,100\\n' > {head}/curve.csv; exec sleep 60;; esac
echo '{{"held_out": {{"agreement": 0.5}}}}' > {head}/head.json"""
    data = f"mkdir -p {output}/data; touch {output}/data/shard-00000.jsonl; exec sleep 60"
    settings = {"PYTHON": stub, "DATA_SECONDS": "1", "TRAIN_SECONDS": "1"}
    settings |= {"STUB_train": body, "STUB_distill": data}
    done = script("baselines/heads/train.sh", output, **settings)
    assert done.returncode == 0, done.stderr
    states = summary(output)
    assert states["data"] == (124, "timeout")
    assert states["train-fspad-tiny-0"] == (124, "timeout")
    assert states["finish-fspad-tiny-0"] == (0, "done")
    assert json.loads((head / "held_out.json").read_text()) == {"agreement": 0.5}
    epochs = [line for line in (tmp_path / "calls").read_text().splitlines() if "train" in line]
    assert "--epochs 0.36 " in epochs[-1]  # 12 of 100 steps of 3 epochs
    assert script("baselines/heads/train.sh", output, **settings).returncode == 0
    assert len(summary(output)) == 3


def test_a_slower_machine_keeps_the_moment_to_finish_a_head(script, stub, tmp_path):
    (tmp_path / "data").mkdir()
    settings = {"PYTHON": stub, "DATA": "data", "BUDGET": "400", "FINISH_SECONDS": "40"}
    settings |= {"TRAIN_SECONDS": "1000", "SLOWER": "3"}
    done = script("baselines/heads/train.sh", "heads", **settings)
    (seconds,) = re.findall(r"train-fspad-tiny-0 \(at most (\d+) s\)", done.stderr)
    assert 300 < int(seconds) <= 360


def test_data_that_failed_is_an_error(script, stub, tmp_path):
    settings = {"PYTHON": stub, "STUB_distill": "exit 2"}
    done = script("baselines/heads/train.sh", tmp_path / "heads", **settings)
    assert done.returncode == 1
    assert "there is no data yet" in done.stderr


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
