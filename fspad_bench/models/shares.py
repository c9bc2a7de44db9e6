"""Share a target's weights out among processes, by transformers' tensor parallel plan.

- `start` makes this process the leader of a `Team` and starts the others on this machine; each runs
  this module, loads its share, and follows.
- Embedding, norms and LM head are whole in every process, so that draft heads find them.
- `cpu:0+cpu:1` is a rehearsal without GPUs: two processes on one processor.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from shutil import rmtree
from subprocess import DEVNULL, Popen, TimeoutExpired
from threading import Thread
from time import sleep
from typing import Any

import torch
from torch import distributed
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from fspad_bench.engine.architecture import check_architecture
from fspad_bench.engine.orders import LOADING_SECONDS
from fspad_bench.engine.team import Follower, Leader
from fspad_bench.util import machine
from fspad_bench.util.errors import BenchError, TargetLost
from fspad_bench.util.strangers import described
from fspad_bench.util.terminal import note

RETURNED = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
WHOLE = "replicated_with_grad_allreduce"  # transformers' name of a module that is not shared out
START_SECONDS = 300.0  # for a process to import what it needs; large clusters read slow disks
# that a sum waits for the slowest process, the first one: it reads all files for their hash
SUM_SECONDS = {"cpu": 300.0, "cuda": 7200.0}
END_SECONDS = 10.0
NOTICE_SECONDS = 1.0  # until the end of a process is known that broke off a sum
STARTED = "started"
LOADED = "loaded"
STANDARD_ERROR = 2


@dataclass(frozen=True)
class Member:
    """A process of a team: `rank` 0 leads. They find each other by the file `store`."""

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
            timeout=timedelta(seconds=SUM_SECONDS[self.device.type]),
            device_id=self.device if is_cuda else None,
        )

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """Load this process's share of the weights."""
        model, _ = self.loaded(dtype)
        return model

    def loaded(self, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load this process's share of the weights, and what transformers says of the files."""
        config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        shared = DistributedConfig(tp_size=len(self.devices), tp_plan=_plan_of(config))
        with _local_rank(self.device.index or 0):
            pair: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=dtype,
                distributed_config=shared,
                trust_remote_code=False,
                output_loading_info=True,
                **RETURNED,
            )
        return pair


@contextmanager
def _local_rank(number: int) -> Iterator[None]:
    """Tell transformers a process's device, by the variable that torchrun would set."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def check(path: str, devices: Sequence[str]) -> None:
    """Raise BenchError for a target or devices that no team can be made of."""
    count = len(devices)
    gc.collect()  # a target that is gone leaves its group
    if distributed.is_initialized():
        raise BenchError(
            "this process is part of a group already",
            "start one process, without torchrun, and load one target that is shared out",
        )
    kind = torch.device(devices[0]).type
    if kind not in ("cpu", "cuda"):
        raise BenchError(
            f"{'+'.join(devices)}: weights are shared among CUDA devices only",
            "spread the layers instead, with commas",
        )
    if kind == "cpu" and torch.cuda.is_available():
        raise BenchError(
            f"{'+'.join(devices)} is a rehearsal for machines without a GPU, and this has one",
            "name GPUs, such as cuda:0+cuda:1, or hide them: CUDA_VISIBLE_DEVICES=''",
        )
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    check_architecture(config)
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

    Returns the model, what transformers says of the files, and the team that this process leads:
    whoever gets it closes it. Raises BenchError for what `check` refuses and where a process does
    not start or cannot load its share.
    """
    check(path, devices)
    folder = tempfile.mkdtemp(prefix="fspad-bench-team-")
    own = Member(0, tuple(devices), f"{folder}/store", path, dtype, torch.get_num_threads())
    team = StartedTeam(own, folder)
    try:
        for rank in range(1, len(devices)):
            team.add(replace(own, rank=rank))
        team.wait_for_all(STARTED, START_SECONDS)
        team.watch()
        team.join()
        model, report = own.loaded(dtype)
        team.wait_for_all(LOADED, LOADING_SECONDS)
    except BaseException:
        team.close()
        raise
    return model, report, team


class StartedTeam(Leader):
    """A leader that starts the processes which follow it, and ends them."""

    def __init__(self, own: Member, folder: str) -> None:
        super().__init__([torch.device(name) for name in own.devices], own.load, [])
        self.own = own
        self.folder = folder
        self.processes: list[Popen[bytes]] = []
        self.is_joined = False
        atexit.register(self.close)

    def add(self, member: Member) -> None:
        """Start a process. Raises BenchError where it ends at once."""
        connection, other_end = Pipe()
        self.followers.append(connection)
        code = f"from {__name__} import main; main({other_end.fileno()})"
        command = [sys.executable, "-P", "-c", code]
        with other_end:
            process = Popen(
                command, stdin=DEVNULL, stdout=STANDARD_ERROR, pass_fds=[other_end.fileno()]
            )
        self.processes.append(process)
        machine.count_as_own(process.pid)
        try:
            connection.send(member)
        except OSError as error:
            raise _not_started("it ended at once") from error

    def wait_for_all(self, answer: str, seconds: float) -> None:
        """Wait until each process says so. Raises BenchError where one does not."""
        for connection in self.followers:
            try:
                said = connection.recv() if connection.poll(seconds) else "it is silent"
            except (EOFError, OSError):
                said = "it has ended"
            if said != answer:
                raise _not_started(said)

    def join(self) -> None:
        self.own.join()
        self.is_joined = True

    def watch(self) -> None:
        """End this process where another has ended and it waits on a GPU for that one's sum: such
        a wait is deaf to everything else.
        """
        if self.own.device.type == "cuda":
            Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.lost:
            sleep(NOTICE_SECONDS)
            if not any(process.poll() is not None for process in self.processes):
                continue
            sleep(END_SECONDS)  # the next order, or gloo, may tell first
            if not self.lost:
                note("error: the target is lost: a process that holds a share of it has ended")
                note("hint:  give the same command again: what was measured is kept")
                os._exit(TargetLost.exit_code)

    def reason(self, error: BaseException) -> str:
        if any(_ends(process, NOTICE_SECONDS) for process in self.processes):
            return "a process that holds a share of it has ended"
        return super().reason(error)

    def close(self) -> None:
        super().close()
        atexit.unregister(self.close)
        if self.is_joined:
            self.is_joined = False
            distributed.destroy_process_group()
        for process in self.processes:
            if not _ends(process, END_SECONDS):
                process.kill()
                process.wait()
            machine.forget(process.pid)
        self.processes.clear()
        rmtree(self.folder, ignore_errors=True)


def _not_started(reason: str) -> BenchError:
    return BenchError(
        f"a process for a share of the target did not start: {reason}",
        "what it printed stands above",
    )


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

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's to heed
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    orders = Connection(descriptor)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    member: Member = orders.recv()
    orders.send(STARTED)
    torch.set_num_threads(member.threads)
    member.join()
    follower = Follower(tuple(map(torch.device, member.devices)), member.load)
    try:
        model = follower.load(member.dtype)
    except Exception as error:  # a stranger's files: libraries raise whatever they stumble over
        orders.send(described(error))
        return
    orders.send(LOADED)
    follower.follow(TransformersTarget(model, None, team=follower), orders)
    distributed.destroy_process_group()


def _end_with(leader: int) -> None:
    """End this process when its leader has: on a GPU it may wait for that one's sum."""
    while os.getppid() == leader:
        sleep(NOTICE_SECONDS)
    sleep(END_SECONDS)
    os._exit(1)
