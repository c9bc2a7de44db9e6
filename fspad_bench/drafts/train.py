"""Training of a draft network by teacher forcing, as EAGLE and FSPAD publish it.

AdamW (0.9, 0.95), linear warm-up and linear decay to zero, gradient values clipped at 0.5, uniform noise on the input
features scaled by 512 / length, loss = feature_weight * L_v + logit_weight * L_p with 1.0 and 0.1. The target's
embedding and LM head are frozen. Batches, noise and initial weights follow from the seed and the step alone, so a
run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fspad_bench.drafts.data import FeatureStore, by_length
from fspad_bench.drafts.losses import Losses, losses
from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.errors import BenchError
from fspad_bench.progress import Progress
from fspad_bench.target import TransformersTarget

HELD_OUT = 0.03
SHARDS = 8


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run; a checkpoint resumes only under the same ones, the number of epochs aside."""

    epochs: float = 8.0
    batch_tokens: int = 2048
    lr: float = 1e-3
    warmup: int = 200
    feature_weight: float = 1.0
    logit_weight: float = 0.1
    noise: float = 0.2
    clip: float = 0.5
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step: up in a straight line, then down to zero in another."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * min(rise, (steps - step) / max(1, steps - self.warmup))


class Trainer:
    """A draft network in training on a filled feature store."""

    def __init__(
        self, target: TransformersTarget, store: FeatureStore, vocabulary: Tensor, shape: Shape, recipe: Recipe
    ) -> None:
        self.store, self.recipe, self.device = store, recipe, target.device
        self.embedding = target.embedding
        self.lm_head = target.lm_head.weight[vocabulary.to(target.device)].detach().to(torch.bfloat16)
        self.index = torch.full((target.config.vocab_size,), -1).scatter_(0, vocabulary, torch.arange(len(vocabulary)))
        torch.manual_seed(recipe.seed)
        self.network = DraftNetwork(shape).to(self.device, torch.float32)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=recipe.lr, betas=(0.9, 0.95))
        held_out = max(1, int(len(store.lengths) * HELD_OUT))
        self.learn = range(len(store.lengths) - held_out)
        self.test = range(len(store.lengths) - held_out, len(store.lengths))
        self.plan = list(self._plan())
        self.step = 0

    def _plan(self) -> Iterator[list[int]]:
        """The sequences of every step, an epoch after the other: random shards, each grouped by length."""
        whole, part = divmod(self.recipe.epochs, 1)
        for epoch in range(int(whole) + (part > 0)):
            order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.learn))
            groups = []
            for shard in np.array_split(order, SHARDS):
                lengths = [self.store.lengths[s] for s in shard]
                groups += [[int(shard[i]) for i in group] for group in by_length(lengths, self.recipe.batch_tokens)]
            shuffled = np.random.default_rng([self.recipe.seed, epoch, 1]).permutation(len(groups))
            kept = len(groups) if epoch < whole else int(part * len(groups))
            yield from (groups[i] for i in shuffled[:kept])

    def run(self, folder: Path, *, checkpoint_every: float, stop_after: int | None = None) -> None:
        """Train to the end of the plan (or `stop_after` steps), with checkpoints every so many seconds."""
        self._resume(folder)
        saved, seen, losses_seen, began = time.monotonic(), 0, [], time.monotonic()
        with Progress("training", len(self.plan), start=self.step) as progress:
            while self.step < len(self.plan) and self.step != stop_after:
                group = self.plan[self.step]
                losses_seen.append([float(x) for x in self._learn(group)])
                seen += sum(self.store.lengths[s] for s in group)
                self.step += 1
                speed = seen / (time.monotonic() - began)
                mean = np.mean(losses_seen[-100:], axis=0)
                note = f"L_v {mean[0]:.4f}  L_p {mean[1]:.3f}  agreement {mean[2]:.3f}  {speed:.0f} tokens/s"
                progress.advance(note=note)
                if time.monotonic() - saved > checkpoint_every:
                    self._save(folder, losses_seen, seen)
                    saved, losses_seen = time.monotonic(), []
        if losses_seen:
            self._save(folder, losses_seen, seen)

    def _learn(self, group: list[int]) -> Losses:
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.recipe.rate(self.step, len(self.plan))
        self.network.train()
        found = self._losses(group, noise=self.recipe.noise)
        loss = self.recipe.feature_weight * found.feature + self.recipe.logit_weight * found.logit
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        return Losses(*(x.detach() for x in found))

    def _losses(self, group: list[int], *, noise: float) -> Losses:
        ids, features, rows = self.store.batch(group)
        mass, choice = self.store.facts(group)
        ids, features, rows = ids.to(self.device), features.to(self.device), rows.to(self.device)
        e = self.embedding(ids[:, 1:]).to(torch.bfloat16).detach()
        f = features[:, :-1]
        if noise:
            lengths = torch.tensor([self.store.lengths[s] for s in group])
            f = f + uniform_noise(f.shape, lengths, noise, seed=(self.recipe.seed << 32) + self.step).to(f)
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.network(e, f, rows[:, :-1])
            return losses(
                out.h_logit, out.h_feature, features[:, 1:][rows[:, :-1]], mass.to(self.device),
                self.index[choice].to(self.device), self.lm_head,
            )  # fmt: skip

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """L_v, L_p and top-1 agreement on the held-out conversations, and the draft vocabulary's ceiling there."""
        self.network.eval()
        lengths = [self.store.lengths[s] for s in self.test]
        groups = [[self.test[i] for i in group] for group in by_length(lengths, 8192)]
        weights = [len(self.store.facts(group)[0]) for group in groups]
        found = np.average([[float(x) for x in self._losses(g, noise=0)] for g in groups], axis=0, weights=weights)
        mass, choice = self.store.facts(list(self.test))
        ceiling = (self.index[choice] >= 0).float().mean()
        return {
            "feature_loss": float(found[0]),
            "logit_loss": float(found[1]),
            "agreement": float(found[2]),
            "vocabulary_mass": float(mass.mean()),
            "vocabulary_ceiling": float(ceiling),
        }

    def _save(self, folder: Path, recent: list[list[float]], tokens: int) -> None:
        state = {
            "recipe": asdict(self.recipe), "step": self.step,
            "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / "checkpoint.part")
            (folder / "checkpoint.part").replace(folder / "checkpoint.pt")
            self._log(folder / "curve.csv", recent, tokens)
        except (OSError, RuntimeError) as error:
            raise BenchError(
                f"cannot write a checkpoint to {folder}: {error}", "free some space and run it again"
            ) from error

    def _log(self, path: Path, recent: list[list[float]], tokens: int) -> None:
        """One line of the learning curve: training means since the last one, held-out figures now."""
        held_out = self.evaluate()
        mean = np.mean(recent, axis=0) if recent else [float("nan")] * 3
        row = {"step": self.step, "steps": len(self.plan), "tokens": tokens, "train_feature_loss": mean[0]}
        row |= {"train_logit_loss": mean[1], "train_agreement": mean[2], **held_out}
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})

    def _resume(self, folder: Path) -> None:
        path = folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["recipe"] | {"epochs": self.recipe.epochs} != asdict(self.recipe):
            raise BenchError(f"{path} belongs to another recipe", "use another --output, or the settings it began with")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        print(f"resuming at step {self.step} of {len(self.plan)}", file=sys.stderr)


def uniform_noise(shape: torch.Size, lengths: Tensor, scale: float, *, seed: int) -> Tensor:
    """(U(0, 1) - 1/2) * scale * 512 / L on each sequence of length L: EAGLE's, as published. `[B, L, d]`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) - 0.5) * (scale * 512 / lengths)[:, None, None]
