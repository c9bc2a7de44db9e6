"""Figures of a network in training, measured on held-out conversations.

- Losses, top-1 agreement and the draft vocabulary's ceiling, by teacher forcing.
- Tokens per step of real decoding on a few prompts.
- Calibration of the draft's confidences at each depth, which a trained head carries.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.draft_model import DraftModel
from fspad_bench.drafts.drafter import FIXED_DEPTH, FIXED_NODES, HeadDrafter
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftOutput
from fspad_bench.drafts.sizing.calibration import Calibration, Curve, fit
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.feature_store import by_length
from fspad_bench.training.features import Features, supervised_count
from fspad_bench.training.losses import Losses
from fspad_bench.training.objective import Inputs, Objective, load_inputs
from fspad_bench.training.precision import autocast

PROBES = 8
PROBE_TOKENS = 64
DEPTHS = 4
CHILDREN = 4
CALIBRATION_POSITIONS = 20_000
BATCH_TOKENS = 2048
MOST_TOKENS = 100_000  # of the held-out conversations; more would cost more than they tell


class HeldOut:
    """The held-out conversations of a data set, of which `MOST_TOKENS` tokens are measured."""

    def __init__(
        self, target: TransformersTarget, features: Features, vocabulary: Vocabulary
    ) -> None:
        self.target = target
        self.features = features
        self.vocabulary = vocabulary
        self.sequences = [s for s, c in enumerate(features.conversations) if c.held_out]
        totals = np.cumsum([features.lengths[s] for s in self.sequences])
        count = int(np.searchsorted(totals, MOST_TOKENS, side="right"))
        self.measured = self.sequences[: max(1, count)]

    @torch.no_grad()
    def figures(self, objective: Objective) -> dict[str, float | None]:
        """Return losses, agreement, the vocabulary's mass and ceiling, and tokens per step.

        The ceiling is the share of positions at which the draft can propose the target's first
        choice.
        """
        objective.eval()
        losses = []
        weights = []
        in_vocabulary = []
        for group in self._groups():
            inputs = self._inputs(group, objective)
            with autocast(self.target.device):
                _, own = objective(inputs)
            losses.append([float(x) for x in own])
            weights.append(supervised_count(self.features, group))
            in_vocabulary.append(inputs.choice >= 0)
        mean: Losses[float] = Losses(*np.average(losses, axis=0, weights=weights).tolist())
        return {
            "feature_loss": mean.feature,
            "logit_loss": mean.logit,
            "agreement": mean.agreement,
            "vocabulary_mass": mean.mass,
            "vocabulary_ceiling": float(torch.cat(in_vocabulary).float().mean()),
            "tokens_per_step": self.tokens_per_step(objective),
        }

    def tokens_per_step(self, objective: Objective) -> float | None:
        """Decode a few prompts greedily with a fixed tree; return the tokens per step.

        Return None where no prompt fits the context.
        """
        network = copy.deepcopy(objective.network).to(self.target.dtype)
        network = network.eval().requires_grad_(False)
        facts = {"recipe": asdict(objective.recipe)}
        ids = self.vocabulary.base_ids
        head = Head(network, ids, self.target.name, self.target.identity, facts)
        drafter = drafter_of(self.target, head, objective.recipe.vocabulary)
        limit = Limit(PROBE_TOKENS, self.target.stop_ids)
        tokens = 0
        steps = 0
        for s in self.measured[:: max(1, len(self.measured) // PROBES)][:PROBES]:
            conversation = self.features.conversations[s]
            last_answer, _ = conversation.answers[-1]
            prompt = conversation.tokens[:last_answer]
            if len(prompt) + PROBE_TOKENS <= self.target.max_length:
                generation = generate(self.target, drafter, Sampler(), prompt, limit)
                tokens += sum(generation.committed)
                steps += generation.forwards
        return tokens / steps if steps else None

    @torch.no_grad()
    def calibration(self, objective: Objective) -> Calibration:
        """Fit how often proposed children are chosen, at each depth, greedy and at T = 1."""
        objective.eval()
        observations = _Observations()
        seen = 0
        groups = self._groups()
        # groups are ordered by length; a random order measures all lengths
        for number in np.random.default_rng(0).permutation(len(groups)):
            group = groups[number]
            inputs = self._inputs(group, objective)
            with autocast(self.target.device):
                depths = objective.network.shape.levels or DEPTHS
                levels = objective.network.unrolled(inputs.e, inputs.f, min(depths, DEPTHS))
            draft_head = objective.network.head_rows(objective.lm_head, inputs.vocabulary)
            self._observe(observations, levels, inputs, draft_head, seen)
            seen += int(inputs.batch.supervised.sum())
            if seen > CALIBRATION_POSITIONS:
                break
        return observations.calibration()

    def _observe(
        self,
        observations: _Observations,
        levels: list[DraftOutput],
        inputs: Inputs,
        draft_head: Tensor,
        first: int,
    ) -> None:
        """Record which children of every level's drafts the target chooses.

        draft_head `[S, d]`: over the draft vocabulary. `first` is the number of positions seen in
        earlier batches.
        """
        batch = inputs.batch
        supervised = batch.supervised[:, :-1]
        position = torch.arange(supervised.shape[1], device=supervised.device)
        index = self.vocabulary.index(inputs.vocabulary)
        for level, output in enumerate(levels):
            reached = supervised & (position >= level)
            if not reached.any():
                continue
            next_features = batch.features[:, 1:][reached].to(self.target.dtype)
            target_logits = self.target.lm_head(next_features).float()
            h_logit = output.h_logit[reached].to(draft_head.dtype)
            draft_logits = F.linear(h_logit, draft_head).float()
            noise = self._noise(first, len(target_logits))
            draft_noise = noise[:, inputs.vocabulary]
            zero = torch.zeros(())
            for greedy, own, target in ((True, zero, zero), (False, draft_noise, noise)):
                probabilities = (draft_logits + own).softmax(-1)
                q, children = probabilities.topk(min(CHILDREN, draft_logits.shape[-1]), dim=-1)
                choice = (target_logits + target).argmax(-1)
                proposable = self.vocabulary.covers(choice, batch.ids, reached)
                chosen = (children == index[choice][:, None]) & proposable[:, None]
                observations.add(level, greedy, q, chosen)

    def _inputs(self, group: list[int], objective: Objective) -> Inputs:
        network = objective.network
        return load_inputs(self.target, self.features, group, self.vocabulary, network)

    def _groups(self) -> list[list[int]]:
        lengths = [self.features.lengths[s] for s in self.measured]
        return [[self.measured[i] for i in group] for group in by_length(lengths, BATCH_TOKENS)]

    def _noise(self, first: int, count: int) -> Tensor:
        """Return the sampler's noise at `count` positions over the target's ids, `[N, V]`."""
        sampler = Sampler(1.0, stream="calibration")
        tokens = torch.arange(self.vocabulary.size, device=self.target.device)
        return torch.stack([sampler.noise(first + n, tokens) for n in range(count)])


def drafter_of(target: TransformersTarget, head: Head, vocabulary: str) -> Drafter:
    """Return a drafter of this head: a small fixed tree, the same for all kinds of networks."""
    if head.network.reads_states:
        return HeadDrafter(target, head, vocabulary=vocabulary)
    return DraftModel(
        target, model=head, nodes=FIXED_NODES, length=FIXED_DEPTH, top_k=CHILDREN, stop=0.0
    )


class _Observations:
    """Probabilities of proposed children and which were chosen, by (level, greedy)."""

    def __init__(self) -> None:
        self.q: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)
        self.chosen: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)

    def add(self, level: int, greedy: bool, q: Tensor, chosen: Tensor) -> None:
        """Add the children of N positions, `[N, K]` each."""
        self.q[level, greedy].append(q)
        self.chosen[level, greedy].append(chosen)

    def calibration(self) -> Calibration:
        """Fit a curve for every level; the default calibration where nothing was observed."""
        if not self.q:
            return Calibration()
        depth = 1 + max(level for level, _ in self.q)
        return Calibration(
            greedy=tuple(self._curve(level, True) for level in range(depth)),
            sampled=tuple(self._curve(level, False) for level in range(depth)),
        )

    def _curve(self, level: int, greedy: bool) -> Curve:
        q = torch.cat(self.q[level, greedy]).cpu().numpy()
        chosen = torch.cat(self.chosen[level, greedy]).cpu().numpy()
        return fit(q, chosen)
