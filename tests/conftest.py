"""Load the fixtures for all tests, but not where xdist only hands tests out to its workers: they
import torch and transformers, which takes seconds before the first worker starts.

Where there is no GPU, Triton runs in its interpreter.
"""

import os
import shutil
from importlib import import_module

if not shutil.which("nvidia-smi"):
    # before torch, which imports Triton, which reads the variable once
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    runs_tests = hasattr(config, "workerinput") or config.getoption("dist", "no") == "no"
    if runs_tests:
        config.pluginmanager.register(import_module("fixtures"), "fixtures of all rooms")
