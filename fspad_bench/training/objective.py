"""The objective of a training step, and the recipe that sets its weights.

    loss = feature_weight * L_v + logit_weight * L_p + top_weight * L_top + token_weight * L_t

The symbols are those of `losses`. By teacher forcing the network reads the target's features. With
`unroll` = k > 1 the loss is the mean over k draft levels, each of which reads the outputs of the
one before (HASS, EAGLE-3); level j = 0, 1, ... weighs `decay`^j. It has no draft before position
j: where the texts of a step end earlier, it adds 0.

Where a network reads other hidden states than the final one, L_v compares h_feature with what it
would read of the next position, f_{i+1}, without changing that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fspad_bench.drafts.network import DraftOutput, HeadNetwork
from fspad_bench.drafts.shape import MOST_LEVELS
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.feature_store import pad
from fspad_bench.training.features import Batch, Features
from fspad_bench.training.losses import Losses, Wanted, losses, wanted
from fspad_bench.training.precision import product_type
from fspad_bench.util.errors import BenchError, near

TOP_K = 10
SUPERVISE = ("answers", "all")
VOCABULARIES = ("prompt", "head")
LARGEST = {"epochs": 10_000, "batch_tokens": 2**24, "lr": 1.0, "unroll": MOST_LEVELS, "decay": 1.0}
"""Bounds of settings: beyond them a training only runs out of memory, or out of its senses."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run. A checkpoint resumes under the same ones only, `epochs` excepted.

    - `supervise`: learn the assistant's tokens, as published, or all tokens.
    - `vocabulary`: the draft proposes the head's tokens and those of the text, or the head's alone.
    - `unroll`: draft levels; `decay`: the weight of each beside the one before it.
    - `noise`: scale of the uniform noise on input features; `clip`: bound of gradient values.
    """

    supervise: str = "answers"
    epochs: float = 8.0
    batch_tokens: int = 2048
    lr: float = 1e-3
    warmup: int = 200
    feature_weight: float = 1.0
    logit_weight: float = 0.1
    top_weight: float = 0.0
    token_weight: float = 0.0
    unroll: int = 1
    decay: float = 1.0
    noise: float = 0.2
    clip: float = 0.5
    seed: int = 0
    vocabulary: str = "prompt"

    def __post_init__(self) -> None:
        if self.supervise not in SUPERVISE:
            raise BenchError(
                f"cannot supervise '{self.supervise}'", near(self.supervise, SUPERVISE)
            )
        if self.vocabulary not in VOCABULARIES:
            raise BenchError(
                f"unknown vocabulary '{self.vocabulary}'", near(self.vocabulary, VOCABULARIES)
            )
        for name, most in LARGEST.items():
            if not 0 < getattr(self, name) <= most:
                raise BenchError(
                    f"{name} is {getattr(self, name)}",
                    f"give {name} a number above 0, at most {most:g}",
                )

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step: linear warm-up, then linear decay to 0."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup))
        decay = (steps - step) / max(1, steps - self.warmup)
        return self.lr * min(warmup, decay)


class Inputs(NamedTuple):
    """The network's inputs of a batch, and what it is compared with.

    - `e [B, L - 1, d]`, `f [B, L - 1, k d]`: embeddings of the next tokens, and what the network
      reads of the target; of a language model, the embeddings of the tokens themselves.
    - `vocabulary [S]`: the ids that a draft can propose for these texts.
    - `choice [N]`: the target's first choices as indices of the vocabulary, -1 where a draft could
      not propose it; `token [N]`: the text's own tokens likewise.
    """

    e: Tensor
    f: Tensor
    batch: Batch
    vocabulary: Tensor
    choice: Tensor
    token: Tensor


class Objective(nn.Module):
    """A draft network with the loss of a batch.

    `lm_head [V, d]` is the target's, on the network's device.
    """

    def __init__(self, network: HeadNetwork, lm_head: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.lm_head = lm_head

    def forward(
        self, inputs: Inputs, shares: Sequence[float] | None = None
    ) -> tuple[Tensor, Losses[Tensor]]:
        """Return the loss, and the losses of the first draft level.

        `shares`: for each level, the part of the step's positions that these inputs hold, where
        several processes share it; their losses add up to the step's.
        """
        levels = self._levels(inputs)
        if shares is not None:
            parts = zip(shares, levels, strict=True)
            levels = [Losses(*(share * own for own in level)) for share, level in parts]
        mean = self._mean(levels)
        loss = (
            self.recipe.feature_weight * mean.feature
            + self.recipe.logit_weight * mean.logit
            + self.recipe.top_weight * mean.top
            + self.recipe.token_weight * mean.token
        )
        return loss, levels[0]

    def _mean(self, levels: list[Losses[Tensor]]) -> Losses[Tensor]:
        """Return the losses of all levels, each weighed `decay` times the one before."""
        weights = [self.recipe.decay**level for level in range(len(levels))]
        weighed = [[w * own for own in parts] for w, parts in zip(weights, levels, strict=True)]
        return Losses(*(sum(parts) / sum(weights) for parts in zip(*weighed, strict=True)))

    def _levels(self, inputs: Inputs) -> list[Losses[Tensor]]:
        """Return the losses of each draft level; outside training that is the first level alone."""
        supervised = inputs.batch.supervised[:, :-1]
        count = self.recipe.unroll if self.training else 1
        lm_head = self.lm_head[inputs.vocabulary]
        target = self._wanted(inputs, lm_head)
        if count == 1:
            output = self.network(inputs.e, inputs.f, supervised)
            return [self._losses(output, inputs, supervised, target, lm_head)]
        position = torch.arange(supervised.shape[1], device=supervised.device)
        levels = []
        for level, output in enumerate(self.network.unrolled(inputs.e, inputs.f, count)):
            # a position with fewer than `level` positions before it has no draft of that depth
            reached = supervised & (position >= level)
            own = DraftOutput(output.h_logit[reached], output.h_feature[reached])
            of_level = target.at(reached[supervised]) if level else target
            levels.append(self._losses(own, inputs, reached, of_level, lm_head))
        return levels

    def _wanted(self, inputs: Inputs, lm_head: Tensor) -> Wanted:
        """Return what the target says at the supervised positions, which all levels learn."""
        batch = inputs.batch
        return wanted(
            batch.features[:, 1:][batch.supervised[:, :-1]],
            batch.normaliser,
            inputs.choice,
            lm_head,
            inputs.token if self.recipe.token_weight else None,
        )

    def _losses(
        self,
        output: DraftOutput,
        inputs: Inputs,
        positions: Tensor,
        target: Wanted,
        lm_head: Tensor,
    ) -> Losses[Tensor]:
        """Return the losses at `positions [B, L - 1]`, N of the supervised ones.

        output `[N, d]` each, target of N positions, lm_head `[S, d]`.
        """
        with torch.no_grad():
            goal = self.network.read(inputs.batch.states[:, 1:][positions])
        own_head = self.network.lm_head
        return losses(
            output.h_logit,
            output.h_feature,
            goal,
            target,
            lm_head if own_head is None else own_head.weight,
            top_k=min(TOP_K, len(lm_head)) if self.recipe.top_weight else 0,
        )


def load_inputs(
    target: TransformersTarget,
    features: Features,
    group: Sequence[int],
    vocabulary: Vocabulary,
    network: HeadNetwork,
    step: Sequence[int] | None = None,
) -> Inputs:
    """Load these sequences to the target's device, as this network reads them, in the type of its
    products.

    The vocabulary is the draft's and, if that includes tokens of the text, those of all sequences
    of the `step`: where several processes share it, `group` is a part.
    """
    numbers = product_type(target.device)
    batch = features.load(list(group)).to(target.device, numbers)
    texts = pad([features.conversations[s].tokens for s in step or group])
    ids = vocabulary.of(texts.to(target.device))
    rows = batch.supervised[:, :-1]
    index = vocabulary.index(ids)
    following = batch.ids.roll(-2, dims=1)[:, :-1][rows]
    choice, token = (
        torch.where(vocabulary.covers(tokens, batch.ids, rows), index[tokens], -1)
        for tokens in (batch.choice, following)
    )
    e = target.embedding(batch.ids).to(torch.bfloat16).to(numbers).detach()
    f = (batch.states if network.reads_states else e)[:, :-1]
    return Inputs(e[:, 1:], f, batch, ids, choice, token)


def uniform_noise(
    shape: torch.Size,
    lengths: Sequence[int],
    scale: float,
    keys: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Tensor:
    """Return (U(0, 1) - 1/2) * scale * 512 / L for sequences of length L, `[B, L, d]`.

    This is EAGLE's published noise. Each sequence's follows from its key, not from its batch.
    """
    noise = torch.zeros(shape, device=device)
    generator = torch.Generator(device)
    for own, length, key in zip(noise, lengths, keys, strict=True):
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        generator.manual_seed(seed)
        bound = 0.5 * scale * 512 / length
        own[:length].uniform_(-bound, bound, generator=generator)
    return noise
