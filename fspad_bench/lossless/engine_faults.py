"""Mistakes of the engine that show at one size only, and the list of all that do (`choice_faults`).

- Each is one line of production code gone wrong where the texts of a small target in float64 do not
  look: from node 64 on, beyond 1,024 keys, at paths of nine.
- They are `Mutation`s: the checks that must refuse each are listed, and those that cannot see it.
- A mistake of compiled code is put in where Python calls it; the nightly tests compile it instead.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fspad_bench.core.protocols import Context, Limit
from fspad_bench.engine import attention
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.device_loop import DeviceLoop
from fspad_bench.engine.forward import RopeTable
from fspad_bench.engine.session import Session
from fspad_bench.lossless.choice_faults import CHOICE_FAULTS, patched
from fspad_bench.lossless.processor_faults import PROCESSOR_FAULTS

IDENTITY = ("identity greedy", "identity T=1")
RIGHT_BITS = attention.ancestor_bits
RIGHT_KEEP = KVCache.keep
RIGHT_COMMIT = Session.commit
RIGHT_CLOSE = Session.close
RIGHT_ROPE = RopeTable.of
RIGHT_POSITIONS = attention.Pending.positions
RIGHT_ATTEND = Native.attend
RIGHT_STEP = DeviceLoop._step


def bits_lost_from_node_64(ancestry: Sequence[int]) -> Tensor:
    bits = RIGHT_BITS(ancestry)
    bits[:, 1:] = 0  # wrong: a node sees no ancestor beyond the first word
    return bits


def sign_bit_lost(ancestry: Sequence[int]) -> Tensor:
    return RIGHT_BITS(ancestry) & (2**63 - 1)  # wrong: node 63 is nobody's ancestor, nor its own


def nine_without_the_last(self: KVCache, start: int, path: Sequence[int]) -> None:
    RIGHT_KEEP(self, start, path[:8] if len(path) == 9 else path)  # wrong: its last entry stays


def sixteen_without_values(self: KVCache, start: int, path: Sequence[int]) -> None:
    values = [part[:, 1].clone() for part in self.parts]
    RIGHT_KEEP(self, start, path)
    if len(path) == 16:
        for part, held in zip(self.parts, values, strict=True):
            part[:, 1] = held  # wrong: only keys are moved


def twelve_one_short(self: Session, path: Sequence[int]) -> None:
    RIGHT_COMMIT(self, path)
    if len(path) == 12:
        self._length -= 1  # wrong: the window of a path of twelve ends one entry early


def not_a_number_at_the_end(self: Session) -> None:
    is_last = self._length and not self.closed
    RIGHT_CLOSE(self)
    if is_last:
        # in a copy: kernels read stale entries too, and a later generation would not be finite
        self.cache = copy.deepcopy(self.cache)
        self.cache.values[0][:, self._length - 1] = math.nan  # wrong: the last value is lost


def positions_clamped(self: RopeTable, positions: Sequence[int]) -> Tensor:
    return RIGHT_ROPE(self, [min(position, 2047) for position in positions])  # wrong


def positions_of_shallow_trees(self: attention.Pending) -> list[int]:
    positions = RIGHT_POSITIONS(self)
    if len(positions) <= 64:
        return positions
    # wrong: in a large tree nodes beyond depth eight share a position
    return [min(position, positions[0] + 8) for position in positions]


def keys_beyond_1024_skipped(
    self: Native, q: Tensor, kv: Tensor, rope: Tensor, keys: Tensor, values: Tensor, start: int,
    visible: Tensor | None, scale: float, first: Tensor | None = None,
) -> Tensor:  # fmt: skip
    seen = RIGHT_ATTEND(self, q, kv, rope, keys, values, start, visible, scale, first)
    skipped = start - 1024
    if skipped <= 0:
        return seen
    # wrong: of a long prefix, the last keys before the new entries are left out
    near = [torch.cat([x[:, :1024], x[:, start:]], dim=1).contiguous() for x in (keys, values)]
    return RIGHT_ATTEND(self, q, kv, rope, near[0], near[1], 1024, visible, scale, first)


def scaled_by_103(
    self: Native, q: Tensor, kv: Tensor, rope: Tensor, keys: Tensor, values: Tensor, start: int,
    visible: Tensor | None, scale: float, first: Tensor | None = None,
) -> Tensor:  # fmt: skip
    wrong = 1.03 if q.dtype == torch.bfloat16 else 1.0
    return RIGHT_ATTEND(self, q, kv, rope, keys, values, start, visible, scale * wrong, first)


def six_not_compacted_on_the_device(self: DeviceLoop, cache: KVCache, sampler: Any) -> None:
    length = int(self.state.length)
    RIGHT_STEP(self, cache, sampler)
    if int(self.state.walk.count) == 6:
        # wrong: the sixth entry is its neighbour's
        cache.entries[..., length + 5, :] = cache.entries[..., length + 4, :]


def ten_one_short_on_the_device(self: DeviceLoop, cache: KVCache, sampler: Any) -> None:
    RIGHT_STEP(self, cache, sampler)
    if int(self.state.walk.count) == 10:
        self.state.length -= 1  # wrong: the next step overwrites the tenth entry


def nothing_drafted(self: Limit, context: Context) -> int:
    return 0  # wrong: no draft fits; outputs are right, and say nothing


ENGINE_FAULTS = [
    patched(
        "ancestors lost from node 64 on",
        attention,
        RIGHT_BITS,
        bits_lost_from_node_64,
        caught=("tree scores", "paths"),
        blind=IDENTITY,
    ),
    patched(
        "the sign bit of ancestors lost",
        attention,
        RIGHT_BITS,
        sign_bit_lost,
        caught=("tree scores",),
        blind=IDENTITY,
    ),
    patched(
        "a path of nine without its last entry",
        KVCache,
        RIGHT_KEEP,
        nine_without_the_last,
        caught=("compaction", "paths"),
        blind=IDENTITY,
    ),
    patched(
        "a path of sixteen without its values",
        KVCache,
        RIGHT_KEEP,
        sixteen_without_values,
        caught=("compaction", "paths"),
        blind=IDENTITY,
    ),
    patched(
        "a window one short after paths of twelve",
        Session,
        RIGHT_COMMIT,
        twelve_one_short,
        caught=("paths",),
        blind=("compaction", *IDENTITY),
        unreached=("compaction",),
    ),
    patched(
        "a value that is not a number",
        Session,
        RIGHT_CLOSE,
        not_a_number_at_the_end,
        caught=("cache", "paths"),
        blind=IDENTITY,
    ),
    patched(
        "positions clamped beyond 2048",
        RopeTable,
        RIGHT_ROPE,
        positions_clamped,
        caught=("positions", "tree scores"),
        blind=("paths", *IDENTITY),
    ),
    patched(
        "positions beyond depth eight of large trees",
        attention.Pending,
        RIGHT_POSITIONS,
        positions_of_shallow_trees,
        caught=("tree scores", "paths"),
        blind=IDENTITY,
    ),
    patched(
        "keys beyond 1024 skipped",
        Native,
        RIGHT_ATTEND,
        keys_beyond_1024_skipped,
        caught=("attention", "tree scores"),
        blind=("paths", "identity T=1"),
        unreached=("identity T=1",),  # `tiny` is too narrow for the compiled step
        compiled=True,
    ),
    patched(
        "bfloat16 attention scaled by 1.03",
        Native,
        RIGHT_ATTEND,
        scaled_by_103,
        caught=("attention",),
        blind=("paths", "identity T=1"),
        unreached=("identity T=1",),
        compiled=True,
    ),
    patched(
        "paths of six not compacted on the device",
        DeviceLoop,
        RIGHT_STEP,
        six_not_compacted_on_the_device,
        caught=("paths, device",),
        blind=("paths", "compaction"),
        unreached=("paths", "compaction"),
    ),
    patched(
        "a window one short after paths of ten on the device",
        DeviceLoop,
        RIGHT_STEP,
        ten_one_short_on_the_device,
        caught=("paths, device",),
        blind=("paths",),
        unreached=("paths",),
    ),
    patched(
        "nothing is drafted",
        Limit,
        Limit.room,
        nothing_drafted,
        caught=("non-vacuity",),
        blind=("cache", *IDENTITY),
    ),
    *CHOICE_FAULTS,
    *PROCESSOR_FAULTS,
]
