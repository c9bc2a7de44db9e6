"""The processes that hold a target: one, or a team that shares the weights of each layer (tensor
parallelism).

- The process that decodes leads. It drafts, verifies and keeps the record, so nothing that follows
  a clock can differ between processes. The others follow: they run the forwards and cache moves
  that it names, each on a device of its own.
- Each process holds its share of every layer, by transformers' own plan, and of the cache's heads;
  embedding, norms and LM head whole. Hidden states are summed twice a layer.
- A process that fails leaves the others within a sum: nothing can be asked of the team afterwards,
  and what is under way ends (`TargetLost`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import Connection
from typing import Any, Self
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fspad_bench.engine.attention import HeadShape, Pending
from fspad_bench.engine.cache import KVCache, move_entries
from fspad_bench.engine.orders import (
    Allocate,
    Copy,
    Features,
    FollowedTarget,
    ForgetPeak,
    Forward,
    Free,
    Keep,
    Load,
    Order,
    Peak,
    Rescore,
)
from fspad_bench.engine.stock import StockForward, whole_features
from fspad_bench.util.errors import BenchError, TargetLost
from fspad_bench.util.strangers import described


class Team:
    """One process; `devices` are those among which weights are shared, none where it is alone."""

    devices: tuple[torch.device, ...] = ()

    def __deepcopy__(self, _: Any) -> Self:
        """A copy of a target or a model is held by the same processes."""
        return self

    @property
    def size(self) -> int:
        return max(1, len(self.devices))

    def forward(self, model: PreTrainedModel, shape: HeadShape) -> StockForward:
        """Return the stock forward of a model that lies with this team."""
        return StockForward(model, shape)

    def hold(self, cache: KVCache) -> None:
        """Let the other processes have a cache like this one, and move its entries as it does."""

    def in_step(self) -> AbstractContextManager[None]:
        """Do in the block what each process does at its own; an exception there loses the team."""
        return nullcontext()

    def guard(self, model: PreTrainedModel) -> None:
        """Let a model raise where it is run without the other processes."""

    def precise(self, model: PreTrainedModel, dtype: torch.dtype) -> Precise:
        """Return a copy of a model in a higher precision."""
        return Precise(copy.deepcopy(model).to(dtype))

    def features(self, model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
        """Return the features `[N, d]` of a text, by transformers' own forward without a cache."""
        return whole_features(model, tokens)

    def forget_peak_memory(self) -> None:
        """Let the other processes begin anew to note their peak."""

    def peak_memory(self) -> int:
        """Return the bytes that the GPUs of the other processes held at most, all together."""
        return 0

    def close(self) -> None:
        """End the other processes."""


ALONE = Team()


