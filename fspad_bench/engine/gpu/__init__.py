"""The kernels of tree verification, and the choice between their implementations.

- On a CUDA device Triton's kernels run if Triton is installed, otherwise the torch reference.
- On the CPU there are none: the host walks the tree and evaluates only the nodes it reaches.
- `FSPAD_KERNELS=host|reference|triton|invariant` overrides the choice on any device. On the CPU
  Triton's kernels need its interpreter (TRITON_INTERPRET=1), which is slow and meant for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fspad_bench.engine.gpu.tensors import Nodes, SamplerTensors, Walk, interpreted
from fspad_bench.util.errors import BenchError, near

HOST = "host"
INVARIANT = "invariant"
NAMES = (HOST, "reference", "triton", INVARIANT)
VARIABLE = "FSPAD_KERNELS"


class Attend(Protocol):
    """Tree attention; a window goes with the depths of the nodes."""

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        bits: Tensor,
        length: Tensor,
        scale: float,
        window: int | None = None,
        depths: Tensor | None = None,
    ) -> Tensor: ...


Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Kernels(NamedTuple):
    """One implementation of every kernel; the module `reference` defines what each computes.

    `multiply(x, weight, bias)` is the product of few rows, None where it is torch's.
    """

    name: str
    attend: Attend
    choose: Callable[[Tensor, Tensor, Tensor, SamplerTensors], Tensor]
    walk: Callable[[Nodes, Tensor], Walk]
    compact: Callable[[Tensor, Tensor, Walk], None]
    multiply: Multiply | None = None


def chosen(device: torch.device) -> Kernels | None:
    """Return the kernels for tensors on this device, or None if the host does their work.

    Raise BenchError if the requested ones are unknown or cannot run.
    """
    name = os.environ.get(VARIABLE, "")
    if not name:
        if device.type != "cuda":
            return None
        name = "triton" if installed() else "reference"
    if name not in NAMES:
        raise BenchError(f"{VARIABLE}={name} names no kernels", near(name, NAMES))
    if name == HOST:
        return None
    if name == "triton":
        return triton(device)
    if name == INVARIANT:
        return invariant_triton(device)
    from fspad_bench.engine.gpu import reference

    return Kernels(name, reference.attend, reference.choose, reference.walk, reference.compact)


@cache  # every step asks
def installed() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


def triton(device: torch.device) -> Kernels:
    """Return Triton's kernels. Raise BenchError if they cannot run on this device."""
    if not installed():
        raise BenchError("Triton is not installed", "pip install 'fspad-bench[kernels]'")
    if device.type == "cpu" and not interpreted():
        raise BenchError(
            "Triton's kernels need a GPU",
            "on the CPU, TRITON_INTERPRET=1 runs them slowly, for tests",
        )
    from fspad_bench.engine.gpu import attention, compaction, verification

    return Kernels(
        "triton",
        attention.attend,
        verification.choose,
        verification.walk,
        compaction.compact,
    )


def invariant_triton(device: torch.device) -> Kernels:
    """Return Triton's kernels whose rows get the same bits in any company, products among them.

    Raise BenchError if they cannot run on this device.
    """
    kernels = triton(device)
    from fspad_bench.engine.gpu import invariant

    return kernels._replace(name=INVARIANT, attend=invariant.attend, multiply=invariant.product)
