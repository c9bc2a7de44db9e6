"""Training of a draft network as EAGLE and FSPAD publish it, on one device or several.

AdamW (0.9, 0.95), linear warm-up and linear decay to zero, gradient values clipped at 0.5, uniform noise on the input
features scaled by 512 / length, loss = feature_weight * L_v + logit_weight * L_p with 1.0 and 0.1. The target's
embedding and LM head are frozen. By teacher forcing, or with `unroll` > 1 on the draft's own features too (HASS,
EAGLE-3), and with `top_weight` > 0 on the target's likeliest tokens again (HASS).

Batches, noise and initial weights follow from the seed and the step alone, so a run that was killed goes on from its
last checkpoint as if nothing had happened, and several processes, which share each batch between them, learn what one
would have.
"""

from __future__ import annotations

import copy
import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fspad_bench.decoding import Limit, generate
from fspad_bench.drafts.calibration import Calibration, fit
from fspad_bench.drafts.data import Batch, FeatureStore, LiveFeatures, by_length
from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.losses import Losses, losses
from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.errors import BenchError
from fspad_bench.plots import learning_curve
from fspad_bench.progress import Progress
from fspad_bench.sampling import Sampler
from fspad_bench.target import TransformersTarget

HELD_OUT = 33  # of so many conversations one is never learned
SHARDS = 8
TOP_K = 10
PROBES, PROBE_TOKENS = 8, 64
DEPTHS, CHILDREN, CALIBRATION_ROWS = 4, 4, 2000


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run; a checkpoint resumes only under the same ones, the number of epochs aside."""

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

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step: up in a straight line, then down to zero in another."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * min(rise, (steps - step) / max(1, steps - self.warmup))


class Objective(nn.Module):
    """What a batch costs: the recipe's losses, the mean over `unroll` draft levels."""

    def __init__(self, network: DraftNetwork, lm_head: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe
        self.register_buffer("lm_head", lm_head, persistent=False)

    def forward(self, e: Tensor, f: Tensor, batch: Batch) -> tuple[Tensor, Losses]:
        """e, f `[B, L - 1, d]`; the batch's choice is an index of the draft vocabulary, -1 outside it."""
        rows, levels = batch.rows[:, :-1], self.recipe.unroll if self.training else 1
        if levels == 1:
            found = [self._level(*self.network(e, f, rows), batch, rows)]
        else:
            reach = torch.arange(rows.shape[1], device=rows.device)
            found = [
                self._level(out.h_logit[deep], out.h_feature[deep], batch, deep)
                for level, out in enumerate(self.network.unrolled(e, f, levels))
                for deep in [rows & (reach >= level)]
            ]
        mean = Losses(*(sum(parts) / len(found) for parts in zip(*found, strict=True)))
        weights = self.recipe
        loss = weights.feature_weight * mean.feature + weights.logit_weight * mean.logit + weights.top_weight * mean.top
        return loss, found[0]

    def _level(self, h_logit: Tensor, h_feature: Tensor, batch: Batch, rows: Tensor) -> Losses:
        """The losses of these supervised rows `[B, L - 1]`, a subset of the batch's."""
        kept = rows[batch.rows[:, :-1]]
        behind = batch.features[:, 1:][rows]
        top_k = TOP_K if self.recipe.top_weight else 0
        return losses(h_logit, h_feature, behind, batch.mass[kept], batch.choice[kept], self.lm_head, top_k)


class Trainer:
    """A draft network in training on the features of a target's conversations."""

    def __init__(
        self,
        target: TransformersTarget,
        features: FeatureStore | LiveFeatures,
        vocabulary: Tensor,
        shape: Shape,
        recipe: Recipe,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.target, self.features, self.recipe, self.vocabulary = target, features, recipe, vocabulary
        self.accelerator = accelerator or Accelerator(cpu=target.device.type == "cpu")
        self.device = target.device
        self.index = torch.full((target.config.vocab_size,), -1).scatter_(0, vocabulary, torch.arange(len(vocabulary)))
        self.index = self.index.to(self.device)
        torch.manual_seed(recipe.seed)
        self.network = DraftNetwork(shape).to(self.device, torch.float32)
        lm_head = target.lm_head.weight[vocabulary.to(self.device)].detach().to(torch.bfloat16)
        self.objective = self.accelerator.prepare_model(Objective(self.network, lm_head, recipe))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=recipe.lr, betas=(0.9, 0.95))
        self.test = range(HELD_OUT // 2, len(features.lengths), HELD_OUT) or range(1)
        self.learn = [s for s in range(len(features.lengths)) if s not in self.test]
        self.plan = list(self._plan())
        self.step = self.seen = 0

    def _plan(self) -> Iterator[list[int]]:
        """The sequences of every step, an epoch after the other: random shards, each grouped by length."""
        whole, part = divmod(self.recipe.epochs, 1)
        for epoch in range(int(whole) + (part > 0)):
            order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.learn))
            groups = []
            for part_of_it in np.array_split(order, SHARDS):
                shard = [self.learn[i] for i in part_of_it]
                lengths = [self.features.lengths[s] for s in shard]
                groups += [[shard[i] for i in group] for group in by_length(lengths, self.recipe.batch_tokens)]
            shuffled = np.random.default_rng([self.recipe.seed, epoch, 1]).permutation(len(groups))
            kept = len(groups) if epoch < whole else int(part * len(groups))
            yield from (groups[i] for i in shuffled[:kept])

    def run(self, folder: Path, *, checkpoint_every: float, stop_after: int | None = None) -> None:
        """Train to the end of the plan (or `stop_after` steps), with checkpoints every so many seconds."""
        self._resume(folder)
        saved = began = time.monotonic()
        first, recent = self.seen, []
        with Progress("training", len(self.plan), start=self.step, quiet=not self.accelerator.is_main_process) as bar:
            while self.step < len(self.plan) and self.step != stop_after:
                group = self.plan[self.step]
                recent.append(self._learn(group))
                self.seen += sum(self.features.lengths[s] for s in group)
                self.step += 1
                speed = (self.seen - first) / (time.monotonic() - began)
                mean = np.mean(recent[-100:], axis=0)
                bar.advance(note=f"L_v {mean[0]:.4f}  L_p {mean[1]:.3f}  agreement {mean[3]:.3f}  {speed:.0f} tokens/s")
                if time.monotonic() - saved > checkpoint_every:
                    self._save(folder, recent)
                    saved, recent = time.monotonic(), []
        if recent:
            self._save(folder, recent)

    def _learn(self, group: list[int]) -> list[float]:
        """One step; its losses over the whole group, whichever processes had which sequences."""
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.recipe.rate(self.step, len(self.plan))
        self.objective.train()
        mine = group[self.accelerator.process_index :: self.accelerator.num_processes]
        loss, found = self._losses(mine or group[:1], noise=self.recipe.noise)
        share = self._supervised(mine) / self._supervised(group)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss * share * self.accelerator.num_processes)  # gradients are averaged
        self.accelerator.clip_grad_value_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        every = torch.stack([x.detach().float() for x in found]) * share
        return self.accelerator.reduce(every, "sum").tolist()

    def _supervised(self, group: list[int]) -> int:
        return sum(end - start - 1 for s in group for start, end in self.features.conversations[s].answers)

    def _losses(self, group: list[int], *, noise: float) -> tuple[Tensor, Losses]:
        batch = Batch(*(part.to(self.device) for part in self.features.load(group)))
        e = self.target.embedding(batch.ids[:, 1:]).to(torch.bfloat16).detach()
        f = batch.features[:, :-1]
        if noise:
            lengths = [self.features.lengths[s] for s in group]
            keys = [(self.recipe.seed, self.step, s) for s in group]
            f = f + uniform_noise(f.shape, lengths, noise, keys, self.device).to(f.dtype)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.objective(e, f, batch._replace(choice=self.index[batch.choice]))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """L_v, L_p and top-1 agreement on the held-out conversations, and the draft vocabulary's ceiling there."""
        model, self.objective = self.objective, self.accelerator.unwrap_model(self.objective)
        self.objective.eval()
        lengths = [self.features.lengths[s] for s in self.test]
        groups = [[self.test[i] for i in group] for group in by_length(lengths, 8192)]
        weights = [self._supervised(group) for group in groups]
        found = np.average([[float(x) for x in self._losses(g, noise=0)[1]] for g in groups], axis=0, weights=weights)
        batches = [self.features.load(group) for group in groups]
        inside = torch.cat([self.index[batch.choice.to(self.device)] >= 0 for batch in batches])
        self.objective = model
        return {
            "feature_loss": float(found[0]),
            "logit_loss": float(found[1]),
            "agreement": float(found[3]),
            "vocabulary_mass": float(torch.cat([batch.mass for batch in batches]).mean()),
            "vocabulary_ceiling": float(inside.float().mean()),
            "tokens_per_step": self.probe(),
        }

    def probe(self) -> float:
        """Tokens a step, greedy, on the prompts of a few held-out conversations, with the default tree."""
        network = copy.deepcopy(self.network).to(self.target.dtype).eval().requires_grad_(False)
        vocabulary = self.vocabulary.to(self.device)
        drafter = HeadDrafter(self.target, Head(network, vocabulary, self.target.name, self.target.identity))
        limit, made = Limit(PROBE_TOKENS, self.target.stop_ids), []
        for s in self.test[:: max(1, len(self.test) // PROBES)][:PROBES]:
            conversation = self.features.conversations[s]
            prompt = conversation.tokens[: conversation.answers[-1][0]]
            if len(prompt) + PROBE_TOKENS <= self.target.max_length:
                made.append(generate(self.target, drafter, Sampler(), prompt, limit))
        forwards = sum(found.forwards for found in made)
        return sum(sum(found.committed) for found in made) / forwards if forwards else float("nan")

    @torch.no_grad()
    def calibrate(self) -> Calibration:
        """How often the children that the draft proposes are right, at each depth, on held-out conversations."""
        self.network.eval()
        seen: dict[tuple[int, bool], list[tuple[Tensor, Tensor]]] = {}
        groups = by_length([self.features.lengths[s] for s in self.test], self.recipe.batch_tokens)
        rows_seen = 0
        for group in groups:
            batch = Batch(*(part.to(self.device) for part in self.features.load([self.test[i] for i in group])))
            e = self.target.embedding(batch.ids[:, 1:]).to(torch.bfloat16)
            with torch.autocast(self.device.type, torch.bfloat16):
                levels = self.network.unrolled(e, batch.features[:, :-1], DEPTHS)
            reach = torch.arange(e.shape[1], device=self.device)
            for level, out in enumerate(levels):
                rows = batch.rows[:, :-1] & (reach >= level)
                behind = batch.features[:, 1:][rows].to(self.target.dtype)
                logits, guess = self.target.lm_head(behind).float(), self._guess(out.h_logit[rows])
                noise = self._noise(rows_seen, len(logits))
                for greedy, added in ((True, 0.0), (False, noise)):
                    own = added if greedy else added[:, self.vocabulary.to(self.device)]
                    q, children = (guess + own).softmax(-1).topk(min(CHILDREN, guess.shape[-1]), dim=-1)
                    right = children == self.index[(logits + added).argmax(-1)][:, None]
                    seen.setdefault((level, greedy), []).append((q, right))
            rows_seen += int(batch.rows.sum())
            if rows_seen > CALIBRATION_ROWS:
                break
        curves = {key: fit(*(torch.cat(part).cpu().numpy() for part in zip(*found, strict=True)))
                  for key, found in seen.items()}  # fmt: skip
        return Calibration(*(tuple(curves[level, greedy] for level in range(DEPTHS)) for greedy in (True, False)))

    def _guess(self, h_logit: Tensor) -> Tensor:
        lm_head = self.accelerator.unwrap_model(self.objective).lm_head
        return torch.nn.functional.linear(h_logit.to(lm_head.dtype), lm_head).float()

    def _noise(self, first: int, rows: int) -> Tensor:
        """The noise of so many positions over the target's vocabulary, as sampling would meet it: `[N, V]`."""
        sampler, tokens = Sampler(1.0, stream="calibration"), torch.arange(len(self.index), device=self.device)
        return torch.stack([sampler.noise(first + row, tokens) for row in range(rows)])

    def _save(self, folder: Path, recent: list[list[float]]) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": asdict(self.recipe), "step": self.step, "seen": self.seen,
            "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / "checkpoint.part")
            (folder / "checkpoint.part").replace(folder / "checkpoint.pt")
            self._log(folder / "curve.csv", recent)
        except (OSError, RuntimeError) as error:
            raise BenchError(
                f"cannot write a checkpoint to {folder}: {error}", "free some space and run it again"
            ) from error

    def _log(self, path: Path, recent: list[list[float]]) -> None:
        """One line of the learning curve: training means since the last one, held-out figures now. Drawn anew."""
        mean = np.mean(recent, axis=0)
        row = {"step": self.step, "steps": len(self.plan), "tokens": self.seen, "train_feature_loss": mean[0]}
        row |= {"train_logit_loss": mean[1], "train_agreement": mean[3], **self.evaluate()}
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
        learning_curve(path, path.with_suffix(".png"))

    def _resume(self, folder: Path) -> None:
        path = folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["recipe"] | {"epochs": self.recipe.epochs} != asdict(self.recipe):
            raise BenchError(f"{path} belongs to another recipe", "use another --output, or the settings it began with")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seen = state["step"], state["seen"]
        if self.accelerator.is_main_process:
            print(f"resuming at step {self.step} of {len(self.plan)}", file=sys.stderr)


def uniform_noise(
    shape: torch.Size, lengths: list[int], scale: float, keys: list[tuple[int, ...]], device: torch.device
) -> Tensor:
    """(U(0, 1) - 1/2) * scale * 512 / L on each sequence of length L: EAGLE's, as published. `[B, L, d]`.

    Each sequence's noise follows from its key alone, whatever else is in the batch.
    """
    noise = torch.zeros(shape, device=device)
    generator = torch.Generator(device)
    for row, length, key in zip(noise, lengths, keys, strict=True):
        generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        row[:length].uniform_(-0.5 * scale * 512 / length, 0.5 * scale * 512 / length, generator=generator)
    return noise
