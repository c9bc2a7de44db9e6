"""Share a target's weights out among processes, by transformers' tensor parallel plan.

- `start` makes this process the leader of a `Team` and starts the others on this machine; each runs
  this module, loads its share, and follows.
- Embedding, norms and LM head are whole in every process, so that draft heads find them.
- `cpu:0+cpu:1` is a rehearsal without GPUs: two processes on one processor.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

import torch
from torch import distributed
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from fspad_bench.engine.team import Follower, Leader
from fspad_bench.util import machine
from fspad_bench.util.errors import BenchError

RETURNED = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
WHOLE = "replicated_with_grad_allreduce"  # transformers' name of a module that is not shared out
START_SECONDS = 300.0  # for a process to import what it needs; large clusters read slow disks
SUM_SECONDS = 600.0  # that a sum waits for the slowest process
END_SECONDS = 10.0
NOTICE_SECONDS = 1.0  # until the end of a process is known that broke off a sum
STARTED = "started"


@dataclass(frozen=True)
class Seat:
    """A process's place in a team: `rank` 0 leads. They find each other by the file `store`."""

    rank: int
    devices: tuple[str, ...]
    store: str
    path: str
    dtype: torch.dtype
    threads: int

    @property
    def device(self) -> torch.device:
        return torch.device(self.devices[self.rank])

    def join(self) -> None:
        """Wait until the whole team is there."""
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            torch.cuda.set_device(self.device)
        distributed.init_process_group(
            "nccl" if is_cuda else "gloo",
            init_method=f"file://{self.store}",
            rank=self.rank,
            world_size=len(self.devices),
            timeout=timedelta(seconds=SUM_SECONDS),
            device_id=self.device if is_cuda else None,
        )

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """Load this process's share of the weights."""
        model, _ = self.loaded(dtype)
        return model

    def loaded(self, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load this process's share of the weights, and what transformers says of the files."""
        os.environ["LOCAL_RANK"] = str(self.device.index or 0)  # transformers' way to the device
        config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        pair: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            self.path,
            dtype=dtype,
            distributed_config=DistributedConfig(
                tp_size=len(self.devices), tp_plan=_plan_of(config)
            ),
            trust_remote_code=False,
            output_loading_info=True,
            **RETURNED,
        )
        return pair


def check(path: str, devices: Sequence[str]) -> None:
    """Raise BenchError for a target or devices that no team can be made of."""
    count = len(devices)
    if distributed.is_initialized():
        raise BenchError(
            "this process is part of a group already",
            "start one process, without torchrun, and load one target that is shared out",
        )
    if torch.device(devices[0]).type == "cpu" and torch.cuda.is_available():
        raise BenchError(
            f"{'+'.join(devices)} is a rehearsal for machines without a GPU, and this has one",
            "name GPUs, such as cuda:0+cuda:1, or hide them: CUDA_VISIBLE_DEVICES=''",
        )
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    _plan_of(config)
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % count:
            raise BenchError(
                f"{name} is {getattr(config, name)}, which {count} devices cannot share evenly",
                "name another number of devices, or spread the layers: cuda:0,cuda:1",
            )


def start(
    path: str, devices: Sequence[str], dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any], Leader]:
    """Start the other processes and load this one's share of a checkpoint's weights.

    Returns the model, what transformers says of the files, and the team that this process leads.
    Raises BenchError for what `check` refuses and where a process does not start.
    """
    check(path, devices)
    folder = tempfile.mkdtemp(prefix="fspad-bench-team-")
    own = Seat(0, tuple(devices), f"{folder}/store", path, dtype, torch.get_num_threads())
    processes: list[Popen[bytes]] = []
    ways: list[Connection] = []
    for rank in range(1, len(devices)):
        way, their = Pipe()
        with their:
            code = f"from {__name__} import main; main({their.fileno()})"
            command = [sys.executable, "-P", "-c", code]
            processes.append(Popen(command, pass_fds=[their.fileno()]))
        machine.count_as_own(processes[-1].pid)
        ways.append(way)
        way.send(Seat(rank, own.devices, own.store, path, dtype, own.threads))
    places = tuple(torch.device(name) for name in devices)
    team = _Started(places, own, ways, processes, folder)
    try:
        for way in ways:
            team.wait_for(way)
        own.join()
        model, report = own.loaded(dtype)
    except BaseException:
        team.close()
        raise
    return model, report, team


class _Started(Leader):
    """A leader that started the processes which follow it, and ends them."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        seat: Seat,
        ways: Sequence[Connection],
        processes: Sequence[Popen[bytes]],
        folder: str,
    ) -> None:
        super().__init__(devices, seat.load, ways)
        self.processes = list(processes)
        self.folder = folder
        atexit.register(self.close)

    def wait_for(self, way: Connection) -> None:
        """Wait until a process has started. Raises BenchError where it has not."""
        try:
            if way.poll(START_SECONDS) and way.recv() == STARTED:
                return
        except (EOFError, OSError):
            pass
        raise BenchError(
            "a process for a share of the target did not start", "its messages stand above"
        )

    def reason(self, error: BaseException) -> str:
        if any(_ends(process, NOTICE_SECONDS) for process in self.processes):
            return "a process that holds a share of it has ended"
        return super().reason(error)

    def close(self) -> None:
        super().close()
        atexit.unregister(self.close)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for process in self.processes:
            if not _ends(process, END_SECONDS):
                process.kill()
                process.wait()
        self.processes.clear()
        store = Path(self.folder)
        for file in store.glob("*"):
            file.unlink(missing_ok=True)
        if store.is_dir():
            store.rmdir()


def _ends(process: Popen[bytes], seconds: float) -> bool:
    """Return whether a process ends within some seconds."""
    try:
        process.wait(seconds)
    except TimeoutExpired:
        return False
    return True


def _plan_of(config: PreTrainedConfig) -> dict[str, str]:
    """Return the plan of a model's layers, all else whole. Raises BenchError without one."""
    stated = getattr(config, "base_model_tp_plan", None) or {}
    layers = {name: style for name, style in stated.items() if name.startswith("layers.")}
    if not layers:
        raise BenchError(
            f"transformers has no tensor parallel plan for '{config.model_type}'",
            "spread its layers instead: cuda:0,cuda:1",
        )
    shared = {f"model.{name}": style for name, style in layers.items()}
    return {**shared, "model.embed_tokens": WHOLE, "lm_head": WHOLE}


def main(descriptor: int) -> None:
    """Be one of a team's followers, told what to do over this open file, until its leader has
    gone.
    """
    from fspad_bench.engine.target import TransformersTarget

    orders = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's to heed
    transformers_logging.disable_progress_bar()
    seat: Seat = orders.recv()
    orders.send(STARTED)
    torch.set_num_threads(seat.threads)
    seat.join()
    follower = Follower(tuple(map(torch.device, seat.devices)), partial(Seat.load, seat))
    target = TransformersTarget(follower.load(seat.dtype), None, team=follower)
    follower.follow(target, orders)
    distributed.destroy_process_group()
