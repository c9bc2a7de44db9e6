"""What the leader of a target's team tells the other processes to do (`team`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from fspad_bench.engine.attention import Pending
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.stock import StockForward, whole_features
from fspad_bench.util.strangers import described

PATIENCE_SECONDS = 60.0  # until a process answers
LOADING_SECONDS = 7200.0  # until it has loaded its share


class Load(Protocol):
    """Loads this process's share of the weights anew, in a precision."""

    def __call__(self, dtype: torch.dtype) -> PreTrainedModel: ...


class FollowedTarget(Protocol):
    """What a follower needs of its target."""

    model: PreTrainedModel
    stock: StockForward
    device: torch.device

    def new_cache(self, slots: int) -> KVCache: ...


class Following(Protocol):
    """A process that carries out orders, and what it holds by the numbers that orders name."""

    target: FollowedTarget
    load: Load
    caches: dict[int, KVCache]
    copies: dict[int, PreTrainedModel]


@dataclass(frozen=True)
class Order(ABC):
    """Something that every process of a team does.

    With `patience`, in seconds, the leader waits so long for an answer.
    """

    patience: ClassVar[float] = 0.0

    @abstractmethod
    def carry_out(self, follower: Following) -> Any:
        """Do it in a follower; what is returned is the answer."""


@dataclass(frozen=True)
class Allocate(Order):
    key: int
    slots: int

    def carry_out(self, follower: Following) -> None:
        follower.caches[self.key] = follower.target.new_cache(self.slots)


@dataclass(frozen=True)
class Free(Order):
    """Drop a cache or a precise copy."""

    key: int

    def carry_out(self, follower: Following) -> None:
        follower.caches.pop(self.key, None)
        follower.copies.pop(self.key, None)


@dataclass(frozen=True)
class Keep(Order):
    key: int
    start: int
    path: Sequence[int]

    def carry_out(self, follower: Following) -> None:
        follower.caches[self.key].keep(self.start, self.path)


@dataclass(frozen=True)
class Forward(Order):
    key: int
    tokens: Sequence[int]
    pending: Pending | None

    def carry_out(self, follower: Following) -> None:
        follower.target.stock(self.tokens, follower.caches[self.key], self.pending)


@dataclass(frozen=True)
class Features(Order):
    tokens: Sequence[int]

    def carry_out(self, follower: Following) -> None:
        whole_features(follower.target.model, self.tokens)


@dataclass(frozen=True)
class Copy(Order):
    """Load a precise copy; the answer says why it could not be loaded."""

    patience: ClassVar[float] = LOADING_SECONDS
    key: int
    dtype: torch.dtype

    def carry_out(self, follower: Following) -> str:
        try:
            follower.copies[self.key] = follower.load(self.dtype)
        except Exception as error:
            return described(error)
        return ""


@dataclass(frozen=True)
class Rescore(Order):
    key: int
    tokens: Sequence[int]

    def carry_out(self, follower: Following) -> None:
        whole_features(follower.copies[self.key], self.tokens)


@dataclass(frozen=True)
class ForgetPeak(Order):
    def carry_out(self, follower: Following) -> None:
        if follower.target.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(follower.target.device)


@dataclass(frozen=True)
class Peak(Order):
    patience: ClassVar[float] = PATIENCE_SECONDS

    def carry_out(self, follower: Following) -> int:
        device = follower.target.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
