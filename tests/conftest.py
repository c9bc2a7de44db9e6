"""What every test may use: the tiny target, offline, on one thread; Triton in its interpreter where there is no GPU."""

import json
import os
import random
import shutil

import pytest

if not shutil.which("nvidia-smi"):
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # before Triton is imported, and torch imports it: it asks once

import torch

from fspad_bench.core.tree import Tree
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import ARMS, DraftNetwork, Shape
from fspad_bench.models.load import load_target
from fspad_bench.training.features import (
    FeatureStore,
    StoredFeatures,
    frequent_tokens,
    read_conversations,
)
from fspad_bench.training.objective import Recipe
from fspad_bench.training.trainer import Trainer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    return load_target("tiny")


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


@pytest.fixture(scope="session")
def heads(tiny, tmp_path_factory):
    """decoder -> folder of an untrained head whose draft vocabulary leaves every third token out."""
    root = tmp_path_factory.mktemp("heads")
    vocabulary = torch.tensor([i for i in range(97) if i % 3])
    for decoder in ARMS:
        torch.manual_seed(1)
        network = DraftNetwork(Shape.of_target(tiny.config, decoder))
        Head(network, vocabulary, tiny.name, tiny.identity, {"decoder": decoder}).save(
            root / decoder
        )
    return {decoder: root / decoder for decoder in ARMS}


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    """40 rows of token ids over a small alphabet, of many lengths."""
    generator = torch.Generator().manual_seed(5)
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"

    def ids(least, most):
        length = int(torch.randint(least, most, (), generator=generator))
        return torch.randint(0, 20, (length,), generator=generator).tolist()

    rows = [{"prompt": ids(2, 12), "response": ids(2, 30), "temperature": 0.0} for _ in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def recipe():
    return Recipe(epochs=6, batch_tokens=256, lr=3e-3, warmup=3)


@pytest.fixture
def trainer(tiny, conversations, tmp_path, recipe):
    def make(decoder="fspad", recipe=recipe, vocabulary=97, origin=None):
        rows = read_conversations([conversations], 97, 64)
        vocabulary = frequent_tokens(rows, vocabulary, 97)
        store = StoredFeatures([FeatureStore(tmp_path / "store", rows, 64)])
        store.fill(tiny)
        return Trainer(
            tiny, store, vocabulary, Shape.of_target(tiny.config, decoder), recipe, origin=origin
        )

    return make
