"""The use case of `train`: from settings to something trained, resumable at every stage.

`train --decoder NAME` asks the entry-point group `fspad_bench.trainers` for the decoder's trainer,
so that any package can register one: of a draft network, an n-gram table, a draft model. What all
of them share happens here: devices, the target, the data, and exclusive use of the output folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator

from fspad_bench.distill import overlap
from fspad_bench.distill.conversations import tokenizer_of
from fspad_bench.distill.lock import exclusive
from fspad_bench.distill.overlap import Prompts
from fspad_bench.distill.shards import MANIFEST, check_shards
from fspad_bench.distill.writer import SHARD, distill_own
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models import load
from fspad_bench.models.chat import vocabulary_hash
from fspad_bench.training.conversations import data_files
from fspad_bench.training.objective import Recipe
from fspad_bench.training.trainer import accelerator_for
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.paths import user_path
from fspad_bench.util.text import json_file

SELF = "self"
SMALLEST_SHARD = 16


@dataclass(frozen=True)
class TrainingJob:
    """Settings of a training run.

    - `decoder`: name in the group `fspad_bench.trainers`, or `package.module:attribute`.
    - `data`: JSONL files, folders of `distill`, or `self` for the target's own conversations, of
      which `tokens` answer tokens are generated into the folder `data` of `output`.
    - `prompts`: evaluation prompts for the overlap report of `self`, `task@source` -> texts; empty
      for no report.
    - `draft_vocabulary`: number of tokens a draft can propose; None for the trainer's default.
    - `layers`: of a draft model; None for the trainer's default.
    - `initial`: a head whose weights training starts with.
    - `live`: compute features at every step; keep none on disk.
    - `device`: as in `models.load.load_target`; `dtype`: by default `models.load.training_dtype`.
      Several processes choose their own devices.
    """

    decoder: str
    data: Sequence[str]
    output: Path
    target: str = "smollm2-135m"
    recipe: Recipe = field(default_factory=Recipe)
    tokens: int = 400_000
    prompts: Prompts = field(default_factory=dict)
    max_length: int = 2048
    draft_vocabulary: int | None = None
    layers: int | None = None
    initial: Path | None = None
    live: bool = False
    checkpoint_every: float = 120.0
    dtype: str | None = None
    device: str = "auto"
    threads: int | None = None


class Trained(NamedTuple):
    """The output folder, and figures to print: empty in all processes but the main one."""

    folder: Path
    figures: dict[str, float | None]


class DecoderTrainer(Protocol):
    """An object of the group `fspad_bench.trainers`.

    It may have a `recipe`, the defaults of its settings (`default_recipe`). Neither method is
    called unless the main process holds the lock of `job.output`.
    """

    def check(self, job: TrainingJob, target: TransformersTarget) -> None:
        """Raise BenchError for settings that cannot work, before any data are generated."""

    def train(
        self,
        job: TrainingJob,
        target: TransformersTarget,
        data: Sequence[Path],
        accelerator: Accelerator,
    ) -> Trained:
        """Train on `data`, write the result to `job.output`, and continue an unfinished run there.

        The main process alone writes.
        """


def run(job: TrainingJob) -> Trained:
    """Train, or continue an unfinished training. Raise BenchError for settings that do not fit."""
    trainer = trainer_of(job.decoder)
    if job.threads:
        torch.set_num_threads(job.threads)
    device, accelerator = _choose_device(job.device)
    lock: AbstractContextManager[None] = nullcontext()
    if accelerator.is_main_process:
        lock = exclusive(job.output)
    with lock:
        dtype = job.dtype or load.training_dtype(job.target, device)
        target = load.load_target(job.target, device=device, dtype=dtype)
        trainer.check(job, target)
        data = [user_path(name) for name in job.data if name != SELF]
        data_files(data)
        _check_tokenizer(data, target)
        if SELF in job.data:
            data.append(_distill(job, target, accelerator))
        trained = trainer.train(job, target, data, accelerator)
    accelerator.end_training()
    return trained


def trainer_of(decoder: str) -> DecoderTrainer:
    """Return the trainer of a decoder. Raise BenchError with the nearest name for others."""
    if decoder not in registry.claims(registry.TRAINERS) and ":" not in decoder:
        known = registry.names(registry.TRAINERS)
        raise BenchError(f"no draft network to train for '{decoder}'", near(decoder, known))
    return registry.resolve(registry.TRAINERS, decoder)


def default_recipe(decoder: str) -> Recipe:
    """Return the settings that a decoder is trained with unless others are given."""
    recipe = getattr(trainer_of(decoder), "recipe", None)
    return recipe if isinstance(recipe, Recipe) else Recipe()


def _choose_device(name: str) -> tuple[str, Accelerator]:
    """Return this process's device, and the accelerator that connects it with the others."""
    device = load.device_named(name)
    accelerator = accelerator_for(device)
    several = accelerator.num_processes > 1
    if several and name not in ("auto", accelerator.device.type):
        raise BenchError("several processes choose their own devices", "leave --device out")
    if several or name == "auto":
        device = str(accelerator.device)
    return device, accelerator


def _distill(job: TrainingJob, target: TransformersTarget, accelerator: Accelerator) -> Path:
    """Generate the target's own conversations in the main process; the others wait for it."""
    folder = job.output / "data"
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            # about eight files, so that an interruption costs little
            shard = max(SMALLEST_SHARD, min(SHARD, job.tokens // 1000))
            distill_own(target, folder, tokens=job.tokens, seed=job.recipe.seed, shard=shard)
            if job.prompts:
                overlap.report(folder, tokenizer_of(target), job.prompts)
    return folder


def _check_tokenizer(data: Sequence[Path], target: TransformersTarget) -> None:
    """Raise BenchError for a damaged data set, or one of another tokenizer's token ids."""
    for folder in data:
        manifest = folder / MANIFEST
        if not manifest.is_file() or target.tokenizer is None:
            continue
        facts = json_file(manifest, "distill the data set again")
        if not isinstance(facts, dict):
            raise BenchError(f"{manifest} is damaged", "distill the data set again")
        check_shards(folder, facts)
        if facts.get("tokenizer", "") not in ("", vocabulary_hash(target.tokenizer)):
            raise BenchError(
                f"{folder} is of {facts.get('target')}, whose tokenizer is not {target.name}'s",
                "distill a data set from this target",
            )
