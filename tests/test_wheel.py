"""The wheel: built offline, it holds the data, and works without the checkout."""

import multiprocessing
import os
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest

from fspad_bench.benchmark.cards import read_card

pytestmark = pytest.mark.wide

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        CHECKOUT,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds what the wheel does, as an installation would."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def away(installed, tmp_path):
    """`away(*words)`: this Python, with the unpacked wheel before all else, in a folder that is not
    the checkout.
    """

    def away(*words):
        env = os.environ | {
            "PYTHONPATH": str(installed),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=env
        )

    return away


def test_it_holds_all_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("tasks", "baselines"):
        mine = [
            path.relative_to(CHECKOUT) for path in (CHECKOUT / folder).rglob("*") if path.is_file()
        ]
        assert mine
        assert {f"fspad_bench/data/{path.as_posix()}" for path in mine} <= set(names)
    kinds = {".py", ".cpp", ".hpp", ".html", ".css", ".js"}
    sources = [path for path in (CHECKOUT / "fspad_bench").rglob("*.*") if path.suffix in kinds]
    assert {path.suffix for path in sources} == kinds
    assert {path.relative_to(CHECKOUT).as_posix() for path in sources} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fspad_bench"}
    assert not [name for name in names if "__pycache__" in name or "tests" in name.split("/")]


def test_each_card_finds_its_samples(installed):
    folder = installed / "fspad_bench" / "data" / "tasks"
    bundled = [read_card(path).bundled for path in folder.glob("*.yaml")]
    assert len([path for path in bundled if path]) == 6
    assert all(path.is_file() for path in bundled if path)


def test_it_lists_names_from_another_folder(away, installed):
    done = away("-m", "fspad_bench", "ls")
    assert done.returncode == 0, done.stderr
    for name in ("vanilla", "prompt_lookup", "fspad", "gsm8k", "mt_bench", "smollm2-135m"):
        assert f"  {name} " in done.stdout
    where = away(
        "-c",
        "from fspad_bench.util import paths; print(paths.__file__, paths.data_folder('tasks'))",
    )
    assert where.stdout.split() == [
        f"{installed}/fspad_bench/util/paths.py",
        f"{installed}/fspad_bench/data/tasks",
    ]


def run_installed(folder, cwd, log):
    """Run a verb of the package in `folder`, in a copy of this process: it has torch imported."""
    for name in [name for name in sys.modules if f"{name}.".startswith("fspad_bench.")]:
        del sys.modules[name]
    checkout = {str(CHECKOUT), str(CHECKOUT / "tests"), ""}
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in checkout)]
    os.chdir(cwd)
    run = "run --target tiny --decoder prompt_lookup --task gsm8k --limit 2 --max-new-tokens 4"
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        package = import_module("fspad_bench.cli.main")
        print(package.__file__)
        code = package.main(run.split())
    sys.exit(code)


def test_it_runs_from_another_folder(installed, tmp_path):
    log = tmp_path / "log"
    arguments = (installed, tmp_path, log)
    process = multiprocessing.get_context("fork").Process(target=run_installed, args=arguments)
    process.start()
    process.join()
    printed = log.read_text()
    assert process.exitcode == 0, printed
    assert printed.splitlines()[0] == f"{installed}/fspad_bench/cli/main.py"
    assert "gsm8k@bundled" in printed
    assert "exact" in printed
    assert list((tmp_path / "fspad-results").glob("*.jsonl"))


def test_entry_points_and_the_script_are_declared(installed):
    (path,) = installed.glob("fspad_bench-*.dist-info/entry_points.txt")
    text = path.read_text()
    assert "fspad-bench = fspad_bench.cli.main:main" in text
    assert "[fspad_bench.decoders]" in text
    assert "fspad = fspad_bench.decoders.fspad:Fspad" in text
