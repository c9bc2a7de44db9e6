"""Trainers of draft networks, as registered in the group `fspad_bench.trainers`.

    fspad-bench train --decoder fspad --data conversations.jsonl --output heads/mine

A trainer writes a head's folder (see `drafts.head`) with its checkpoint and learning curve. All
variants that read the target's final hidden state share the features in the user's cache.
"""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from fspad_bench import __version__
from fspad_bench.drafts.head import ABOUT, WEIGHTS, Head, load_head
from fspad_bench.drafts.network import HeadNetwork, architecture
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.checkpoint import ENVIRONMENT, Checkpoint
from fspad_bench.training.conversations import (
    Conversation,
    DataFile,
    all_conversations,
    data_hash,
    frequent_tokens,
    read_files,
)
from fspad_bench.training.features import Features, LiveFeatures, cached_features
from fspad_bench.training.job import Trained, TrainingJob
from fspad_bench.training.objective import Recipe
from fspad_bench.training.trainer import Trainer, of_target
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import user_path

VOCABULARY_SIZE = 8192
SHORTEST = 8  # tokens of a conversation with a prompt and an answer
CURVE = "curve.csv"
INHERITED = ("command", "data_sha256", "tokens_seen", "initial")
"""Facts of the head that training started with, kept in the new head's file."""


@dataclass(frozen=True)
class NetworkTrainer:
    """Trains one variant of draft network; `recipe` holds the defaults of its settings."""

    variant: str
    recipe: Recipe = field(default_factory=Recipe)

    def check(self, job: TrainingJob, target: TransformersTarget) -> None:
        """Raise BenchError for an initial head, lengths or an output that cannot work, and unless a
        checkpoint has the same recipe, and the same target in the same precision.
        """
        initial = self._initial_head(job, target)
        _check_own_head(job, initial)
        if min(job.max_length, target.max_length) < SHORTEST:
            raise BenchError(
                f"conversations of at most {job.max_length} tokens hold no answer",
                f"give --max-length at least {SHORTEST}",
            )
        self._check_levels(job, shape_of(target, self.variant, job.layers, initial))
        for name in (ABOUT, WEIGHTS, CURVE):
            if (job.output / name).is_dir():
                raise BenchError(f"{job.output / name} is a folder", "give another --output")
        checkpoint = Checkpoint.load(job.output)
        if checkpoint is not None:
            checkpoint.check_recipe(job.recipe, job.output)
            known = of_target(target) | {"initial head": _sha256(initial)}
            checkpoint.check_origin(known, job.output)

    def _check_levels(self, job: TrainingJob, shape: Shape) -> None:
        """Raise BenchError where a network of several heads would not learn each of them, or a
        language model would learn one level several times.
        """
        if not architecture(self.variant).reads_states and job.recipe.unroll != 1:
            raise BenchError(
                f"a {self.variant} reads drafted tokens as any others: unroll is "
                f"{job.recipe.unroll}",
                "all its levels are one: leave --unroll out",
            )
        if shape.levels and job.recipe.unroll != shape.levels:
            raise BenchError(
                f"{self.variant} has {shape.levels} heads: unroll is {job.recipe.unroll}",
                f"train them all, with --unroll {shape.levels}",
            )

    def train(
        self,
        job: TrainingJob,
        target: TransformersTarget,
        data: Sequence[Path],
        accelerator: Accelerator,
    ) -> Trained:
        """Train the network on `data`; write the head, its facts and its curve to `job.output`."""
        initial = self._initial_head(job, target)
        max_length = min(job.max_length, target.max_length)
        files = read_files(data, target.config.vocab_size, max_length)
        conversations = all_conversations(files)
        vocabulary = _vocabulary(job, target, conversations, initial)
        digest = data_hash(data)
        network = initial_network(target, self.variant, job.recipe.seed, initial, job.layers)
        trainer = Trainer(
            target,
            _features(job, target, files, max_length, accelerator, network.shape.capture),
            vocabulary,
            network,
            job.recipe,
            accelerator,
            origin={
                "data": digest,
                "longest conversation": max_length,
                "initial head": _sha256(initial),
            },
        )
        trainer.run(job.output, checkpoint_every=job.checkpoint_every)
        facts = self._facts(job, trainer, digest, conversations, initial)
        return _save(trainer, vocabulary, facts, job.output)

    def _initial_head(self, job: TrainingJob, target: TransformersTarget) -> Head | None:
        if job.initial is None:
            return None
        return load_head(user_path(job.initial), target, architecture(self.variant))

    def _facts(
        self,
        job: TrainingJob,
        trainer: Trainer,
        digest: str,
        conversations: Sequence[Conversation],
        initial: Head | None,
    ) -> dict[str, Any]:
        """Return what the head's file says of its training, the figures excepted."""
        facts = {
            "decoder": self.variant,
            "version": __version__,
            "recipe": asdict(job.recipe),
            "parameters": sum(p.numel() for p in trainer.network.parameters()),
            "processes": trainer.accelerator.num_processes,
            ENVIRONMENT: trainer.origin[ENVIRONMENT],
            "data_sha256": digest,
            "conversations": len(conversations),
            "answer_tokens": sum(c.answer_tokens() for c in conversations),
            "tokens_seen": trainer.seen,
            "command": shlex.join(["fspad-bench", *sys.argv[1:]]),
        }
        if initial is not None:
            inherited = {name: initial.facts.get(name) for name in INHERITED}
            facts["initial"] = {"sha256": initial.sha256, **inherited}
        return facts


