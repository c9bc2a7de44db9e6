"""The tree verifier's kernels, and the one place that chooses between them.

On a CUDA device Triton's are used where Triton is installed, the torch reference otherwise. On the CPU there are none:
there the host walks the tree, and asks about the nodes that it reaches alone. `FSPAD_KERNELS=host|reference|triton`
chooses for any device; Triton's run on the CPU in its interpreter (TRITON_INTERPRET=1), which is for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.engine.gpu.tensors import Law, Nodes, Walk, interpreted
from fspad_bench.errors import BenchError, near

HOST = "host"
NAMES = (HOST, "reference", "triton")
VARIABLE = "FSPAD_KERNELS"


class Kernels(NamedTuple):
    """`reference` says what each computes."""

    name: str
    attend: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
    choose: Callable[[Tensor, Tensor, Tensor, Law], Tensor]
    walk: Callable[[Nodes, Tensor], Walk]
    compact: Callable[[Tensor, Tensor, Walk], None]


def chosen(device: torch.device) -> Kernels | None:
    """The kernels for tensors on this device, None where the host does their work. Raises BenchError."""
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
    from fspad_bench.engine.gpu import reference

    return Kernels(name, reference.attend, reference.choose, reference.walk, reference.compact)


@cache
def installed() -> bool:
    """Whether Triton is; every round asks, so the answer is kept."""
    return find_spec("triton") is not None


def triton(device: torch.device) -> Kernels:
    """Triton's own. Raises BenchError where they cannot run."""
    if not installed():
        raise BenchError("Triton is not installed", "pip install 'fspad-bench[kernels]'")
    if device.type == "cpu" and not interpreted():
        raise BenchError(
            "Triton's kernels need a GPU",
            "on the CPU, TRITON_INTERPRET=1 runs them slowly, for tests",
        )
    from fspad_bench.engine.gpu import attention
    from fspad_bench.engine.gpu import compaction as rows
    from fspad_bench.engine.gpu import verification as choice

    return Kernels("triton", attention.attend, choice.choose, choice.walk, rows.compact)
