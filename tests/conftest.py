"""What every test may use: the tiny target, offline, on one thread; Triton in its interpreter where there is no GPU."""

import os
import shutil

import pytest

if not shutil.which("nvidia-smi"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, and torch imports it: it asks once

import torch

from fspad_bench.target import TransformersTarget

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    return TransformersTarget.load("tiny")