EAGLE = NetworkTrainer("eagle")
FSPAD = NetworkTrainer("fspad")
FEATURE_SAMPLING = NetworkTrainer("feature-sampling")
PARTIAL_ALIGNMENT = NetworkTrainer("partial-alignment")
WIDE = NetworkTrainer("wide")

# HASS's training of FSPAD's network: three levels on the network's own features
UNROLLED_FSPAD = NetworkTrainer("fspad", Recipe(unroll=3, top_weight=1.0))

# EAGLE-3 has no feature loss; published heads are unrolled by seven levels
UNROLLED_TOKENS = Recipe(feature_weight=0.0, logit_weight=1.0, noise=0.0, unroll=4, decay=0.8)
EAGLE3 = NetworkTrainer("eagle3", UNROLLED_TOKENS)
FSPAD3 = NetworkTrainer("fspad3", UNROLLED_TOKENS)

# Chimera learns from the target's distribution; its own code, from the text's tokens alone
SOFT_TOKENS = replace(UNROLLED_TOKENS, decay=1.0)
CHIMERA = NetworkTrainer("chimera", SOFT_TOKENS)
CHIMERA_HARD = NetworkTrainer("chimera", replace(SOFT_TOKENS, logit_weight=0.0, token_weight=1.0))
MEDUSA = NetworkTrainer("medusa", UNROLLED_TOKENS)

# a language model learns the target's distribution, from the layers of the target it begins with
DRAFT_MODEL = NetworkTrainer("draft_model", replace(SOFT_TOKENS, unroll=1))


def shape_of(
    target: TransformersTarget, variant: str, layers: int | None, initial: Head | None = None
) -> Shape:
    """Return the shape that is trained. Raises BenchError for a number of layers it cannot have."""
    if initial is not None:
        shape = initial.network.shape
        if layers not in (None, shape.layers):
            raise BenchError(f"the initial head has {shape.layers} layers", "leave --layers out")
        return shape
    shape = architecture(variant).shape_for(target.config)
    if layers is None:
        return shape
    most = target.config.num_hidden_layers - 1
    if not shape.layers:
        raise BenchError(f"{variant} has a single layer", "leave --layers out")
    if not 0 < layers <= most:
        raise BenchError(
            f"{target.name} has {most + 1} layers: a draft model of {layers} is no smaller",
            f"give --layers a number from 1 to {most}",
        )
    return replace(shape, layers=layers)


def initial_network(
    target: TransformersTarget,
    variant: str,
    seed: int,
    initial: Head | None = None,
    layers: int | None = None,
) -> HeadNetwork:
    """Return the float32 network that training starts from, on the target's device.

    It is a copy of the head `initial`, or a network of the variant with random weights that follow
    from `seed`; one that is made of the target's layers begins as they are.
    """
    if initial is not None:
        return copy.deepcopy(initial.network).to(torch.float32).requires_grad_(True)
    torch.manual_seed(seed)
    shape = shape_of(target, variant, layers)
    network = architecture(variant).build(shape, target).to(target.device, torch.float32)
    network.start(target)
    return network


def _check_own_head(job: TrainingJob, initial: Head | None) -> None:
    """Raise BenchError where a draft vocabulary is asked for that the initial head's own LM head
    has no rows for.
    """
    if initial is None or initial.network.lm_head is None:
        return
    if job.recipe.vocabulary == "prompt" or job.draft_vocabulary is not None:
        raise BenchError(
            f"{job.initial} has an LM head of its own, for the {len(initial.vocabulary)} tokens "
            "of its draft vocabulary alone",
            "train it with --vocabulary head and without --draft-vocabulary",
        )


def _sha256(initial: Head | None) -> str:
    return initial.sha256 if initial else ""


def _vocabulary(
    job: TrainingJob,
    target: TransformersTarget,
    conversations: Sequence[Conversation],
    initial: Head | None,
) -> Tensor:
    """Return the draft vocabulary `[S]`.

    The initial head's, unless a size is given: then the most frequent tokens of the answers.
    """
    if initial is not None and job.draft_vocabulary is None:
        return initial.vocabulary.cpu()
    size = job.draft_vocabulary or VOCABULARY_SIZE
    return frequent_tokens(conversations, size, target.config.vocab_size)


def _features(
    job: TrainingJob,
    target: TransformersTarget,
    files: Sequence[DataFile],
    max_length: int,
    accelerator: Accelerator,
    capture: Sequence[int],
) -> Features:
    """Return the features that the recipe supervises, computed live or once for all processes."""
    if job.recipe.supervise == "all":
        files = [DataFile(path, [c.whole() for c in own]) for path, own in files]
    if job.live:
        return LiveFeatures(target, all_conversations(files), capture)
    with accelerator.main_process_first():
        return cached_features(target, files, max_length, capture)


def _save(trainer: Trainer, vocabulary: Tensor, facts: dict[str, Any], output: Path) -> Trained:
    """Measure and write the head in the main process; the others wait for it."""
    figures: dict[str, float | None] = {}
    if trainer.accelerator.is_main_process:
        figures = trainer.evaluate()
        facts |= {"held_out": figures, "calibration": trainer.calibrate().facts()}
        target = trainer.target
        Head(trainer.network, vocabulary, target.name, target.identity, facts).save(output)
    trainer.accelerator.wait_for_everyone()
    return Trained(output, figures)
