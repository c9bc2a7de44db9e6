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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from fspad_bench import __version__
from fspad_bench.drafts.head import Head, load_head
from fspad_bench.drafts.network import ARMS, Shape
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError, near
from fspad_bench.models.chat import tokenizer_hash
from fspad_bench.training.features import (
    Conversation,
    FeatureStore,
    LiveFeatures,
    StoredFeatures,
    data_hash,
    frequent_tokens,
    read_files,
)
from fspad_bench.training.objective import Recipe
from fspad_bench.training.trainer import Trainer, accelerator_for
from fspad_bench.util.paths import cache_home

STORE = 2  # the form of feature stores; others' are computed anew
USUAL_TOKENS = 8192
INHERITED = (
    "command",
    "data_sha256",
    "tokens_seen",
    "initial",
)  # what a head says of the one that it began with


def check_decoder(decoder: str) -> None:
    """Raise BenchError unless this decoder has a draft network to train."""
    if decoder not in ARMS:
        raise BenchError(f"no draft network to train for '{decoder}'", near(decoder, ARMS))


def train_head(
    target: TransformersTarget,
    decoder: str,
    data: Sequence[Path],
    output: Path,
    recipe: Recipe,
    *,
    draft_vocabulary: int | None = None,
    max_length: int = 2048,
    live: bool = False,
    initial: Path | None = None,
    checkpoint_every: float = 120.0,
    accelerator: Accelerator | None = None,
) -> Head:
    """Train `decoder`'s network on `data` and write it to `output`, with its curve and facts beside it.

    The target's features are kept on disk, or with `live` computed at every step. The draft vocabulary is of so many
    tokens, the most frequent ones of the answers. Training begins with the weights of the head in the folder `initial`
    where one is given, and with its vocabulary unless a size is. Several processes share each batch where an
    `accelerator` knows of several; the first of them writes.
    """
    check_decoder(decoder)
    first = load_head(initial.expanduser(), target, decoder) if initial else None
    accelerator = accelerator or accelerator_for(target.device)
    _check_tokenizer(data, target)
    max_length = min(max_length, target.max_length)
    files = read_files(data, target.config.vocab_size, max_length)
    conversations = [conversation for _, part in files for conversation in part]
    if first and draft_vocabulary is None:
        vocabulary = first.vocabulary.cpu()
    else:
        vocabulary = frequent_tokens(
            conversations, draft_vocabulary or USUAL_TOKENS, target.config.vocab_size
        )
    answer_tokens = sum(c.answer_tokens() for c in conversations)
    if recipe.supervise == "all":
        files = [(path, [conversation.whole() for conversation in part]) for path, part in files]
        conversations = [conversation for _, part in files for conversation in part]
    digest = data_hash(data)
    if live:
        features = LiveFeatures(target, conversations)
    else:
        with accelerator.main_process_first():
            features = _stored(target, files, max_length)
    shape = first.network.shape if first else Shape.of_target(target.config, decoder)
    origin = {
        "data": digest,
        "longest conversation": max_length,
        "initial head": first.sha256 if first else "",
    }
    weights = first.network.state_dict() if first else None
    trainer = Trainer(target, features, vocabulary, shape, recipe, accelerator, origin, weights)
    trainer.run(output, checkpoint_every=checkpoint_every)
    facts = {
        "decoder": decoder,
        "version": __version__,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "processes": accelerator.num_processes,
        "data_sha256": digest,
        "conversations": len(conversations),
        "answer_tokens": answer_tokens,
        "tokens_seen": trainer.seen,
        "command": shlex.join(["fspad-bench", *sys.argv[1:]]),
    }
    if first:
        facts["initial"] = {"sha256": first.sha256} | {
            name: first.facts.get(name) for name in INHERITED
        }
    if accelerator.is_main_process:
        facts |= {"held_out": trainer.evaluate(), "calibration": trainer.calibrate().facts()}
    head = Head(trainer.network, vocabulary, target.name, target.identity, facts)
    if accelerator.is_main_process:
        head.save(output)
    accelerator.wait_for_everyone()
    return head


def _check_tokenizer(data: Sequence[Path], target: TransformersTarget) -> None:
    """Raise BenchError for a data set whose token ids are another tokenizer's."""
    for folder in data:
        manifest = folder / "manifest.json"
        if manifest.is_file() and target.tokenizer:
            made = json.loads(manifest.read_text(encoding="utf-8"))
            if made.get("tokenizer", "") not in ("", tokenizer_hash(target.tokenizer)):
                raise BenchError(
                    f"{folder} is of {made.get('target')}, whose tokenizer is not {target.name}'s",
                    "distil a data set from this target",
                )


def _stored(
    target: TransformersTarget, files: Sequence[tuple[Path, list[Conversation]]], max_length: int
) -> StoredFeatures:
    """The features of the user's cache, those that are missing computed first."""
    root = cache_home() / "features"
    stores = []
    try:
        for path, conversations in files:
            key = json.dumps(
                [STORE, data_hash([path]), target.identity, str(target.dtype), max_length]
            )
            folder = root / hashlib.sha256(key.encode()).hexdigest()[:16]
            stores.append(FeatureStore(folder, conversations, target.config.hidden_size))
        features = StoredFeatures(stores)
        features.fill(target)
    except OSError as error:
        raise BenchError(
            f"cannot keep features in {root}: {error}",
            "free space, set FSPAD_BENCH_CACHE, or train with --live",
        ) from error
    return features
