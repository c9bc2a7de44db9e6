"""Train a draft network as EAGLE and FSPAD publish it, on one device or several.

- AdamW (0.9, 0.95), linear warm-up, linear decay to 0, gradient values clipped at 0.5.
- Uniform noise on the input features, scaled by 512 / length.
- loss = feature_weight * L_v + logit_weight * L_p, with 1.0 and 0.1 (see `objective`). With
  `unroll` > 1 the network learns on its own features too (HASS, EAGLE-3), with `top_weight` > 0 the
  target's likeliest tokens again (HASS).
- The target's embedding and LM head are frozen.

Batches, noise and initial weights follow from the seed and the step alone: a run that was killed
continues from its last checkpoint and ends with the same weights. Several processes share each
batch and learn what one would learn.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor

from fspad_bench.drafts.network import HeadNetwork
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.checkpoint import ENVIRONMENT, Checkpoint, check_finite
from fspad_bench.training.conversations import nothing_learned
from fspad_bench.training.curve import append_row
from fspad_bench.training.evaluation import HeldOut
from fspad_bench.training.feature_store import by_length
from fspad_bench.training.features import Features, supervised_count
from fspad_bench.training.losses import Losses
from fspad_bench.training.objective import Objective, Recipe, load_inputs, uniform_noise
from fspad_bench.training.precision import autocast, product_type
from fspad_bench.util.errors import BenchError
from fspad_bench.util.progress import Progress
from fspad_bench.util.provenance import environment
from fspad_bench.util.terminal import note

SHARDS = 8
DIVERGED = "begin anew with a lower --lr, in another --output"
RECENT = 100  # steps over which the progress line averages


class Trainer:
    """A draft network in training on the features of a target's conversations."""

    def __init__(
        self,
        target: TransformersTarget,
        features: Features,
        vocabulary: Tensor,
        network: HeadNetwork,
        recipe: Recipe,
        accelerator: Accelerator | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        """Train `network` (float32, on the target's device) with the draft `vocabulary [S]`.

        `origin` names what else decides the result, such as the data; a checkpoint resumes under
        the same one only.
        """
        self.target = target
        self.features = features
        self.recipe = recipe
        self.network = network
        self.accelerator = accelerator or accelerator_for(target.device)
        self.device = target.device
        self.vocabulary = Vocabulary(
            vocabulary.to(self.device),
            target.config.vocab_size,
            prompted=recipe.vocabulary == "prompt",
        )
        self.held_out = HeldOut(target, features, self.vocabulary)
        held_out = set(self.held_out.sequences)
        self.learned = [s for s in range(len(features.lengths)) if s not in held_out]
        if not self.learned:
            raise nothing_learned(len(held_out))
        rounded = target.lm_head.weight.detach().to(torch.bfloat16)
        lm_head = rounded.to(product_type(self.device))
        # everything is on the target's device already
        self.objective = self.accelerator.prepare_model(
            Objective(network, lm_head, recipe), device_placement=False
        )
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, betas=(0.9, 0.95))
        self.origin = self._origin() | (origin or {})
        self.plan = list(self._plan())
        self.step = 0
        self.seen = 0

    def _origin(self) -> dict[str, Any]:
        vocabulary = self.vocabulary.base_ids.cpu().numpy().tobytes()
        return {
            **of_target(self.target),
            ENVIRONMENT: environment(torch.get_num_threads())
            | {"products": str(product_type(self.device)).removeprefix("torch.")},
            "network": {
                "architecture": self.network.architecture,
                "qkv_bias": self.network.shape.qkv_bias,
                **self.network.shape.facts(),
            },
            "draft vocabulary": hashlib.sha256(vocabulary).hexdigest(),
            "number of conversations": len(self.features.lengths),
            "number of processes": self.accelerator.num_processes,
        }

    def _plan(self) -> Iterator[list[int]]:
        """Yield the sequences of every step, epoch by epoch.

        An epoch's sequences are dealt into random shards and grouped by length in each; the last
        epoch may be partial.
        """
        whole, part = divmod(self.recipe.epochs, 1)
        for epoch in range(int(whole) + (part > 0)):
            order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.learned))
            groups = []
            for indices in np.array_split(order, SHARDS):
                shard = [self.learned[i] for i in indices]
                lengths = [self.features.lengths[s] for s in shard]
                for group in by_length(lengths, self.recipe.batch_tokens):
                    groups.append([shard[i] for i in group])
            shuffled = np.random.default_rng([self.recipe.seed, epoch, 1]).permutation(len(groups))
            kept = len(groups) if epoch < whole else int(part * len(groups))
            yield from (groups[i] for i in shuffled[:kept])

    def run(self, folder: Path, *, checkpoint_every: float, stop_after: int | None = None) -> None:
        """Train to the end of the plan or for `stop_after` steps, saving every so many seconds."""
        self._resume(folder)
        start = time.monotonic()
        saved = start
        seen_before = self.seen
        unsaved: list[list[float]] = []
        is_quiet = not self.accelerator.is_main_process
        with Progress("training", len(self.plan), start=self.step, quiet=is_quiet) as progress:
            while self.step < len(self.plan) and self.step != stop_after:
                group = self.plan[self.step]
                unsaved.append(self._learn(group))
                self._check_losses(unsaved[-1])
                self.seen += sum(self.features.lengths[s] for s in group)
                self.step += 1
                speed = (self.seen - seen_before) / (time.monotonic() - start)
                progress.advance(note=f"{_note(unsaved)}  {speed:.0f} tokens/s")
                if time.monotonic() - saved > checkpoint_every:
                    self._save(folder, unsaved)
                    saved = time.monotonic()
                    unsaved = []
        if unsaved:
            self._save(folder, unsaved)

    def _learn(self, group: list[int]) -> list[float]:
        """Run one step; return its losses over the whole group, summed over the processes."""
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.recipe.rate(self.step, len(self.plan))
        self.objective.train()
        processes = self.accelerator.num_processes
        own = group[self.accelerator.process_index :: processes]
        loss, losses = self._losses(group, own)
        self.optimizer.zero_grad(set_to_none=True)
        # times the number of processes, because their gradients are averaged
        self.accelerator.backward(loss * processes)
        self.accelerator.clip_grad_value_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        own_losses = torch.stack([x.detach().float() for x in losses])
        return self.accelerator.reduce(own_losses, "sum").tolist()

    def _check_losses(self, losses: list[float]) -> None:
        """Raise BenchError for losses that are not finite: no later step would mend the weights."""
        if not all(map(math.isfinite, losses)):
            raise BenchError(
                f"training diverged: a loss of step {self.step + 1} is no number", DIVERGED
            )

    def _losses(
        self, group: list[int], own: list[int] | None = None
    ) -> tuple[Tensor, Losses[Tensor]]:
        """Return the loss of a step's sequences, with noise on their input features.

        `own`: the part of them whose share of the loss is returned; shares add up to the whole.
        """
        own = group if own is None else own
        shares = [self._share(own, group, level) for level in range(self.recipe.unroll)]
        # a process without a sequence runs one all the same, with a share of 0
        loaded = own or group[:1]
        inputs = load_inputs(
            self.target, self.features, loaded, self.vocabulary, self.network, step=group
        )
        if self.recipe.noise:
            lengths = [self.features.lengths[s] for s in loaded]
            keys = [(self.recipe.seed, self.step, s) for s in loaded]
            noise = uniform_noise(inputs.f.shape, lengths, self.recipe.noise, keys, self.device)
            inputs = inputs._replace(f=inputs.f + noise.to(inputs.f.dtype))
        with autocast(self.device):
            return self.objective(inputs, shares)

    def _share(self, own: list[int], group: list[int], level: int) -> float:
        """Return the part of a draft level's positions that `own` sequences of a group hold.

        Level j has no draft before position j.
        """
        count = supervised_count(self.features, group, level)
        return supervised_count(self.features, own, level) / count if count else 0.0

    def evaluate(self) -> dict[str, float | None]:
        """Return the held-out figures of the network as it is."""
        return self.held_out.figures(self.accelerator.unwrap_model(self.objective))

    def calibrate(self) -> Calibration:
        """Return the calibration of the network as it is, on held-out conversations."""
        return self.held_out.calibration(self.accelerator.unwrap_model(self.objective))

    def _save(self, folder: Path, unsaved: list[list[float]]) -> None:
        """Write a checkpoint and a line of the curve, with the losses since the last one."""
        if not self.accelerator.is_main_process:
            return
        try:
            check_finite(self.network.state_dict())
        except ValueError as error:
            raise BenchError(f"training diverged at step {self.step}: {error}", DIVERGED) from error
        # measured first: a checkpoint that is written has its line
        row = self._curve_row(_mean(unsaved))
        checkpoint = Checkpoint(
            asdict(self.recipe),
            self.origin,
            self.step,
            self.seen,
            self.network.state_dict(),
            self.optimizer.state_dict(),
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save(folder)
            append_row(folder / "curve.csv", row)
        except (OSError, RuntimeError) as error:
            raise BenchError(
                f"cannot write a checkpoint to {folder}: {error}",
                "free some space and run it again",
            ) from error

    def _curve_row(self, training: Losses[float]) -> dict[str, float | int | None]:
        return {
            "step": self.step,
            "steps": len(self.plan),
            "tokens": self.seen,
            "train_feature_loss": training.feature,
            "train_logit_loss": training.logit,
            "train_agreement": training.agreement,
            **self.evaluate(),
        }

    def _resume(self, folder: Path) -> None:
        """Continue from the folder's checkpoint, if there is one."""
        checkpoint = Checkpoint.load(folder)
        if checkpoint is None:
            return
        checkpoint.check_recipe(self.recipe, folder)
        checkpoint.check_origin(self.origin, folder)
        checkpoint.check_steps(len(self.plan), folder)
        checkpoint.restore(self.network, self.optimizer, folder)
        self.step = checkpoint.step
        self.seen = checkpoint.seen
        if self.accelerator.is_main_process:
            note(f"resuming at step {self.step} of {len(self.plan)}")
            if checkpoint.origin.get(ENVIRONMENT) != self.origin[ENVIRONMENT]:
                note(
                    "note: it was begun with other software, threads or machine: "
                    "its weights will not be those of one run"
                )


def accelerator_for(device: torch.device | str) -> Accelerator:
    """Return an accelerator that trains as the recipe says, ignoring accelerate's configuration.

    Other processes wait for the main one as long as it takes. Raise BenchError for kinds of sharing
    that this training does not support.
    """
    accelerator = Accelerator(
        cpu=torch.device(device).type == "cpu",
        mixed_precision="no",  # autocast is our own
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(days=7)),
            DistributedDataParallelKwargs(broadcast_buffers=False),  # no buffer changes
        ],
    )
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        raise BenchError(
            f"training cannot be shared by {accelerator.distributed_type.value}",
            "launch it with --multi_gpu",
        )
    return accelerator


def of_target(target: TransformersTarget) -> dict[str, str]:
    """Return what decides the target's features, under which alone a checkpoint resumes."""
    return {
        "target": target.identity,
        "target files": target.files_sha256,
        "dtype": str(target.dtype).removeprefix("torch."),
    }


def _mean(steps: list[list[float]]) -> Losses[float]:
    return Losses(*np.mean(steps, axis=0).tolist())


def _note(steps: list[list[float]]) -> str:
    """Return the mean losses of the recent steps as text."""
    mean = _mean(steps[-RECENT:])
    return f"L_v {mean.feature:.4f}  L_p {mean.logit:.3f}  agreement {mean.agreement:.3f}"
