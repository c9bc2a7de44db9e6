"""Every word of the noise's key matters: task, sample, turn, repeat and seed, position, token.

- The hash and the key equal those of the definition, in plain integers (`choice`), bit by bit.
- Each word changed alone changes nearly every token's noise; positions far apart included, since
  noise that repeats after 256 positions looks random otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fspad_bench.core import sampling
from fspad_bench.core.sampling import Sampler
from fspad_bench.lossless import choice
from fspad_bench.lossless.checks import Check

TOKENS = torch.arange(256)
SEEDS = (0, 1, 2**31)
POSITIONS = (0, 1, 63, 255, 256, 257, 511, 512, 1024, 2049, 4096, 65_535, 65_536, 2**20)
SOME_TOKENS = torch.tensor([0, 1, 31, 32, 63, 64, 96, 255, 256, 1023, 32_000, 49_151, 128_255])
APART = (1, 2, 16, 64, 128, 255, 256, 512, 1024, 4096, 65_536)  # positions
MOST = 0.9  # of the tokens whose noise must change
NOISE_BOUND = 1e-5


def key_faults() -> list[str]:
    """Return what is wrong with the noise's key, nothing where it is right."""
    faults = [] if _is_the_definition() else ["it is not the hash of the definition"]
    return faults + [f"{word} does not matter" for word, matters in _words().items() if not matters]


def _is_the_definition() -> bool:
    for seed in SEEDS:
        sampler = Sampler(1.0, seed=seed, stream=sampling.stream_of("task", "sample", seed % 3))
        key = choice.key_of(seed, f"task\nsample\n{seed % 3}\n0")
        if sampler.key != key or sampler.dice(3, "verify").key != choice.key_of(
            seed, f"task\nsample\n{seed % 3}\n0\nverify"
        ):
            return False
        for position in POSITIONS:
            ours = sampling.hash32(sampler.key, position, SOME_TOKENS).tolist()
            right = [choice.hashed(key, position, token) for token in SOME_TOKENS.tolist()]
            noise = sampler.noise(position, SOME_TOKENS).double()
            exact = [choice.noise(key, position, token) for token in SOME_TOKENS.tolist()]
            far = (noise - torch.tensor(exact, dtype=torch.float64)).abs().max()
            if [word & sampling.MASK for word in ours] != right or not far <= NOISE_BOUND:
                return False
    return _rows_agree()


def _rows_agree() -> bool:
    """Return whether the hash of many rows, which devices use, is that of one."""
    key = Sampler(seed=5, stream="rows").key
    words = torch.tensor([sampling.signed(half) for half in key], dtype=torch.int32)
    positions = torch.tensor(POSITIONS)
    rows = sampling.hash32_rows(words[0], words[1], positions, SOME_TOKENS)
    return all(
        torch.equal(row, sampling.hash32(key, position, SOME_TOKENS))
        for row, position in zip(rows, POSITIONS, strict=True)
    )


def _noise(
    task: str = "gsm8k",
    sample: str = "12",
    turn: int = 0,
    repeat: int = 0,
    seed: int = 0,
    position: int = 37,
    token: int = 0,
) -> Tensor:
    sampler = Sampler(1.0, seed=seed, stream=sampling.stream_of(task, sample, turn, repeat))
    return sampler.noise(position, TOKENS + token)


def _words() -> dict[str, bool]:
    """Return whether each word of the key matters, changed alone."""
    base = _noise()
    changed: dict[str, Callable[[], Tensor]] = {
        "the task": lambda: _noise(task="mt_bench"),
        "the sample": lambda: _noise(sample="13"),
        "the turn": lambda: _noise(turn=1),
        "the repeat": lambda: _noise(repeat=1),
        "the seed": lambda: _noise(seed=1),
        "the token": lambda: _noise(token=1),
        "the token's high bits": lambda: _noise(token=2**15),
    }
    for apart in APART:
        changed[f"a position {apart} further"] = partial(_noise, position=37 + apart)
    return {
        word: float((noise() != base).double().mean()) >= MOST for word, noise in changed.items()
    }


def check_key() -> Check:
    faults = key_faults()
    words = len(_words())
    figure = "; ".join(faults) or f"{words} changes of one word, {len(POSITIONS)} positions"
    return Check.of("noise key", "sampler", not faults, figure, "the definition, bit by bit")
