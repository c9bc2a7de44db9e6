"""The likeliest tokens of a draft's level in one compiled call (`leading.hpp`), or by torch.

A draft chooses among thousands of tokens for each of a few rows. In torch that is a chain of
passes over all of them, with noise some dozen, which together take as long as the products before.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.sampling import Sampler, gumbel, hash32, words_at
from fspad_bench.engine.cpu.native import Native, native

TOLERANCE = 1e-4  # of log-probabilities, which only rank drafts


class Leaders(NamedTuple):
    """The likeliest tokens of all rows, row after row, each row's best first."""

    tokens: list[int]
    log_q: list[float]


class Noise(NamedTuple):
    """The noise of a position: `temperature` times the Gumbel variates of a sampler's `key`."""

    temperature: float
    key: tuple[int, int]
    position: int

    def of(self, tokens: Tensor) -> Tensor:
        """Return the noise of tokens, in their shape, as `Sampler.noise` has it."""
        return self.temperature * gumbel(hash32(self.key, self.position, tokens))

    @classmethod
    def at(cls, sampler: object, position: int) -> Noise | None:
        """Return a sampler's noise at a position, None of one whose noise is no function of a
        key.
        """
        if not isinstance(sampler, Sampler):
            return None
        return cls(sampler.temperature, sampler.key, position)


def leading(logits: Tensor, tokens: Tensor, count: int, noise: Noise | None = None) -> Leaders:
    """Return the `count` likeliest tokens of each row of logits `[N, V]`, whose columns are those
    of `tokens [V]`, by the softmax of logits, with noise of their sum.
    """
    served = logits.device.type == "cpu" and logits.dtype == torch.float32
    fits = tokens.dtype == torch.int64 and tokens.shape == logits.shape[1:]
    functions = native() if served and fits and 0 < count <= len(tokens) else None
    if functions is None or not is_right(functions):
        return leading_by_torch(logits, tokens, count, noise)
    return _compiled(functions, logits, tokens, count, noise)


def leading_by_torch(
    logits: Tensor, tokens: Tensor, count: int, noise: Noise | None = None
) -> Leaders:
    """Return what `leading` does, whatever the device."""
    scores = logits if noise is None else logits + noise.of(tokens)
    best = scores.log_softmax(-1).topk(count, dim=-1)
    return Leaders(tokens[best.indices].flatten().tolist(), best.values.flatten().tolist())


def _compiled(
    functions: Native, logits: Tensor, tokens: Tensor, count: int, noise: Noise | None
) -> Leaders:
    logits = logits.contiguous()
    tokens = tokens.contiguous()
    rows, width = logits.shape
    leaders = (ctypes.c_int64 * (rows * count))()
    log_q = (ctypes.c_float * (rows * count))()
    temperature, words = 0.0, (0, 0)
    if noise is not None:
        temperature, words = noise.temperature, words_at(noise.key, noise.position)
    functions.functions.fspad_leading(
        logits.data_ptr(), tokens.data_ptr(), rows, width, count, log_q, leaders, *words,
        temperature, torch.get_num_threads(),
    )  # fmt: skip
    return Leaders(list(leaders), list(log_q))


@cache
def is_right(functions: Native) -> bool:
    """Whether the compiled call chooses as torch does here: the compiler is not ours."""
    stream = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(3, 4099, generator=stream)
    tokens = torch.randperm(49152, generator=stream)[: logits.shape[1]]
    for noise in (None, Noise(0.7, (11, 2**32 - 5), 901)):
        ours = _compiled(functions, logits, tokens, 5, noise)
        theirs = leading_by_torch(logits, tokens, 5, noise)
        errors = (abs(a - b) for a, b in zip(ours.log_q, theirs.log_q, strict=True))
        if ours.tokens != theirs.tokens or not max(errors) <= TOLERANCE:
            return False
    return True
