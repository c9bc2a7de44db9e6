"""The plugin as a third party's CI runs it: another folder and package, pytest's own main."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fspad_bench.lossless import baseline_runs, certify, identity
from fspad_bench.models import load

PLUGIN = Path(__file__).parent.parent / "plugin"
# the last collects all garbage five times when pytest ends, a second each time pytest runs here
UNUSED = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
WORDS = ["-v", "-p", "fspad_bench.integrations.pytest_plugin", *UNUSED]
LOSSY = """
from acme_decoder import Echo
from fspad_bench.core.verification import Accepted, match

class Lossy(Echo):
    def rule(tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        return Accepted(path, bonus if len(path) == 1 else (bonus + 1) % 97)
"""
OWN = """
import sys

def test_own():
    assert "{module}" in sys.modules
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder outside this checkout with a small package, in which an inner pytest runs."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (tmp_path / "spoiled.py").write_text(LOSSY)
    monkeypatch.chdir(tmp_path)
    # an installed package's entry point would load the plugin a second time
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return tmp_path


@pytest.fixture
def third_party(package, tiny, monkeypatch, capsys):
    """`third_party(*words)`: the exit code and the output of pytest, with less of everything."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setattr(load, "load_target", lambda name: tiny)
    monkeypatch.setattr(certify, "QUICK", replace(certify.QUICK, distance=0.3, repeats=1))
    monkeypatch.setattr(identity, "PAIRWISE", identity.PAIRWISE[:25])

    def third_party(*words):
        code = pytest.main([*WORDS, *words])
        out, err = capsys.readouterr()
        return code, out + err

    return third_party


@pytest.mark.wide
def test_a_lossless_decoder_passes_every_check_beside_the_packages_own_tests(third_party, package):
    (package / "test_own.py").write_text(OWN.format(module="acme_decoder"))
    code, out = third_party(
        "--fspad-decoder", "acme_decoder:Echo", "--fspad-option", "acme_decoder:Echo.times=3"
    )
    assert code == 0, out
    for check in ("identity", "exact distribution", "G-test", "every depth", "PIT"):
        assert f"fspad-bench::acme_decoder:Echo::{check} PASSED" in out
    assert "test_own.py::test_own PASSED" in out
    assert "6 passed" in out


@pytest.mark.wide
def test_a_lossy_decoder_fails_with_figure_and_bound(third_party):
    code, out = third_party("--fspad-decoder", "spoiled:Lossy")
    assert code == 1
    assert "fspad-bench::spoiled:Lossy::identity FAILED" in out
    assert "identity: FAIL:" in out
    assert "Traceback" not in out


def test_nothing_heavy_is_imported_until_a_decoder_is_named(package):
    """In a process of its own: this one has torch already."""
    name = "test_own.py"
    (package / name).write_text(OWN.format(module="torch").replace(" in ", " not in "))
    command = [sys.executable, "-m", "pytest", *WORDS]
    process = subprocess.run(command, capture_output=True, text=True, cwd=package)
    assert process.returncode == 0, process.stdout
    assert "1 passed" in process.stdout


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
    code, out = third_party(*words)
    assert code == 4
    assert message in out


@pytest.mark.nightly
def test_in_a_process_of_its_own(package):
    path = f"{PLUGIN}{os.pathsep}{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "pytest", *WORDS, "--fspad-decoder", "acme_decoder:Echo"]
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.run(command, capture_output=True, text=True, cwd=package, env=environment)
    assert process.returncode == 0, process.stdout
    assert "4 passed" in process.stdout


# baselines ------------------------------------------------------------------------------------

EXPECTED = {"target": "tiny", "task": "gsm8k", "limit": 1, "max_new_tokens": 12}


@pytest.fixture
def baseline(package, quick_runs):
    """`baseline(*bounds)`: the name of a baseline of prompt lookup in the package's folder."""

    def baseline(*bounds):
        entries = [
            EXPECTED | {"tokens_per_step": bound, "options": {"ngram": 2 + number}}
            for number, bound in enumerate(bounds)
        ]
        path = package / "mine.yaml"
        path.write_text(json.dumps({"decoder": "prompt_lookup", "promises": entries}))
        return path.name

    return baseline


def test_each_expectation_of_a_baseline_is_a_test(third_party, baseline):
    code, out = third_party(baseline(0.5, 9.0))
    assert code == 1
    assert "mine.yaml::prompt_lookup (ngram=2) on tiny, gsm8k, T=0 PASSED" in out
    assert "mine.yaml::prompt_lookup (ngram=3) on tiny, gsm8k, T=0 FAILED" in out
    assert "tokens per step: FAIL: " in out
    assert "(bound: at least 9)" in out
    assert "Traceback" not in out


def test_expectations_that_are_selected_share_a_run(third_party, baseline, monkeypatch):
    groups = []
    real = baseline_runs.group_outcomes
    monkeypatch.setattr(
        baseline_runs, "group_outcomes", lambda group: groups.append(len(group)) or real(group)
    )
    name = baseline(0.5, 0.6, 0.7)
    deselected = f"{name}::prompt_lookup (ngram=3) on tiny, gsm8k, T=0"
    code, out = third_party(name, "--deselect", deselected)
    assert code == 0, out
    assert groups == [2]


def test_yaml_that_nobody_names_is_not_collected(third_party, package, baseline):
    baseline(9.0)
    (package / "test_own.py").write_text("def test_own():\n    pass\n")
    code, out = third_party()
    assert code == 0
    assert "1 passed" in out


def test_a_baseline_that_is_wrong_is_one_clear_error(third_party, package):
    (package / "mine.yaml").write_text("decoder: prompt_lookup\npromises: [{target: tiny}]")
    code, out = third_party("mine.yaml")
    assert code == 2
    assert "an expectation lacks 'task'" in out
    assert "Traceback" not in out
