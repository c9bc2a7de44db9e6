"""Fixtures for all tests: the tiny target, offline, on one thread."""

import json
import os
import random
import sys

import interpreter
import numpy as np
import pytest
import torch
from documents import OURS

from fspad_bench.benchmark import runner
from fspad_bench.benchmark.guards import state
from fspad_bench.core.tree import Tree
from fspad_bench.distill import conversations as dialogues
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import architectures
from fspad_bench.drafts.shape import low_mid_high
from fspad_bench.engine.cpu import native
from fspad_bench.models import load
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer
from fspad_bench.training import curve, evaluation
from fspad_bench.training.conversations import (
    all_conversations,
    frequent_tokens,
    read_files,
)
from fspad_bench.training.feature_store import FeatureStore
from fspad_bench.training.features import StoredFeatures
from fspad_bench.training.networks import initial_network
from fspad_bench.training.objective import Recipe
from fspad_bench.training.trainer import Trainer
from fspad_bench.util import provenance

torch.set_num_threads(1)
if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.hasten()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Let every test, and the fixtures that it is the first to use, draw the same each time."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def compiled():
    """Load the compiled step, before a test has another cache, where it would be compiled again."""
    native.native()


@pytest.fixture(scope="session", autouse=True)
def few_probes():
    """Let a training decode little where it measures its tokens per step: it would take longer
    than the steps between.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "PROBES", 2)
        patch.setattr(evaluation, "PROBE_TOKENS", 12)
        yield


@pytest.fixture(scope="session")
def tiny():
    return load_target("tiny")


@pytest.fixture
def quick_runs(monkeypatch, tiny):
    """Share one tiny target between runs, warm up shortly; no git, pictures or disk to wait for.

    The guard that asks prompts again at the end asks one. A test that names another target loads
    that one.
    """
    real = load.load_target

    def one_tiny(name, *, device="cpu", **options):
        if name != "tiny" or len(load.devices_named(device)) > 1:
            return real(name, device=device, **options)
        return tiny

    monkeypatch.setattr(load, "load_target", one_tiny)
    monkeypatch.setattr(runner, "load_target", one_tiny)
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 2)
    monkeypatch.setattr(state, "ASKED", 1)
    monkeypatch.setattr(provenance, "_commit", dict)
    monkeypatch.setattr(curve, "draw", lambda table, picture: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def device():
    """Return where kernels run: a GPU, or the CPU in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def saved_tiny(tmp_path_factory):
    """The tiny target as a folder, in float32, for copies that a test may edit."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().to(torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def grown():
    """`grown(nodes, seed)`: a random tree of few different tokens, which random draws often hit."""

    def grown(nodes, seed=0):
        dice = random.Random(seed)
        tokens = [0]
        parents = [-1]
        taken = set()
        while len(tokens) < nodes:
            parent = dice.randrange(len(tokens))
            token = dice.randrange(min(nodes + 2, 97))  # of the tiny vocabulary
            if (parent, token) not in taken:
                taken.add((parent, token))
                tokens.append(token)
                parents.append(parent)
        return Tree(tokens, parents)

    return grown


@pytest.fixture(scope="session")
def heads(tiny, tmp_path_factory):
    """Architecture -> folder of an untrained head; its draft vocabulary lacks every third token."""
    root = tmp_path_factory.mktemp("heads")
    vocabulary = torch.tensor([i for i in range(97) if i % 3])
    for name, network_class in architectures().items():
        torch.manual_seed(1)
        network = network_class.build(network_class.shape_for(tiny.config), tiny)
        head = Head(network, vocabulary, tiny.name, tiny.identity, {"decoder": name})
        head.save(root / name)
    return {name: root / name for name in architectures()}


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    """Write 40 conversations of token ids over a small alphabet, of many lengths."""
    generator = torch.Generator().manual_seed(5)
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"

    def ids(least, most):
        length = int(torch.randint(least, most, (), generator=generator))
        return torch.randint(0, 20, (length,), generator=generator).tolist()

    rows = [{"prompt": ids(2, 12), "response": ids(2, 30), "temperature": 0.0} for _ in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def shorten():
    """`shorten(patch)`: short questions, answers and texts, as long as the patch is in force."""
    kinds = {name: kind._replace(length=20) for name, kind in dialogues.KINDS.items()}

    def shorten(patch):
        patch.setattr(dialogues, "QUESTION_LENGTH", 12)
        patch.setattr(dialogues, "TEXT_LENGTH", 24)
        patch.setattr(dialogues, "SHORTEST_TEXT", 1)
        patch.setattr(dialogues, "SHORTEST_MATERIAL", 1)
        patch.setattr(dialogues, "KINDS", kinds)

    return shorten


@pytest.fixture(scope="session")
def recipe():
    return Recipe(epochs=6, batch_tokens=256, lr=3e-3, warmup=3)


@pytest.fixture(scope="session")
def features(tiny, conversations, tmp_path_factory):
    learned = all_conversations(read_files([conversations], 97, 64))
    features = StoredFeatures([FeatureStore(tmp_path_factory.mktemp("store"), learned, 64)])
    features.fill(tiny)
    return features


@pytest.fixture(scope="session")
def captured_features(tiny, features, tmp_path_factory):
    """The same conversations' features with those of the hidden states that EAGLE-3 reads."""
    folder = tmp_path_factory.mktemp("captured")
    capture = low_mid_high(tiny.config.num_hidden_layers)
    captured = StoredFeatures([FeatureStore(folder, features.conversations, 64, capture)])
    captured.fill(tiny)
    return captured


@pytest.fixture(scope="session")
def trainer(tiny, features, captured_features, recipe):
    def make(variant="fspad", recipe=recipe, vocabulary=97, origin=None):
        tokens = frequent_tokens(features.conversations, vocabulary, 97)
        network = initial_network(tiny, variant, recipe.seed)
        own = captured_features if network.shape.capture else features
        return Trainer(tiny, own, tokens, network, recipe, origin=origin)

    return make


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Let modules be imported from a folder, and forget them afterwards."""

    def imported(folder):
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))

    yield imported
    for name in OURS:
        sys.modules.pop(name, None)
