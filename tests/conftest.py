"""What every test may use: the tiny target, offline, on one thread; Triton in its interpreter where there is no GPU."""

import os
import random
import shutil

import pytest

if not shutil.which("nvidia-smi"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, and torch imports it: it asks once

import torch

from fspad_bench.target import TransformersTarget
from fspad_bench.tree import Tree

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    return TransformersTarget.load("tiny")


@pytest.fixture
def device():
    """Where kernels run: a GPU, or the CPU in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def grown():
    """`grown(nodes, seed)`: a random tree of few different tokens, so that a random choice often agrees."""

    def grown(nodes, seed=0):
        dice, tokens, parents, taken = random.Random(seed), [0], [-1], set()
        while len(tokens) < nodes:
            parent, token = dice.randrange(len(tokens)), dice.randrange(nodes + 2)
            if (parent, token) not in taken:
                taken.add((parent, token))
                tokens.append(token)
                parents.append(parent)
        return Tree(tokens, parents)

    return grown
