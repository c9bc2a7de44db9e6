"""Work is run once, captured once, and replayed from then on; on the CPU it is just run."""

import gc
from contextlib import contextmanager

import pytest
import torch

from fspad_bench.engine.gpu.replay import Replay

CPU = torch.device("cpu")


class Graphs:
    """Stand-in for torch.cuda: a capture records the calls made in it."""

    def __init__(self):
        self.calls = []

    def CUDAGraph(self):
        return self

    @contextmanager
    def graph(self, _):
        self.calls.append("capture")
        yield

    def synchronize(self):
        self.calls.append("wait")

    def replay(self):
        self.calls.append("replay")


def test_a_step_is_run_then_captured_then_replayed(monkeypatch):
    graphs = Graphs()
    monkeypatch.setattr(torch, "cuda", graphs)
    replay = Replay(lambda: graphs.calls.append("work"), torch.device("cuda"))
    for _ in range(4):
        replay()
    assert graphs.calls == ["work", "wait", "capture", "work", "replay", "replay", "replay"]


def test_no_garbage_is_collected_while_a_graph_is_captured(monkeypatch):
    """The end of another graph, wherever the collector finds it, would end the capture."""
    graphs = Graphs()
    collecting = []
    monkeypatch.setattr(torch, "cuda", graphs)
    replay = Replay(lambda: collecting.append(gc.isenabled()), torch.device("cuda"))
    for _ in range(3):
        replay()
    assert collecting == [True, False]
    assert gc.isenabled()

    def fails():
        raise RuntimeError("no room")

    failing = Replay(fails, torch.device("cuda"))
    failing.runs = 1
    with pytest.raises(RuntimeError, match="no room"):
        failing()
    assert gc.isenabled()
    assert failing.graph is None


def test_without_a_gpu_nothing_is_captured():
    calls = []
    replay = Replay(lambda: calls.append("work"), CPU)
    for _ in range(3):
        replay()
    assert (calls, replay.graph) == (["work"] * 3, None)
