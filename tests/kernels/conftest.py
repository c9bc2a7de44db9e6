"""Where kernels run, and random trees to run them on."""

import random

import pytest
import torch

from fspad_bench.tree import Tree

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def device():
    return DEVICE


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
