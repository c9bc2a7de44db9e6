"""Checkpoints of a training run: `checkpoint.pt` in its output folder."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fspad_bench.training.objective import Recipe
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import replacing

FILE = "checkpoint.pt"
# torch.load of a file that is no pickle at all raises any of these
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
)
ENVIRONMENT = "environment"  # a part of the origin under another of which training may go on
SINCE = ("target files", "dtype")  # parts that older checkpoints do not state
OTHER_SETTINGS = "give another --output, or the settings it was started with"
DAMAGED = "delete it to start anew, or give another --output"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps, in which `seen` tokens were learned.

    `recipe` and `origin` are the settings it resumes under; `network` and `optimizer` are state
    dicts.
    """

    recipe: dict[str, Any]
    origin: dict[str, Any]
    step: int
    seen: int
    network: dict[str, Tensor]
    optimizer: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Replace the folder's checkpoint. May raise OSError or RuntimeError on a full disk."""
        with replacing(folder / FILE) as part:
            torch.save(vars(self), part)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint | None:
        """Read the folder's checkpoint, or return None. Raise BenchError if it is unreadable."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
        except UNREADABLE as error:
            raise BenchError(f"{path} is not a readable checkpoint", DAMAGED) from error
        return cls._of(path, state)

    @classmethod
    def _of(cls, path: Path, state: object) -> Checkpoint:
        """Check the types of all entries, so that later code may rely on them."""
        kinds = {
            "recipe": dict,
            "origin": dict,
            "step": int,
            "seen": int,
            "network": dict,
            "optimizer": dict,
        }
        if not isinstance(state, dict):
            raise BenchError(f"{path} is not a checkpoint of `train`", DAMAGED)
        for name, kind in kinds.items():
            if not isinstance(state.get(name), kind):
                raise BenchError(f"{path} is not a checkpoint: its '{name}' is missing", DAMAGED)
        for name in ("step", "seen"):
            if state[name] < 0 or isinstance(state[name], bool):
                raise BenchError(f"{path} is damaged: its '{name}' is {state[name]}", DAMAGED)
        return cls(**{name: state[name] for name in kinds})

    def check_recipe(self, recipe: Recipe, folder: Path) -> None:
        """Raise BenchError unless the recipe is the same, the number of epochs excepted."""
        # a setting that an older checkpoint lacks had this value
        earlier = asdict(Recipe(vocabulary="head")) | self.recipe | {"epochs": recipe.epochs}
        if earlier != asdict(recipe):
            raise BenchError(f"{folder / FILE} belongs to another recipe", OTHER_SETTINGS)

    def check_origin(self, origin: dict[str, Any], folder: Path) -> None:
        """Raise BenchError unless the target and its precision, the data, the start and the number
        of processes are the same.
        """
        for name, value in origin.items():
            if name == ENVIRONMENT or (name in SINCE and name not in self.origin):
                continue
            if self.origin.get(name) != value:
                raise BenchError(f"{folder / FILE} was trained with another {name}", OTHER_SETTINGS)

    def check_steps(self, steps: int, folder: Path) -> None:
        """Raise BenchError where it has been trained for more steps than are planned."""
        if self.step > steps:
            raise BenchError(
                f"{folder / FILE} has been trained for {self.step} steps, more than {steps}",
                "ask for as many epochs or more, or give another --output",
            )

    def restore(
        self, network: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path
    ) -> None:
        """Load the weights and the optimizer's state. Raise BenchError where they do not fit."""
        try:
            _check_weights(self.network, network.state_dict())
            network.load_state_dict(self.network)
            optimizer.load_state_dict(self.optimizer)
            _check_moments(optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(
                f"{folder / FILE} does not fit this network: {str(error).splitlines()[0]}", DAMAGED
            ) from error


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming a weight that holds a number which is not finite."""
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} holds numbers that are not finite")


def _check_weights(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ValueError for weights of another precision, which torch would convert silently."""
    for name in given.keys() & own.keys():
        if given[name].dtype != own[name].dtype:
            raise ValueError(f"{name} is of {given[name].dtype}, not {own[name].dtype}")
    check_finite(given)


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError for moments of another shape than their weight's, or not finite."""
    for weight, state in optimizer.state.items():
        moments = {name: v for name, v in state.items() if isinstance(v, Tensor) and v.dim()}
        for name, moment in moments.items():
            if moment.shape != weight.shape:
                raise ValueError(f"{name} is of shape {tuple(moment.shape)}")
        check_finite(moments)
