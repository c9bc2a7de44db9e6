"""The processes that hold a target: one, or a team that shares the weights of each layer (tensor
parallelism).

- The process that decodes leads. It drafts, verifies and keeps the record, so nothing that follows
  a clock can differ between processes. The others follow: they run the forwards and cache moves
  that it names, each on a device of its own.
- Each process holds its share of every layer, by transformers' own plan, and of the cache's heads;
  embedding, norms and LM head whole. Hidden states are summed twice a layer.
- A process that fails leaves the others within a sum: nothing can be asked of the team afterwards.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fspad_bench.engine.attention import HeadShape, Pending
from fspad_bench.engine.cache import Compact, KVCache, move_entries
from fspad_bench.engine.stock import StockForward, whole_features
from fspad_bench.util.errors import BenchError, TargetLost
from fspad_bench.util.strangers import described

PATIENCE_SECONDS = 60.0  # until a process answers that holds its share


class Load(Protocol):
    """Loads this process's share of the weights anew, in a precision."""

    def __call__(self, dtype: torch.dtype) -> PreTrainedModel: ...


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

    def cache(
        self,
        devices: Sequence[torch.device],
        shape: HeadShape,
        slots: int,
        dtype: torch.dtype,
        compact: Compact | None = None,
    ) -> KVCache:
        """Allocate a cache for this process's share of the heads, of layers on these devices."""
        return KVCache(devices, shape.kv_heads // self.size, slots, shape.dim, dtype, compact)

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
    """A process that runs what the leader of its team names.

    - `load` loads its share again; `model` and `shape` are of the target that it holds.
    """

    def __init__(self, devices: Sequence[torch.device], load: Load) -> None:
        self.devices = tuple(devices)
        self.load = load
        self.caches: dict[int, KVCache] = {}
        self.copies: dict[int, PreTrainedModel] = {}

    def follow(self, target: Held, orders: Connection) -> None:
        """Carry out orders until the leader has gone."""
        self.target = target
        with torch.inference_mode():
            while True:
                try:
                    order: Order = orders.recv()
                except EOFError:
                    return
                answer = order.carry_out(self)
                if order.is_answered:
                    orders.send(answer)


class Held(Protocol):
    """What a follower needs of its target."""

    model: PreTrainedModel
    stock: StockForward
    device: torch.device

    def new_cache(self, slots: int) -> KVCache: ...


@dataclass(frozen=True)
class Order:
    """Something that every process of a team does; where it is answered, the leader waits."""

    is_answered = False

    def carry_out(self, follower: Follower) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Allocate(Order):
    key: int
    slots: int

    def carry_out(self, follower: Follower) -> None:
        follower.caches[self.key] = follower.target.new_cache(self.slots)


@dataclass(frozen=True)
class Free(Order):
    key: int

    def carry_out(self, follower: Follower) -> None:
        del follower.caches[self.key]


@dataclass(frozen=True)
class Keep(Order):
    key: int
    start: int
    path: Sequence[int]

    def carry_out(self, follower: Follower) -> None:
        follower.caches[self.key].keep(self.start, self.path)


@dataclass(frozen=True)
class Forward(Order):
    key: int
    tokens: Sequence[int]
    pending: Pending | None

    def carry_out(self, follower: Follower) -> None:
        follower.target.stock(self.tokens, follower.caches[self.key], self.pending)


@dataclass(frozen=True)
class Features(Order):
    tokens: Sequence[int]

    def carry_out(self, follower: Follower) -> None:
        whole_features(follower.target.model, self.tokens)


@dataclass(frozen=True)
class Copy(Order):
    key: int
    dtype: torch.dtype

    def carry_out(self, follower: Follower) -> None:
        follower.copies[self.key] = follower.load(self.dtype)


@dataclass(frozen=True)
class Rescore(Order):
    key: int
    tokens: Sequence[int]

    def carry_out(self, follower: Follower) -> None:
        whole_features(follower.copies[self.key], self.tokens)


@dataclass(frozen=True)
class ForgetPeak(Order):
    def carry_out(self, follower: Follower) -> None:
        if follower.target.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(follower.target.device)


@dataclass(frozen=True)
class Peak(Order):
    is_answered = True

    def carry_out(self, follower: Follower) -> int:
        device = follower.target.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


class Leader(Team):
    """The process that decodes, and the ways to the others."""

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
        if self.lost:
            raise _lost(self.lost)
        while self._freed:
            key = self._freed.pop()
            self._send(Free(key))
        self._send(order)
        return [self._answer(way) for way in self.followers] if order.is_answered else []

    @contextmanager
    def together(self, order: Order) -> Iterator[None]:
        """Let the others carry out an order while this process does the same in the block.

        Raises TargetLost where a process has ended; what the block raises leaves the team out of
        step, and so loses it too.
        """
        self.order(order)
        self.is_ordered = True
        try:
            yield
        except BaseException as error:
            self.lost = self.reason(error)
            if not isinstance(error, Exception):  # Ctrl-C
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

    def cache(
        self,
        devices: Sequence[torch.device],
        shape: HeadShape,
        slots: int,
        dtype: torch.dtype,
        compact: Compact | None = None,
    ) -> KVCache:
        key = next(self._numbers)
        self.order(Allocate(key, slots))

        def keep(entries: Tensor, start: int, path: Sequence[int]) -> None:
            self.order(Keep(key, start, list(path)))
            move_entries(entries, start, path)

        cache = super().cache(devices, shape, slots, dtype, keep)
        self._keys[cache] = key
        finalize(cache, self._freed.append, key)  # told with the next order: this may run anywhere
        return cache

    def guard(self, model: PreTrainedModel) -> None:
        """Let a model raise where it is run alone: it would wait for the others forever."""
        model.base_model.register_forward_pre_hook(self._check_ordered)

    def precise(self, model: PreTrainedModel, dtype: torch.dtype) -> Precise:
        key = next(self._numbers)
        with self.together(Copy(key, dtype)):
            return LeadingPrecise(self.load(dtype), self, key)

    def features(self, model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
        with self.together(Features(list(tokens))):
            return whole_features(model, tokens)

    def forget_peak_memory(self) -> None:
        self.order(ForgetPeak())

    def peak_memory(self) -> int:
        return sum(self.order(Peak()))

    def close(self) -> None:
        self.lost = self.lost or "it was closed"
        for way in self.followers:
            way.close()
        self.followers.clear()

    def _send(self, order: Order) -> None:
        for way in self.followers:
            try:
                way.send(order)
            except OSError as error:
                self.lost = "a process of the target has ended"
                raise _lost(self.lost) from error

    def _answer(self, way: Connection) -> Any:
        try:
            if way.poll(PATIENCE_SECONDS):
                return way.recv()
        except (OSError, EOFError):
            pass
        self.lost = "a process of the target does not answer"
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
    """A precise copy that is shared among the processes of a team."""

    def __init__(self, model: PreTrainedModel, team: Leader, key: int) -> None:
        super().__init__(model)
        self.team = team
        self.key = key

    def features(self, tokens: Sequence[int]) -> Tensor:
        with self.team.together(Rescore(self.key, list(tokens))):
            return super().features(tokens)


def _lost(reason: str) -> TargetLost:
    return TargetLost(
        f"the target is lost: {reason}",
        "give the same command again: what was measured is kept",
    )
