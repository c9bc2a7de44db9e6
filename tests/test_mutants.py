"""Each patch spoils a copy of the package; its certification must then refuse, or its promise must break."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fspad_bench.lossless.report import WRONG

CHECKOUT = Path(__file__).parent.parent
PATCHES = sorted((CHECKOUT / "tests" / "mutants").glob("*.patch"))
LOSSLESS = {
    "h-logit-fed-back"
}  # drafts worse and says the same: for the promise on tokens a step to catch
RULES = {
    "draft-vocabulary-not-mapped": ["-D", "fspad.verify=rejection"],
}


@pytest.fixture
def mutant(tmp_path):
    """`mutant(patch)`: a copy of the package with the patch in, as a function that runs its command line."""

    def mutant(patch):
        for name in ("fspad_bench", "tasks", "baselines"):
            shutil.copytree(
                CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        if patch:
            done = subprocess.run(
                ["patch", "-p1", "-i", patch], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
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
    done = subprocess.run(
        ["patch", "-p1", "-F0", "-i", patch], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_certification_refuses_every_mutant(patch, mutant):
    """By a check that failed, and not only because a patched line is one that a wrong rule is made from."""
    done = mutant(patch)(
        "certify", "--decoder", "fspad", "--quick", "--format", "json", *RULES.get(patch.stem, [])
    )
    assert done.returncode == (0 if patch.stem in LOSSLESS else 1), done.stdout + done.stderr
    failed = {
        (c["part"], c["name"]) for c in json.loads(done.stdout)["checks"] if c["verdict"] == "FAIL"
    }
    assert bool({part for part, _ in failed} - {WRONG}) == (patch.stem not in LOSSLESS), failed


@pytest.mark.nightly
def test_without_a_patch_it_certifies(mutant):
    done = mutant(None)("certify", "--decoder", "fspad", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real
@pytest.mark.parametrize(
    "patch", [path for path in PATCHES if path.stem in LOSSLESS], ids=lambda path: path.stem
)
def test_a_worse_draft_breaks_its_promise(patch, mutant):
    """On the real target: a head as small as tiny's drafts no worse from the other output."""
    done = mutant(patch)("check", "--decoder", "fspad", "--target", "smollm2-135m")
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if "tokens a step" in line and "FAIL" in line]
    assert not [line for line in done.stdout.splitlines() if "identity" in line and "FAIL" in line]
