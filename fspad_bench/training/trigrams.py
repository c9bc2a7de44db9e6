"""The trainer of ADED's table, as registered in the group `fspad_bench.trainers`.

    fspad-bench train --decoder aded --data conversations.jsonl --output tables/mine

It counts the tri-grams of the conversations that are learned; held-out ones are for its figures.
Building takes seconds, so an interrupted one starts again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fspad_bench import __version__
from fspad_bench.drafts.trigrams import ABOUT, VALUES, TrigramTable, count_trigrams
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.chat import vocabulary_hash
from fspad_bench.training.conversations import (
    Conversation,
    all_conversations,
    data_hash,
    nothing_learned,
    read_files,
)
from fspad_bench.training.job import Trained, TrainingJob
from fspad_bench.training.objective import Recipe
from fspad_bench.util.errors import BenchError

Figures = dict[str, float | None]
OF_A_TABLE = {"supervise", "seed"}  # of a recipe; `seed` is that of `--data self`


@dataclass(frozen=True)
class TrigramTrainer:
    """Builds a table of tri-grams."""

    def check(self, job: TrainingJob, target: TransformersTarget) -> None:
        """Raise BenchError for settings that a table has no use for, or no place to write to."""
        if job.initial is not None:
            raise BenchError("a tri-gram table starts from no head", "leave --init out")
        if job.draft_vocabulary is not None:
            raise BenchError(
                "a tri-gram table holds every token of its data", "leave --draft-vocabulary out"
            )
        if job.layers is not None:
            raise BenchError("a tri-gram table has no layers", "leave --layers out")
        if idle := _idle(job):
            flag = f"--{idle[0].replace('_', '-')}"
            raise BenchError(
                f"a tri-gram table is counted, not trained: {flag} does nothing",
                f"leave {flag} out",
            )
        if target.tokenizer is None:
            raise BenchError(
                f"{target.name} has no tokenizer to build a table for", "name another --target"
            )
        for name in (ABOUT, VALUES):
            if (job.output / name).is_dir():
                raise BenchError(f"{job.output / name} is a folder", "give another --output")

    def train(
        self,
        job: TrainingJob,
        target: TransformersTarget,
        data: Sequence[Path],
        accelerator: Accelerator,
    ) -> Trained:
        """Count the tri-grams of `data` in the main process; write the table to `job.output`."""
        figures: Figures = {}
        if accelerator.is_main_process:
            figures = _build(job, target, data)
        accelerator.wait_for_everyone()
        return Trained(job.output, figures)


ADED = TrigramTrainer()


def _idle(job: TrainingJob) -> list[str]:
    """Return the settings of a job that are not the default and that no table depends on."""
    usual = asdict(Recipe())
    given = [name for name, value in asdict(job.recipe).items() if value != usual[name]]
    return [name for name in given if name not in OF_A_TABLE] + ["live"] * job.live


def _build(job: TrainingJob, target: TransformersTarget, data: Sequence[Path]) -> Figures:
    size = target.config.vocab_size
    conversations = all_conversations(
        read_files(data, size, min(job.max_length, target.max_length))
    )
    learned = [c for c in conversations if not c.held_out]
    if not learned:
        raise nothing_learned(len(conversations))
    if job.recipe.supervise == "all":
        learned = [conversation.whole() for conversation in learned]
    table = count_trigrams(
        ((c.tokens, c.answers) for c in learned), size, _facts(job, target, data, learned)
    )
    figures = _held_out(table, [c for c in conversations if c.held_out])
    table.facts["held_out"] = figures
    table.save(job.output)
    return figures


def _facts(
    job: TrainingJob,
    target: TransformersTarget,
    data: Sequence[Path],
    learned: Sequence[Conversation],
) -> dict[str, Any]:
    """Return what the table's file says of its origin."""
    assert target.tokenizer is not None
    return {
        "version": __version__,
        "target": target.name,
        "tokenizer": vocabulary_hash(target.tokenizer),
        "vocabulary_size": target.config.vocab_size,
        "data_sha256": data_hash(data),
        "conversations": len(learned),
        "tokens": sum(conversation.answer_tokens() for conversation in learned),
        "supervise": job.recipe.supervise,
        "max_length": job.max_length,
        "command": shlex.join(["fspad-bench", *sys.argv[1:]]),
    }


def _held_out(table: TrigramTable, conversations: Sequence[Conversation]) -> Figures:
    """Return how often held-out answers go on with a listed successor of a pair, and the first."""
    listed = 0
    first = 0
    total = 0
    for conversation in conversations:
        tokens = conversation.tokens
        for start, end in conversation.answers:
            for place in range(max(2, start), end):
                successors = list(table.after(tokens[place - 2], tokens[place - 1]))
                total += 1
                listed += tokens[place] in successors
                first += tokens[place] == next(iter(successors), None)
    return {
        "listed": listed / total if total else None,
        "first": first / total if total else None,
    }
