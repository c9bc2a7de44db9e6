"""The plugin as a third party's CI runs it: another process, folder and package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent / "plugin"
LOSSY = """
from acme_decoder import Echo
from fspad_bench.core.verification import Accepted, match

class Lossy(Echo):
    def rule(tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        return Accepted(path, bonus if len(path) == 1 else (bonus + 1) % 97)
"""


@pytest.fixture
def third_party(tmp_path):
    """`third_party(*words)`: run pytest outside this checkout, with a small package on the path."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "spoiled.py").write_text(LOSSY)

    def third_party(*words):
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
        # an installed package's entry point would load the plugin a second time
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

    return third_party


def test_a_lossless_decoder_passes_every_check(third_party):
    process = third_party(
        "--fspad-decoder", "acme_decoder:Echo", "--fspad-option", "acme_decoder:Echo.times=3"
    )
    assert process.returncode == 0, process.stdout
    for check in ("identity", "exact distribution", "G-test", "PIT"):
        assert f"fspad-bench::acme_decoder:Echo::{check} PASSED" in process.stdout


def test_a_lossy_decoder_fails_with_figure_and_bound(third_party):
    process = third_party("--fspad-decoder", "spoiled:Lossy")
    assert process.returncode == 1
    assert "fspad-bench::spoiled:Lossy::identity FAILED" in process.stdout
    assert "identity: FAIL:" in process.stdout
    assert "Traceback" not in process.stdout


def test_it_stands_beside_the_packages_own_tests(third_party, tmp_path):
    (tmp_path / "test_own.py").write_text("def test_own():\n    assert True\n")
    assert "1 passed" in third_party().stdout
    both = third_party("--fspad-decoder", "acme_decoder:Echo").stdout
    assert "5 passed" in both
    assert "test_own.py::test_own PASSED" in both


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fspad-decoder", "acme_decoder:Ecco"], "cannot load 'acme_decoder:Ecco'"),
        (["--fspad-decoder", "prompt_lokup"], "did you mean 'prompt_lookup'"),
        (
            ["--fspad-decoder", "acme_decoder:Echo", "--fspad-option", "x"],
            "is not DECODER.OPTION=VALUE",
        ),
    ],
)
def test_bad_input_is_a_usage_error(words, message, third_party):
    process = third_party(*words)
    assert process.returncode == 4
    assert message in process.stderr + process.stdout
