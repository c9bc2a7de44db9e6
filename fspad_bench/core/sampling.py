"""Sampling from the target: the argmax, or the argmax of processed logits plus noise keyed by
position.

- The noise of a token depends on (seed, stream, absolute position, token id) and on nothing else.
  However many nodes of a tree are sampled at the same position, each gets the token that vanilla
  would have got there: lossless becomes equality.
- The order is transformers': logits processors (`processors`), temperature, top-k, top-p, min-p.
- Logits become tokens here and nowhere else on the host, so this is where those that are not finite
  are refused: NaN, +inf, or a row of nothing but -inf. A row's best value tells; -inf beside finite
  logits only forbids a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite, log

import torch
from torch import Tensor

from fspad_bench.core.processors import Processor, name_of, process_row, wide
from fspad_bench.util.errors import BenchError

MASK = 0xFFFFFFFF
SHORTLIST = 1024
COLDEST = 1e-6


class NotFiniteError(BenchError):
    """The target's logits before a token are not finite: no token follows from them."""

    def __init__(self, position: int | None = None, processors: Sequence[Processor] = ()) -> None:
        place = "" if position is None else f" before position {position}"
        hint = "its weights are damaged, or its precision overflows: try --dtype float32"
        if processors:
            names = ", ".join(map(name_of, processors))
            hint = f"a logits processor ({names}) may have forbidden every token; or else {hint}"
        super().__init__(f"the target's logits{place} are not finite", hint)


def mix_(x: Tensor) -> Tensor:
    """Mix in place: a bijection of 32-bit integers whose every output bit depends on every input
    bit.

    The two-round multiply-xorshift finaliser with the constants of Wellons' `lowbias32`. The bits
    live in int32, whose products wrap; a shift must shed the copies of the sign.
    """
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(signed(0x846CA68B))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def mix(word: int) -> int:
    """Apply the same bijection to one unsigned word."""
    word = (word ^ word >> 16) * 0x7FEB352D & MASK
    word = (word ^ word >> 15) * 0x846CA68B & MASK
    return word ^ word >> 16


def words_at(key: tuple[int, int], position: int) -> tuple[int, int]:
    """Return the two words, unsigned, that the bits of all tokens at a position are made with."""
    row = mix((position + key[0]) & MASK)
    return row, mix(row ^ key[1])


def hash32(key: tuple[int, int], position: int, token: Tensor) -> Tensor:
    """Return 32 bits, as int32, for each token id at an absolute position.

    Identical on every device.
    """
    row, offset = words_at(key, position)
    return mix_(mix_(token.to(torch.int32) ^ signed(row)).add_(signed(offset)))


def hash_word(key: tuple[int, int], position: int, token: int) -> int:
    """Return the bits of `hash32` of one token id, unsigned; many times as fast as a tensor."""
    row, offset = words_at(key, position)
    return mix((mix(token ^ row) + offset) & MASK)


