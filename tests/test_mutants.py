"""Each patch spoils a copy of the package: its certification must then fail, or its baseline.

- Patches are diffs of the package's sources (`mutants/*.patch`).
- LOSSLESS ones draft worse and leave the output as it is: a baseline's tokens per step, or the
  steps of each output, must detect them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fspad_bench.lossless.baselines import STEPS
from fspad_bench.lossless.checks import WRONG

CHECKOUT = Path(__file__).parent.parent
PATCHES = sorted((CHECKOUT / "tests" / "mutants").glob("*.patch"))
LOSSLESS = {"h-logit-fed-back"}
OPTIONS = {"draft-vocabulary-not-mapped": ["-D", "fspad.verify=rejection"]}


def apply(patch, folder, *options):
    command = ["patch", "-p1", *options, "-i", patch]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def mutant(tmp_path):
    """`mutant(patch)` patches a copy of the package and returns a function that runs its CLI."""

    def mutant(patch):
        for name in ("fspad_bench", "tasks", "baselines"):
            shutil.copytree(
                CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        if patch:
            apply(patch, tmp_path)
        env = os.environ | {
            "PYTHONPATH": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

        def run(*words):
            command = [sys.executable, "-m", "fspad_bench", *words]
            return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

        return run

    return mutant


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_every_patch_still_applies(patch, tmp_path):
    shutil.copytree(CHECKOUT / "fspad_bench", tmp_path / "fspad_bench")
    apply(patch, tmp_path, "-F0")


@pytest.mark.nightly
@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_certification_refuses_every_mutant(patch, mutant):
    """A check of the sampler, a rule or a decoder must fail; a failing mutation is not enough."""
    options = ["--quick", "--format", "json", *OPTIONS.get(patch.stem, [])]
    result = mutant(patch)("certify", "--decoder", "fspad", *options)
    code = 0 if patch.stem in LOSSLESS else 1
    assert result.returncode == code, result.stdout + result.stderr
    checks = json.loads(result.stdout)["checks"]
    failed = {(c["part"], c["name"]) for c in checks if c["verdict"] == "FAIL"}
    assert bool({part for part, _ in failed} - {WRONG}) == (patch.stem not in LOSSLESS), failed


@pytest.mark.nightly
def test_without_a_patch_it_certifies(mutant):
    result = mutant(None)("certify", "--decoder", "fspad", "--quick")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.real
@pytest.mark.parametrize(
    "patch", [path for path in PATCHES if path.stem in LOSSLESS], ids=lambda path: path.stem
)
def test_a_worse_draft_fails_its_baseline(patch, mutant):
    """Uses the real target: the tiny one's small head drafts no worse from the other output."""
    result = mutant(patch)("check", "--decoder", "fspad", "--target", "smollm2-135m")
    assert result.returncode == 1, result.stdout + result.stderr
    assert [
        line
        for line in result.stdout.splitlines()
        if ("tokens per step" in line or STEPS in line) and "FAIL" in line
    ]
    assert not [
        line for line in result.stdout.splitlines() if "identity" in line and "FAIL" in line
    ]
