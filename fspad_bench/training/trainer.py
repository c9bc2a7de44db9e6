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

import csv
import hashlib
import io
import pickle
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor

from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.training.evaluation import HeldOut, supervised
from fspad_bench.training.features import Features, by_length
from fspad_bench.training.losses import Losses
from fspad_bench.training.objective import Objective, Recipe, inputs, uniform_noise
from fspad_bench.training.plots import learning_curve
from fspad_bench.util.paths import write_whole
from fspad_bench.util.progress import Progress

SHARDS = 8


class Trainer:
    """A draft network in training on the features of a target's conversations."""

    def __init__(
        self,
        target: TransformersTarget,
        features: Features,
        vocabulary: Tensor,
        shape: Shape,
        recipe: Recipe,
        accelerator: Accelerator | None = None,
        origin: dict[str, Any] | None = None,
        initial: dict[str, Tensor] | None = None,
    ) -> None:
        """`origin` says where the features come from; a checkpoint goes on with those of the same origin alone.
        `initial` are the weights that training begins with; without them it begins with random ones."""
        self.target = target
        self.features = features
        self.recipe = recipe
        self.vocabulary = vocabulary
        self.accelerator = accelerator or accelerator_for(target.device)
        self.device = target.device
        self.sayable = Vocabulary(
            vocabulary.to(self.device),
            target.config.vocab_size,
            prompted=recipe.vocabulary == "prompt",
        )
        self.held_out = HeldOut(target, features, self.sayable)
        torch.manual_seed(recipe.seed)
        self.network = DraftNetwork(shape).to(self.device, torch.float32)
        if initial is not None:
            self.network.load_state_dict(initial)
        objective = Objective(
            self.network, target.lm_head.weight.detach().to(torch.bfloat16), recipe
        )
        self.objective = self.accelerator.prepare_model(
            objective, device_placement=False
        )  # all is on the target's
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.lr, betas=(0.9, 0.95)
        )
        held_out = set(self.held_out.sequences)
        self.learn = [s for s in range(len(features.lengths)) if s not in held_out]
        if not self.learn:
            raise BenchError("one usable conversation is too few: it is held out", "train on more")
        self.origin = {
            "target": target.identity,
            "network": asdict(shape),
            "draft vocabulary": hashlib.sha256(vocabulary.cpu().numpy().tobytes()).hexdigest(),
            "number of conversations": len(features.lengths),
            "number of processes": self.accelerator.num_processes,
        } | (origin or {})
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
                groups += [
                    [shard[i] for i in group]
                    for group in by_length(lengths, self.recipe.batch_tokens)
                ]
            shuffled = np.random.default_rng([self.recipe.seed, epoch, 1]).permutation(len(groups))
            kept = len(groups) if epoch < whole else int(part * len(groups))
            yield from (groups[i] for i in shuffled[:kept])

    def run(self, folder: Path, *, checkpoint_every: float, stop_after: int | None = None) -> None:
        """Train to the end of the plan (or `stop_after` steps), with checkpoints every so many seconds."""
        self._resume(folder)
        saved = began = time.monotonic()
        first = self.seen
        recent = []
        with Progress(
            "training", len(self.plan), start=self.step, quiet=not self.accelerator.is_main_process
        ) as bar:
            while self.step < len(self.plan) and self.step != stop_after:
                group = self.plan[self.step]
                recent.append(self._learn(group))
                self.seen += sum(self.features.lengths[s] for s in group)
                self.step += 1
                speed = (self.seen - first) / (time.monotonic() - began)
                mean = _mean(recent[-100:])
                losses = (
                    f"L_v {mean.feature:.4f}  L_p {mean.logit:.3f}  agreement {mean.agreement:.3f}"
                )
                bar.advance(note=f"{losses}  {speed:.0f} tokens/s")
                if time.monotonic() - saved > checkpoint_every:
                    self._save(folder, recent)
                    saved = time.monotonic()
                    recent = []
        if recent:
            self._save(folder, recent)

    def _learn(self, group: list[int]) -> list[float]:
        """One step; its losses over the whole group, whichever processes had which sequences."""
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.recipe.rate(self.step, len(self.plan))
        self.objective.train()
        mine = group[self.accelerator.process_index :: self.accelerator.num_processes]
        loss, found = self._losses(mine or group[:1], noise=self.recipe.noise)
        share = supervised(self.features, mine) / supervised(self.features, group)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(
            loss * share * self.accelerator.num_processes
        )  # gradients are averaged
        self.accelerator.clip_grad_value_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        every = torch.stack([x.detach().float() for x in found]) * share
        return self.accelerator.reduce(every, "sum").tolist()

    def _losses(self, group: list[int], *, noise: float) -> tuple[Tensor, Losses]:
        e, f, batch = inputs(self.target, self.features, group, self.sayable)
        if noise:
            lengths = [self.features.lengths[s] for s in group]
            keys = [(self.recipe.seed, self.step, s) for s in group]
            f = f + uniform_noise(f.shape, lengths, noise, keys, self.device).to(f.dtype)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.objective(e, f, batch)

    def evaluate(self) -> dict[str, float]:
        """The held-out figures of the network as it is."""
        return self.held_out.figures(self.accelerator.unwrap_model(self.objective))

    def calibrate(self) -> Calibration:
        """How often the network as it is turns out right, on held-out conversations."""
        return self.held_out.calibration(self.accelerator.unwrap_model(self.objective))

    def _save(self, folder: Path, recent: list[list[float]]) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": asdict(self.recipe), "origin": self.origin, "step": self.step, "seen": self.seen,
            "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / "checkpoint.part")
            (folder / "checkpoint.part").replace(folder / "checkpoint.pt")
            self._log(folder / "curve.csv", recent)
        except (OSError, RuntimeError) as error:
            raise BenchError(
                f"cannot write a checkpoint to {folder}: {error}",
                "free some space and run it again",
            ) from error

    def _log(self, path: Path, recent: list[list[float]]) -> None:
        """One line of the learning curve: training means since the last one, held-out figures now. Drawn anew."""
        mean = _mean(recent)
        row = {
            "step": self.step,
            "steps": len(self.plan),
            "tokens": self.seen,
            "train_feature_loss": mean.feature,
        }
        row |= {
            "train_logit_loss": mean.logit,
            "train_agreement": mean.agreement,
            **self.evaluate(),
        }
        rows = [
            *_lines(path, row, self.step),
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()},
        ]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, row)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue())
        learning_curve(path, path.with_suffix(".png"))

    def _resume(self, folder: Path) -> None:
        path = folder / "checkpoint.pt"
        if not path.exists():
            return
        hint = "use another --output, or the settings it began with"
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            # a setting that an older checkpoint does not know was its default
            recipe = (
                asdict(Recipe(vocabulary="head")) | state["recipe"] | {"epochs": self.recipe.epochs}
            )
            origin = state["origin"]
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise BenchError(f"{path} is no checkpoint that can be read", hint) from error
        if recipe != asdict(self.recipe):
            raise BenchError(f"{path} belongs to another recipe", hint)
        other = [name for name, value in self.origin.items() if origin.get(name) != value]
        if other:
            raise BenchError(f"{path} was trained with another {other[0]}", hint)
        if state["step"] > len(self.plan):
            text = f"{path} has been trained for {state['step']} steps, these epochs are {len(self.plan)}"
            raise BenchError(text, "ask for as many epochs or more, or use another --output")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.seen = state["seen"]
        if self.accelerator.is_main_process:
            print(f"resuming at step {self.step} of {len(self.plan)}", file=sys.stderr)


def accelerator_for(device: torch.device | str) -> Accelerator:
    """One that trains as the recipe says, whatever its own configuration asks for; others wait for the first process
    as long as it takes. Raises BenchError for ways of sharing that this training does not know."""
    made = Accelerator(
        cpu=torch.device(device).type == "cpu",
        mixed_precision="no",  # our own autocast
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(days=7)),
            DistributedDataParallelKwargs(
                broadcast_buffers=False
            ),  # the LM head is everyone's already
        ],
    )
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if made.distributed_type not in known:
        raise BenchError(
            f"training cannot be shared by {made.distributed_type.value}",
            "launch it with --multi_gpu",
        )
    return made


def _mean(steps: list[list[float]]) -> Losses:
    return Losses(*np.mean(steps, axis=0).tolist())


def _lines(path: Path, names: Iterable[str], step: int) -> list[dict[str, str]]:
    """The whole lines of an earlier run's curve, up to where it went on from."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if list(row) == list(names) and None not in row.values()
        ]
    return [row for row in rows if row["step"].isdecimal() and int(row["step"]) < step]
