"""Work on a device that is captured as a CUDA graph and replayed."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


class Replay:
    """Work that runs as it stands the first time, is captured as a CUDA graph the second, and
    replayed from then on.

    On a CPU it always runs as it stands.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self.work = work
        self.graph: torch.cuda.CUDAGraph | None = None
        self.runs = 0
        self.captures = device.type == "cuda"

    def __call__(self) -> None:
        if self.captures and self.runs == 1:  # kernels are compiled by now; capturing runs nothing
            self.graph = self._capture()
        self.runs += 1
        if self.graph:
            self.graph.replay()
        else:
            self.work()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture without garbage collection: the end of another graph would end this capture."""
        torch.cuda.synchronize()
        gc.collect()
        gc.disable()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.work()
        finally:
            gc.enable()
        return graph
