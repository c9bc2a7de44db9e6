"""What a training step minimises: a recipe's losses of a batch, by teacher forcing or on the draft's own features.

loss = feature_weight * L_v + logit_weight * L_p + top_weight * L_top; with `unroll` > 1 their mean over so many draft
levels, each fed by the one before (HASS, EAGLE-3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fspad_bench.drafts.network import DraftNetwork
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.features import Batch, Features
from fspad_bench.training.losses import Losses, losses

TOP_K = 10


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run; a checkpoint resumes only under the same ones, the number of epochs aside."""

    supervise: str = "answers"  # the assistant's tokens, as published, or all
    epochs: float = 8.0
    batch_tokens: int = 2048
    lr: float = 1e-3
    warmup: int = 200
    feature_weight: float = 1.0
    logit_weight: float = 0.1
    top_weight: float = 0.0
    unroll: int = 1
    noise: float = 0.2
    clip: float = 0.5
    seed: int = 0
    vocabulary: str = "prompt"  # the head's tokens and those of the text, or the head's alone

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step: up in a straight line, then down to zero in another."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * min(rise, (steps - step) / max(1, steps - self.warmup))


class Objective(nn.Module):
    """What a batch costs: the recipe's losses, the mean over `unroll` draft levels."""

    def __init__(self, network: DraftNetwork, lm_head: Tensor, recipe: Recipe) -> None:
        """`lm_head [V, d]` is the target's, on the network's device."""
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.lm_head = lm_head

    def forward(self, e: Tensor, f: Tensor, batch: Batch) -> tuple[Tensor, Losses]:
        """e, f `[B, L - 1, d]`; the batch's choice is an index of its vocabulary, -1 outside it."""
        rows = batch.rows[:, :-1]
        levels = self.recipe.unroll if self.training else 1
        lm_head = self.lm_head[batch.vocabulary]
        if levels == 1:
            found = [self._level(*self.network(e, f, rows), batch, rows, lm_head)]
        else:
            reach = torch.arange(rows.shape[1], device=rows.device)
            found = [
                self._level(out.h_logit[deep], out.h_feature[deep], batch, deep, lm_head)
                for level, out in enumerate(self.network.unrolled(e, f, levels))
                for deep in [rows & (reach >= level)]
            ]
        mean = Losses(*(sum(parts) / len(found) for parts in zip(*found, strict=True)))
        weights = self.recipe
        loss = (
            weights.feature_weight * mean.feature
            + weights.logit_weight * mean.logit
            + weights.top_weight * mean.top
        )
        return loss, found[0]

    def _level(
        self, h_logit: Tensor, h_feature: Tensor, batch: Batch, rows: Tensor, lm_head: Tensor
    ) -> Losses:
        """The losses of these supervised rows `[B, L - 1]`, a subset of the batch's."""
        kept = rows[batch.rows[:, :-1]]
        behind = batch.features[:, 1:][rows]
        top_k = min(TOP_K, len(lm_head)) if self.recipe.top_weight else 0
        return losses(
            h_logit, h_feature, behind, batch.normaliser[kept], batch.choice[kept], lm_head, top_k
        )


def inputs(
    target: TransformersTarget, features: Features, group: Sequence[int], sayable: Vocabulary
) -> tuple[Tensor, Tensor, Batch]:
    """Embeddings e and features f `[B, L - 1, d]` of these sequences, and their batch on the target's device.

    The batch has a vocabulary, the usual tokens and its own; its choice is an index of that, -1 where a draft could not
    say it.
    """
    batch = features.load(list(group))
    ids, given, rows, normaliser, choice = (part.to(target.device) for part in batch[:5])
    said = sayable.of(ids)
    reached = sayable.reached(choice, ids, rows[:, :-1])
    choice = torch.where(reached, sayable.index(said)[choice], -1)
    e = target.embedding(ids[:, 1:]).to(torch.bfloat16).detach()
    return e, given[:, :-1], Batch(ids, given, rows, normaliser, choice, said)


def uniform_noise(
    shape: torch.Size,
    lengths: list[int],
    scale: float,
    keys: list[tuple[int, ...]],
    device: torch.device,
) -> Tensor:
    """(U(0, 1) - 1/2) * scale * 512 / L on each sequence of length L: EAGLE's, as published. `[B, L, d]`.

    Each sequence's noise follows from its key alone, whatever else is in the batch.
    """
    noise = torch.zeros(shape, device=device)
    generator = torch.Generator(device)
    for row, length, key in zip(noise, lengths, keys, strict=True):
        generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        row[:length].uniform_(
            -0.5 * scale * 512 / length, 0.5 * scale * 512 / length, generator=generator
        )
    return noise
