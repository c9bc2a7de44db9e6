"""A random head of each kind on the tiny target, and a small set of its conversations."""

import json

import pytest
import torch

from fspad_bench.drafts.data import FeatureStore, StoredFeatures, frequent_tokens, read_conversations
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import ARMS, DraftNetwork, Shape
from fspad_bench.drafts.objective import Recipe
from fspad_bench.drafts.train import Trainer


@pytest.fixture(scope="session")
def heads(tiny, tmp_path_factory):
    """decoder -> folder of an untrained head whose draft vocabulary leaves every third token out."""
    root = tmp_path_factory.mktemp("heads")
    vocabulary = torch.tensor([i for i in range(97) if i % 3])
    for decoder in ARMS:
        torch.manual_seed(1)
        network = DraftNetwork(Shape.of_target(tiny.config, decoder))
        Head(network, vocabulary, tiny.name, tiny.identity, {"decoder": decoder}).save(root / decoder)
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
        return Trainer(tiny, store, vocabulary, Shape.of_target(tiny.config, decoder), recipe, origin=origin)

    return make
