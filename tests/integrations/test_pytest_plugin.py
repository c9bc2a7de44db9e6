"""The plugin, as a third party's CI runs it: another process, another folder, the miniature package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent / "plugin"
LOSSY = """
from acme_decoder import Echo
from fspad_bench.verification import Accepted, match

class Lossy(Echo):
    def verify(self, tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        return Accepted(path, bonus if len(path) == 1 else (bonus + 1) % 97)
"""


@pytest.fixture
def theirs(tmp_path):
    """`theirs(*words)`: pytest in a folder that is not this checkout, with the miniature package on the path."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "spoiled.py").write_text(LOSSY)

    def theirs(*words):
        env = os.environ | {"PYTHONPATH": f"{PLUGIN}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "fspad_bench.integrations.pytest_plugin",
            *words,
        ]
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = (
            "1"  # the entry point would load it a second time where it is installed
        )
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

    return theirs


def test_a_lossless_decoder_passes_every_check(theirs):
    done = theirs(
        "--fspad-decoder", "acme_decoder:Echo", "--fspad-option", "acme_decoder:Echo.times=3"
    )
    assert done.returncode == 0, done.stdout
    for check in ("identity", "exact law", "G-test", "PIT"):
        assert f"fspad-bench::acme_decoder:Echo::{check} PASSED" in done.stdout


def test_a_lossy_decoder_fails_with_figure_and_bound(theirs):
    done = theirs("--fspad-decoder", "spoiled:Lossy")
    assert done.returncode == 1
    assert "fspad-bench::spoiled:Lossy::identity FAILED" in done.stdout
    assert "identity: FAIL:" in done.stdout
    assert "Traceback" not in done.stdout


def test_it_stands_beside_the_packages_own_tests(theirs, tmp_path):
    (tmp_path / "test_own.py").write_text("def test_own():\n    assert True\n")
    assert "1 passed" in theirs().stdout
    both = theirs("--fspad-decoder", "acme_decoder:Echo").stdout
    assert "5 passed" in both
    assert "test_own.py::test_own PASSED" in both


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fspad-decoder", "acme_decoder:Ecco"], "cannot load 'acme_decoder:Ecco'"),
        (["--fspad-decoder", "prompt_lokup"], "did you mean 'prompt_lookup'"),
        (
            ["--fspad-decoder", "acme_decoder:Echo", "--fspad-option", "x"],
            "is not DECODER.OPTION=VALUE",
        ),
    ],
)
def test_bad_input_is_a_usage_error(words, said, theirs):
    done = theirs(*words)
    assert done.returncode == 4
    assert said in done.stderr + done.stdout
