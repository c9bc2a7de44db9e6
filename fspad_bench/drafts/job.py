"""A training job from a data file to a head's folder, resumable at every stage.

    fspad-bench train --decoder fspad --target smollm2-135m --data conversations.jsonl --output heads/mine

The features are kept in the user's cache under a name made of everything that decides them, so that two decoders
trained on the same data share them.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from fspad_bench import __version__
from fspad_bench.drafts.data import FeatureStore, data_hash, frequent_tokens, read_conversations
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import ARMS, Shape
from fspad_bench.drafts.train import Recipe, Trainer
from fspad_bench.errors import BenchError, near
from fspad_bench.fetch import cache_home
from fspad_bench.target import TransformersTarget


def check_decoder(decoder: str) -> None:
    """Raise BenchError unless this decoder has a draft network to train."""
    if decoder not in ARMS:
        raise BenchError(f"no draft network to train for '{decoder}'", near(decoder, ARMS))


def train_head(
    target: TransformersTarget,
    decoder: str,
    data: Path,
    output: Path,
    recipe: Recipe,
    *,
    draft_vocabulary: int = 8192,
    max_length: int = 2048,
    checkpoint_every: float = 120.0,
) -> Head:
    """Train `decoder`'s network on `data` and write it to `output`, with its curve and facts beside it."""
    check_decoder(decoder)
    conversations = read_conversations(data, target.config.vocab_size, max_length)
    vocabulary = frequent_tokens(conversations, draft_vocabulary, target.config.vocab_size)
    digest = data_hash(data)
    key = json.dumps([digest, target.identity, str(target.dtype), len(vocabulary), max_length])
    folder = cache_home() / "features" / hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        store = FeatureStore(folder, conversations, target.config.hidden_size)
        store.fill(target, vocabulary)
    except OSError as error:
        raise BenchError(
            f"cannot keep features in {folder}: {error}", "free space, or set FSPAD_BENCH_CACHE"
        ) from error
    trainer = Trainer(target, store, vocabulary, Shape.of_target(target.config, decoder), recipe)
    trainer.run(output, checkpoint_every=checkpoint_every)
    facts = {
        "decoder": decoder,
        "version": __version__,
        "recipe": asdict(recipe),
        "data_sha256": digest,
        "conversations": len(conversations),
        "answer_tokens": sum(c.answer_tokens() for c in conversations),
        "command": shlex.join(["fspad-bench", *sys.argv[1:]]),
        "held_out": trainer.evaluate(),
    }
    head = Head(trainer.network, vocabulary, target.name, target.identity, facts)
    head.save(output)
    return head
