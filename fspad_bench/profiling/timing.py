"""Time a call, and the rates of a large copy and a large matrix product, on a device.

- On a GPU: the median over many runs with cold caches, by the device's clock, since the host's
  would add the launches.
- On the CPU: the fastest of a few turns, since other work can only add to a time.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from fspad_bench.engine.gpu.replay import Replay

# bytes; far more than any cache holds
CPU_COPY = 1 << 28
GPU_COPY = 1 << 30
CPU_TURNS = 3
COPY_TURNS = 5
# rows and columns of a square matrix
CPU_PRODUCT = 512
GPU_PRODUCT = 8192


def seconds(
    run: Callable[[], object], device: torch.device, *, captured: bool = False, turns: int = 0
) -> float:
    """Return the seconds of a call. `turns`, by default CPU_TURNS, count on the CPU alone.

    With `captured`, a GPU replays the call as a graph, as it does the steps of a decoder: the
    launches of small kernels would take longer than the kernels.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        if captured:
            run = _captured(run, device)
        return do_bench(run, return_mode="median") / 1e3
    times = []
    for _ in range(turns or CPU_TURNS):
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return min(times)


def _captured(run: Callable[[], object], device: torch.device) -> Replay:
    def run_once() -> None:
        run()

    replay = Replay(run_once, device)
    for _ in range(2):  # the first call compiles the kernels, the second captures them
        replay()
    return replay


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes read and written per second by a large copy."""
    size = GPU_COPY if device.type == "cuda" else CPU_COPY
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return 2 * size / seconds(lambda: copy.copy_(source), device, turns=COPY_TURNS)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of a large square matrix product."""
    size = GPU_PRODUCT if device.type == "cuda" else CPU_PRODUCT
    a = torch.randn(size, size, device=device).to(dtype)  # ones would run at a higher clock
    return 2 * size**3 / seconds(lambda: a @ a, device)