def hash32_rows(first: Tensor, second: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Return `hash32` of all `tokens [V]` at each of `positions [N]`.

    `[N, V]`. The key's halves are int32 tensors.
    """
    row = mix_((positions.to(torch.int32) + first)[:, None])
    return mix_(mix_(tokens.to(torch.int32) ^ row).add_(mix_(row ^ second)))


def gumbel(h: Tensor) -> Tensor:
    """Turn 32 hash bits into a standard Gumbel variate, float32, finite for every h.

    w = (h + 1/2) 2^-32 is uniform, E = -log(1 - w) exponential, G = -log E. In float32 w would
    round to 1 for the 128 largest h, and E to infinity, hence the bound. The halves of h are exact
    in float32, so w is rounded once.
    """
    high = ((h >> 16) & 0xFFFF).to(torch.float32).mul_(2.0**-16)
    low = (h & 0xFFFF).to(torch.float32).add_(0.5).mul_(2.0**-32)
    w = high.add_(low).clamp_(max=1 - 2.0**-24)
    return torch.log1p(w.neg_()).neg_().log_().neg_()


def signed(word: int) -> int:
    """Return an unsigned 32-bit integer as the int32 of the same bits."""
    return word - (1 << 32) if word >> 31 else word


def stream_of(task: str, sample: str, turn: int, repeat: int = 0) -> str:
    """Return the name of a generation: no two generations of a run share noise."""
    return f"{task}\n{sample}\n{turn}\n{repeat}"


@dataclass(frozen=True)
class Sampler:
    """The settings by which tokens are drawn from the target.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing.

    `processors` change the logits of each text before all else (`core.processors`): callers pass
    logits through `adjust` first. `next`, `process` and `distribution` take them as they are.

    `stream` names the generation (`stream_of`), so that no two generations share noise.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stream: str = ""
    min_p: float = 0.0
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature and not COLDEST <= self.temperature < float(
            "inf"
        ):  # colder, float32 logits overflow
            raise BenchError(
                f"temperature {self.temperature} is out of range",
                f"0 (greedy), or {COLDEST:g} and more",
            )
        if self.top_k < 0:
            raise BenchError(
                f"top-k {self.top_k} is out of range", "it is 1 or more, or 0 for no cut"
            )
        if not 0 < self.top_p <= 1:
            raise BenchError(
                f"top-p {self.top_p} is out of range", "it lies above 0 and at most at 1"
            )
        if not 0 <= self.min_p <= 1:
            raise BenchError(f"min-p {self.min_p} is out of range", "it lies from 0 to 1")

    @property
    def greedy(self) -> bool:
        return not self.temperature

    @property
    def on_host(self) -> bool:
        """Whether only the host can choose: no kernel knows processors or min-p."""
        return bool(self.processors or (self.min_p and not self.greedy))

    def adjust(self, logits: Tensor, text: Tensor, prompt_length: int) -> Tensor:
        """Return the logits `[V]` behind `text` `[L]` as the processors leave them."""
        return process_row(self.processors, logits, text, prompt_length)

    def streamed(self, stream: str) -> Sampler:
        """Return a sampler of the same settings with the noise of another generation."""
        return replace(self, stream=stream)

    @cached_property
    def key(self) -> tuple[int, int]:
        digest = hashlib.blake2b(f"{self.seed}\n{self.stream}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4]), int.from_bytes(digest[4:])

    def noise(self, position: int, tokens: Tensor) -> Tensor:
        """Return the Gumbel variates of `tokens` at `position`, in their shape, float32."""
        return gumbel(hash32(self.key, position, tokens))

    def next(self, logits: Tensor, position: int) -> int:
        """Return the token at absolute `position`, given the target's logits `[V]` before it.

        Raises NotFiniteError.
        """
        if self.greedy:
            return self._best(wide(logits), position)
        scores, tokens = self.process(logits, position)
        return int(tokens[(scores + self.noise(position, tokens)).argmax()])

    def dice(self, position: int, purpose: str) -> Dice:
        """Return draws that are independent of `noise`, for the step at `position`."""
        return Dice(self.streamed(f"{self.stream}\n{purpose}").key, position)

    def process(self, logits: Tensor, position: int | None = None) -> tuple[Tensor, Tensor]:
        """Apply the cuts: logits `[V]` -> (scores `[K]`, token ids `[K]`), in float32 or wider.

        Scores are logits over temperature: processed log-probabilities but for a constant. At a cut
        the order is (score descending, token id ascending), where transformers keeps every token
        that ties. `position` is named by the NotFiniteError that is raised for such logits.
        """
        scores = wide(logits) / self.temperature
        self._best(scores, position)
        scores, tokens = self._cut(scores)
        if not self.min_p:
            return scores, tokens
        kept = scores >= scores.max() + log(self.min_p)
        return scores[kept], tokens[kept]

    def _cut(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return what top-k and top-p keep, and the token ids, `[K]` each."""
        if self.top_p == 1 and not 0 < self.top_k < len(scores):
            return scores, torch.arange(len(scores), device=scores.device)
        size = min(self.top_k or SHORTLIST, len(scores))
        best, tokens = _leading(scores, size)
        if self.top_p == 1:
            return best, tokens
        total = scores if not self.top_k else best
        kept = self._nucleus(best, total)
        if kept == size < len(total):  # the nucleus may reach past the shortlist
            best, tokens = _leading(scores, len(scores))
            kept = self._nucleus(best, total)
        return best[:kept], tokens[:kept]

    def _nucleus(self, best: Tensor, total: Tensor) -> int:
        """Count the `best`, descending, that have less than top-p of the mass of `total` above
        them; at least one.
        """
        mass = torch.exp((best - total.logsumexp(0)).to(torch.float64))
        above = mass.cumsum(0) - mass
        return max(1, int((above < self.top_p).sum()))

    def distribution(self, logits: Tensor) -> Tensor:
        """Return the processed probabilities over the whole vocabulary, `[V]`, in float64."""
        p = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
        if self.greedy:
            p[self._best(wide(logits))] = 1
            return p
        scores, tokens = self.process(logits)
        return p.scatter_(0, tokens, scores.to(torch.float64).softmax(0))

    def _best(self, scores: Tensor, position: int | None = None) -> int:
        """Return the index of the highest score, the lowest index of equal ones.

        Raises NotFiniteError; `argmax` counts NaN as the highest. On a CPU it is five times as fast
        in float32 as in bfloat16.
        """
        index = int(scores.argmax())
        if not isfinite(float(scores[index])):
            raise NotFiniteError(position, self.processors)
        return index


class Dice:
    """A sequence of independent uniforms, keyed by the generation and the step's position."""

    def __init__(self, key: tuple[int, int], position: int) -> None:
        self.key = key
        self.position = position
        self.rolls = 0

    def draw(self, p: Tensor) -> int:
        """Draw an index from p `[V]` by inverting its cumulative sum.

        Never one of probability 0.
        """
        mass = p.cumsum(0)
        index = int(torch.searchsorted(mass, self.uniform() * mass[-1], right=True))
        return min(index, int(p.nonzero()[-1]))  # where rounding put the uniform on the very end

    def accept(self, probability: float) -> bool:
        return self.uniform() < probability

    def uniform(self) -> float:
        """Return a uniform variate on (0, 1), from two words of 32 bits."""
        low = hash_word(self.key, self.position, 2 * self.rolls)
        high = hash_word(self.key, self.position, 2 * self.rolls + 1)
        self.rolls += 1
        return ((high << 20 | low >> 12) + 0.5) * 2.0**-52  # 53 bits, so never rounded to 1


def _leading(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first `size` scores by (score descending, token id ascending), and their ids."""
    if size == len(scores):
        return torch.sort(scores, descending=True, stable=True)
    edge = scores.topk(size, sorted=False).values.min()
    tokens = (scores >= edge).nonzero().flatten()  # ascending ids, with every tie at the edge
    order = scores[tokens].sort(descending=True, stable=True)
    return order.values[:size], tokens[order.indices[:size]]