class Precise:
    """A copy of a target's model that re-scores what the target wrote."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def logits(self, tokens: Sequence[int], first: int) -> Tensor:
        """Return the logits `[N - first, V]` after each token of a text from number `first` on."""
        logits: Tensor = self.model.get_output_embeddings()(self.features(tokens)[first:])
        return logits

    def features(self, tokens: Sequence[int]) -> Tensor:
        return whole_features(self.model, tokens)


class Follower(Team):
    """A process that runs what the leader of its team names; `load` loads its share again."""

    def __init__(self, devices: Sequence[torch.device], load: Load) -> None:
        self.devices = tuple(devices)
        self.load = load
        self.caches: dict[int, KVCache] = {}
        self.copies: dict[int, PreTrainedModel] = {}

    def follow(self, target: FollowedTarget, orders: Connection) -> None:
        """Carry out orders until the leader has gone."""
        self.target = target
        with torch.inference_mode():
            while True:
                try:
                    order: Order = orders.recv()
                except (EOFError, OSError):
                    return
                answer = order.carry_out(self)
                if order.patience:
                    orders.send(answer)


class Leader(Team):
    """The process that decodes, and its connections to the others."""

    def __init__(
        self, devices: Sequence[torch.device], load: Load, followers: Sequence[Connection]
    ) -> None:
        self.devices = tuple(devices)
        self.load = load
        self.followers = list(followers)
        self.lost = ""
        self.is_ordered = False
        self._numbers = itertools.count()
        self._keys: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self._freed: list[int] = []

    def order(self, order: Order) -> list[Any]:
        """Tell the others what to do; returns their answers. Raises TargetLost."""
        self.send(order)
        return self.answers(order) if order.patience else []

    def send(self, order: Order) -> None:
        """Tell the others what to do, and do not wait for answers. Raises TargetLost."""
        if self.lost:
            raise _lost(self.lost)
        while self._freed:
            self._send(Free(self._freed.pop()))
        self._send(order)

    def answers(self, order: Order) -> list[Any]:
        """Return the answers to an order that was sent. Raises TargetLost."""
        return [self._answer(connection, order.patience) for connection in self.followers]

    @contextmanager
    def together(self, order: Order) -> Iterator[None]:
        """Let the others carry out an order while this process does the same in the block.

        Raises TargetLost where a process has ended; what the block raises leaves the team out of
        step, and so loses it too.
        """
        with self.in_step():
            self.order(order)
            yield

    @contextmanager
    def in_step(self) -> Iterator[None]:
        self.is_ordered = True
        try:
            yield
        except BaseException as error:
            self.lost = self.lost or self.reason(error)
            if isinstance(error, BenchError) or not isinstance(error, Exception):  # Ctrl-C, say
                raise
            raise _lost(self.lost) from error
        finally:
            self.is_ordered = False

    def reason(self, error: BaseException) -> str:
        """Say why the team is lost after an exception of a forward."""
        return described(error)

    def key_of(self, cache: KVCache) -> int:
        """Return the number by which the others know a cache."""
        return self._keys[cache]

    def forward(self, model: PreTrainedModel, shape: HeadShape) -> StockForward:
        return LeadingForward(model, shape, self)

    def hold(self, cache: KVCache) -> None:
        key = next(self._numbers)

        def keep(entries: Tensor, start: int, path: Sequence[int]) -> None:
            with self.together(Keep(key, start, list(path))):
                move_entries(entries, start, path)

        cache.compact = keep
        self.order(Allocate(key, cache.slots))
        self._keys[cache] = key
        self._free_with(cache, key)

    def guard(self, model: PreTrainedModel) -> None:
        """Let a model raise where it is run alone: it would wait for the others forever."""
        for module in model.base_model.modules():
            if module is model.base_model or any(
                isinstance(weight, DTensor) for weight in module.parameters(recurse=False)
            ):
                module.register_forward_pre_hook(self._check_ordered)

    def precise(self, model: PreTrainedModel, dtype: torch.dtype) -> Precise:
        key = next(self._numbers)
        copied = LeadingPrecise(self.load, dtype, self, key)
        self._free_with(copied, key)
        return copied

    def features(self, model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
        with self.together(Features(list(tokens))):
            return whole_features(model, tokens)

    def forget_peak_memory(self) -> None:
        self.order(ForgetPeak())

    def peak_memory(self) -> int:
        return sum(self.order(Peak()))

    def close(self) -> None:
        self.lost = self.lost or "it was closed"
        for connection in self.followers:
            connection.close()
        self.followers.clear()

    def _free_with(self, held: object, key: int) -> None:
        """Let the others drop what has this number once it is gone here."""
        finalize(held, self._freed.append, key)  # told with the next order: this may run anywhere

    def _send(self, order: Order) -> None:
        for connection in self.followers:
            try:
                connection.send(order)
            except OSError as error:
                self.lost = "a process that holds a share of it has ended"
                raise _lost(self.lost) from error

    def _answer(self, connection: Connection, patience: float) -> Any:
        try:
            if connection.poll(patience):
                return connection.recv()
        except (OSError, EOFError):
            pass
        self.lost = "a process that holds a share of it does not answer"
        raise _lost(self.lost)

    def _check_ordered(self, *_: Any) -> None:
        if not self.is_ordered:
            raise BenchError(
                "the target's weights are shared among several processes, and this needs its "
                "model in one",
                "load the target on one device, or spread its layers: cuda:0,cuda:1",
            )


class LeadingForward(StockForward):
    """The stock forward of all processes of a team."""

    def __init__(self, model: PreTrainedModel, shape: HeadShape, team: Leader) -> None:
        super().__init__(model, shape)
        self.team = team

    def __call__(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        pending: Pending | None = None,
        capture: tuple[int, ...] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        with self.team.together(Forward(self.team.key_of(cache), list(tokens), pending)):
            return super().__call__(tokens, cache, pending, capture)


class LeadingPrecise(Precise):
    """A precise copy that is shared among the processes of a team.

    Raises BenchError where a process has no room for its share; the team goes on without.
    """

    def __init__(self, load: Load, dtype: torch.dtype, team: Leader, key: int) -> None:
        self.team = team
        self.key = key
        order = Copy(key, dtype)
        with team.in_step():  # Ctrl-C would leave answers unread
            team.send(order)
            try:
                own, reason = load(dtype), ""
            except Exception as error:
                own, reason = None, described(error)
            reasons = [reason, *team.answers(order)]
        if own is None or any(reasons):
            team.order(Free(key))
            raise BenchError(
                f"the shared target has no precise copy: {next(filter(None, reasons))}",
                "a share of it in higher precision must fit beside the target's own",
            )
        super().__init__(own)

    def features(self, tokens: Sequence[int]) -> Tensor:
        with self.team.together(Rescore(self.key, list(tokens))):
            return super().features(tokens)


def _lost(reason: str) -> TargetLost:
    hint = "give the same command again: what was measured is kept"
    if reason.startswith("out of memory"):
        hint = "what was measured is kept; answers as long as this one need more memory"
    return TargetLost(f"the target is lost: {reason}", hint)
