"""Load the fixtures for all tests, but not where xdist only hands tests out to its workers: they
import torch and transformers, which takes seconds before the first worker starts.

Where there is no GPU, Triton runs in its interpreter.

The default run takes a sample of the widest grids of cases: of those marked `sampled(n)` every
n-th. `tox -e wide` runs the others, which are marked `wide`.
"""

import os
import shutil
from collections import Counter
from importlib import import_module

import pytest

if not shutil.which("nvidia-smi"):
    # before torch, which imports Triton, which reads the variable once
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    runs_tests = hasattr(config, "workerinput") or config.getoption("dist", "no") == "no"
    if runs_tests:
        config.pluginmanager.register(import_module("fixtures"), "fixtures of all rooms")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    is_named = any("::" in argument for argument in config.args)
    if not is_named:
        mark_wide(items)


def mark_wide(items):
    """Mark the cases that a sample leaves out; the first case of a test is always in it."""
    seen = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is None:
            continue
        (every,) = sampled.args
        test = item.nodeid.partition("[")[0]
        if seen[test] % every:
            item.add_marker("wide")
        seen[test] += 1
