"""What a network in training is worth on the conversations that it never learns.

Losses, top-1 agreement and the draft vocabulary's ceiling by teacher forcing; tokens a step of real decoding on a few
prompts; and the calibration of the draft's confidences at each depth, which a trained head carries.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.sizing.calibration import Calibration, fit
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.features import Features, by_length
from fspad_bench.training.losses import Losses
from fspad_bench.training.objective import Objective, inputs

PROBES = 8
PROBE_TOKENS = 64
DEPTHS = 4
CHILDREN = 4
CALIBRATION_ROWS = 20_000
BATCH_TOKENS = 2048
MOST_TOKENS = 100_000  # a larger data set holds out more than it is worth to look at


class HeldOut:
    """The conversations of a data set that are never learned; the first of them are measured on."""

    def __init__(self, target: TransformersTarget, features: Features, sayable: Vocabulary) -> None:
        self.target = target
        self.features = features
        self.sayable = sayable
        self.sequences = [
            s for s, conversation in enumerate(features.conversations) if conversation.held_out
        ]
        reach = np.cumsum([features.lengths[s] for s in self.sequences])
        self.measured = self.sequences[
            : max(1, int(np.searchsorted(reach, MOST_TOKENS, side="right")))
        ]

    @torch.no_grad()
    def figures(self, objective: Objective) -> dict[str, float | None]:
        """L_v, L_p and top-1 agreement, the draft vocabulary's share and its ceiling, and tokens a step."""
        objective.eval()
        found = []
        weights = []
        inside = []
        for group in self._groups():
            e, f, batch = inputs(self.target, self.features, group, self.sayable)
            with torch.autocast(self.target.device.type, torch.bfloat16):
                found.append([float(x) for x in objective(e, f, batch)[1]])
            weights.append(supervised(self.features, group))
            inside.append(batch.choice >= 0)
        mean = Losses(*np.average(found, axis=0, weights=weights).tolist())
        return {
            "feature_loss": mean.feature,
            "logit_loss": mean.logit,
            "agreement": mean.agreement,
            "vocabulary_mass": mean.mass,
            "vocabulary_ceiling": float(torch.cat(inside).float().mean()),
            "tokens_per_step": self.tokens_per_step(objective),
        }

    def tokens_per_step(self, objective: Objective) -> float | None:
        """Greedy, on the prompts of a few conversations, with a fixed tree; None where none fits the context."""
        network = (
            copy.deepcopy(objective.network).to(self.target.dtype).eval().requires_grad_(False)
        )
        head = Head(network, self.sayable.usual, self.target.name, self.target.identity)
        drafter = HeadDrafter(self.target, head, vocabulary=objective.recipe.vocabulary)
        limit = Limit(PROBE_TOKENS, self.target.stop_ids)
        made = []
        for s in self.measured[:: max(1, len(self.measured) // PROBES)][:PROBES]:
            conversation = self.features.conversations[s]
            prompt = conversation.tokens[: conversation.answers[-1][0]]
            if len(prompt) + PROBE_TOKENS <= self.target.max_length:
                made.append(generate(self.target, drafter, Sampler(), prompt, limit))
        forwards = sum(found.forwards for found in made)
        return sum(sum(found.committed) for found in made) / forwards if forwards else None

    @torch.no_grad()
    def calibration(self, objective: Objective) -> Calibration:
        """How often the children that the draft proposes are right, at each depth, greedy and at temperature 1."""
        objective.eval()
        seen: dict[tuple[int, bool], list[tuple[Tensor, Tensor]]] = {}
        rows_seen = 0
        groups = self._groups()
        for number in np.random.default_rng(0).permutation(
            len(groups)
        ):  # they are ordered by length
            e, f, batch = inputs(self.target, self.features, groups[number], self.sayable)
            index = self.sayable.index(batch.vocabulary)
            lm_head = objective.lm_head[batch.vocabulary]
            with torch.autocast(self.target.device.type, torch.bfloat16):
                levels = objective.network.unrolled(e, f, DEPTHS)
            reach = torch.arange(e.shape[1], device=e.device)
            for level, out in enumerate(levels):
                rows = batch.rows[:, :-1] & (reach >= level)
                if not rows.any():
                    continue
                logits = self.target.lm_head(
                    batch.features[:, 1:][rows].to(self.target.dtype)
                ).float()
                guess = torch.nn.functional.linear(
                    out.h_logit[rows].to(lm_head.dtype), lm_head
                ).float()
                noise = self._noise(rows_seen, len(logits))
                for greedy, added in ((True, torch.zeros(())), (False, noise)):
                    own = added if greedy else added[:, batch.vocabulary]
                    q, children = (
                        (guess + own).softmax(-1).topk(min(CHILDREN, guess.shape[-1]), dim=-1)
                    )
                    choice = (logits + added).argmax(-1)
                    reached = self.sayable.reached(choice, batch.ids, rows)
                    right = (children == index[choice][:, None]) & reached[:, None]
                    seen.setdefault((level, greedy), []).append((q, right))
            rows_seen += int(batch.rows.sum())
            if rows_seen > CALIBRATION_ROWS:
                break
        curves = {
            key: fit(*(torch.cat(part).cpu().numpy() for part in zip(*found, strict=True)))
            for key, found in seen.items()
        }
        if not curves:
            return Calibration()
        deepest = 1 + max(level for level, _ in curves)
        return Calibration(
            *(tuple(curves[level, greedy] for level in range(deepest)) for greedy in (True, False))
        )

    def _groups(self) -> list[list[int]]:
        lengths = [self.features.lengths[s] for s in self.measured]
        return [[self.measured[i] for i in group] for group in by_length(lengths, BATCH_TOKENS)]

    def _noise(self, first: int, rows: int) -> Tensor:
        """The noise of so many positions over the target's vocabulary, as sampling would meet it: `[N, V]`."""
        sampler = Sampler(1.0, stream="calibration")
        tokens = torch.arange(self.sayable.size, device=self.target.device)
        return torch.stack([sampler.noise(first + row, tokens) for row in range(rows)])


def supervised(features: Features, group: Sequence[int]) -> int:
    """Rows with something to learn in these sequences."""
    return sum(end - start - 1 for s in group for start, end in features.conversations[s].answers)
