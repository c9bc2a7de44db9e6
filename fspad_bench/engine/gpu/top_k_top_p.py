"""Top-k and top-p on a GPU without a sort: the best of the tokens that they keep.

The kept tokens are those whose score lies above a threshold, and some of those that equal it (the
smallest ids). Scores are read as uint32 integers of the same order, and the threshold is found by a
radix search: 8 steps of 4 bits, by counts for top-k and by masses for top-p.

- A node's logits are split between programs. Programs cannot wait for each other, so each step is a
  launch of its own, and each program adds up what all splits stored in the step before.
- Launches for a sampler with both: search by count, `_tops`, `_top_k`, search by mass, `_last`,
  `_best_kept`. Top-k alone skips the middle; top-p alone skips the first search.

Tensors, for N nodes and S splits. A mass is in units of the likeliest token's: exp(score - top).

| name | shape | content |
|---|---|---|
| TOPS | `[N, S]` | largest score |
| EDGES, TIES | `[N]` | integer of top-k's last token; how many tokens equal to it top-k keeps |
| MASS, LEVEL | `[N, S]` | mass above the edge; mass of one token on the edge |
| MARKS | `[8, N]` | lower end of the search range at each step |
| PARTS | `[8, N, S, 16]` | count or mass above the upper end of each of 16 ranges |
| ENDS, FIT | `[N]` | integer of the last kept token; count or mass left for tokens equal to it |
| SHARES, COUNTS | `[N, S]` | mass of one token on the end; number of tokens on it |
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.scores import noise, order_of, pair, scores_of, share_of
from fspad_bench.engine.gpu.tensors import SamplerTensors

SPLIT = 8192  # tokens of a program
BLOCK = 512  # tokens that it reads at once
WAYS = tl.constexpr(16)  # ranges per step
STEPS = tl.constexpr(8)  # of 4 bits
MIN_MASS = tl.constexpr(1e-30)  # top-p keeps at least one token


@triton.jit
def _largest(VALUES, node, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the largest of the values that the splits of a node stored."""
    split = tl.arange(0, WIDTH)
    return tl.max(
        tl.load(VALUES + node * SPLITS + split, mask=split < SPLITS, other=float("-inf")), 0
    )


@triton.jit
def _total(VALUES, node, before, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the sum of the values that the splits before number `before` stored."""
    split = tl.arange(0, WIDTH)
    return tl.sum(tl.load(VALUES + node * SPLITS + split, mask=split < before, other=0.0), 0)


@triton.jit
def _top_k_count(WORDS, V: tl.constexpr):
    """Return how many tokens top-k keeps, all of them if it is off."""
    top_k = tl.load(WORDS + 2)
    return tl.where((top_k > 0) & (top_k < V), top_k, V).to(tl.float32)


@triton.jit
def _top_p_mass(NUMBERS, MASS, LEVEL, TIES, node, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the mass that top-p keeps: its share of the mass that top-k kept."""
    mass = _total(MASS, node, SPLITS, SPLITS, WIDTH)
    mass += tl.load(TIES + node) * _largest(LEVEL, node, SPLITS, WIDTH)
    return tl.maximum(tl.load(NUMBERS + 1) * mass, MIN_MASS)


@triton.jit
def _narrowed(MARKS, PARTS, node, nodes, step, target, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the lower end of the search range after `step` steps, and the weight above it.

    The last step chose the lowest of the 16 ranges whose upper end has less than `target` above it,
    summed over all splits. After the last step the range is one integer: the threshold.
    """
    split = tl.arange(0, WIDTH)
    ways = tl.arange(0, WAYS)
    last = (step - 1) * nodes + node
    at = (last * SPLITS + split[:, None]) * WAYS + ways[None, :]
    # [WAYS]: the weight above the upper end of each range
    weights = tl.sum(tl.load(PARTS + at, mask=(split < SPLITS)[:, None], other=0.0), 0)
    chosen = tl.min(tl.where(weights < target, ways, WAYS - 1), 0)
    unit = tl.full([], 1, tl.uint32) << (tl.full([], 32, tl.int32) - 4 * step).to(tl.uint32)
    t = tl.load(MARKS + last).to(tl.uint32, bitcast=True) + chosen.to(tl.uint32) * unit
    return t, tl.sum(tl.where(ways == chosen, weights, 0.0), 0)


@triton.jit
def _tops(
    LOGITS,
    NUMBERS,
    TOPS,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the largest score of a split."""
    node = tl.program_id(0)
    split = tl.program_id(1)
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    top = tl.full([], float("-inf"), tl.float32)
    for start in range(0, SPLIT, BLOCK):
        tokens = split * SPLIT + start + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.max(scores_of(logits, tokens, V, temperature), 0))
    tl.store(TOPS + node * SPLITS + split, top)


@triton.jit(do_not_specialize=["STEP"])
def _weigh(
    LOGITS, WORDS, NUMBERS, TOPS, MASS, LEVEL, EDGES, TIES, MARKS, PARTS, STEP,
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, BY_MASS: tl.constexpr,
):  # fmt: skip
    """Do one step of the search for the least integer t with less than a target's weight above it.

    A token weighs 1 when BY_MASS is off. Otherwise it weighs exp(score - top) if it lies above the
    edge of top-k, and 0 if not. The program weighs its split above each of 16 candidates for t.
    """
    node = tl.program_id(0)
    split = tl.program_id(1)
    nodes = tl.num_programs(0)
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    t = tl.zeros([], tl.uint32)  # the lower end of the range that t lies in
    edge = tl.zeros([], tl.uint32)
    top = tl.zeros([], tl.float32)
    if BY_MASS:
        target = _top_p_mass(NUMBERS, MASS, LEVEL, TIES, node, SPLITS, WIDTH)
        edge = tl.load(EDGES + node).to(tl.uint32, bitcast=True)
        top = _largest(TOPS, node, SPLITS, WIDTH)
    else:
        target = _top_k_count(WORDS, V)
    if STEP > 0:
        t, _ = _narrowed(MARKS, PARTS, node, nodes, STEP, target, SPLITS, WIDTH)
    unit = tl.full([], 1, tl.uint32) << (tl.full([], 28, tl.int32) - 4 * STEP).to(tl.uint32)
    ways = tl.arange(0, WAYS)
    tried = t + ways.to(tl.uint32) * unit + (unit - 1)  # [WAYS]: the upper end of each range
    # Lanes are summed at the end only: one reduction instead of one per block.
    sums = tl.zeros([WAYS, BLOCK], tl.float32)
    for start in range(0, SPLIT, BLOCK):
        tokens = split * SPLIT + start + tl.arange(0, BLOCK)
        scores = scores_of(logits, tokens, V, temperature)
        order = order_of(scores)
        if BY_MASS:
            share = tl.where((order > edge) & (tokens < V), share_of(scores, top), 0.0)
        else:
            share = (tokens < V).to(tl.float32)
        sums += tl.where(order[None, :] > tried[:, None], share[None, :], 0.0)
    at = STEP * nodes + node
    tl.store(MARKS + at, t.to(tl.int32, bitcast=True))  # every split stores the same
    tl.store(PARTS + (at * SPLITS + split) * WAYS + ways, tl.sum(sums, 1))


@triton.jit
def _top_k(
    LOGITS, WORDS, NUMBERS, TOPS, MARKS, PARTS, EDGES, TIES, MASS, LEVEL,
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, HAS_TOP_K: tl.constexpr,
):  # fmt: skip
    """Store where top-k ends, for top-p to go on from: EDGES, TIES, and the split's MASS and LEVEL.

    Without top-k the edge is 0, and all tokens lie above it.
    """
    node = tl.program_id(0)
    split = tl.program_id(1)
    nodes = tl.num_programs(0)
    edge = tl.zeros([], tl.uint32)
    ties = tl.zeros([], tl.float32)
    if HAS_TOP_K:
        top_k = _top_k_count(WORDS, V)
        edge, above = _narrowed(MARKS, PARTS, node, nodes, STEPS, top_k, SPLITS, WIDTH)
        ties = top_k - above
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    top = _largest(TOPS, node, SPLITS, WIDTH)
    mass = tl.zeros([], tl.float32)
    level = tl.zeros([], tl.float32)
    for start in range(0, SPLIT, BLOCK):
        tokens = split * SPLIT + start + tl.arange(0, BLOCK)
        scores = scores_of(logits, tokens, V, temperature)
        order = order_of(scores)
        share = share_of(scores, top)
        mass += tl.sum(tl.where((order > edge) & (tokens < V), share, 0.0), 0)
        level = tl.maximum(level, tl.max(tl.where((order == edge) & (tokens < V), share, 0.0), 0))
    tl.store(EDGES + node, edge.to(tl.int32, bitcast=True))
    tl.store(TIES + node, ties)
    tl.store(MASS + node * SPLITS + split, mass)
    tl.store(LEVEL + node * SPLITS + split, level)


@triton.jit
def _last(
    LOGITS, WORDS, NUMBERS, TOPS, MASS, LEVEL, EDGES, TIES, MARKS, PARTS, ENDS, FIT, SHARES, COUNTS,
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, HAS_TOP_P: tl.constexpr,
):  # fmt: skip
    """Store where the kept tokens end: ENDS, FIT, and the split's SHARES and COUNTS.

    FIT is a mass with top-p, a number of tokens without.
    """
    node = tl.program_id(0)
    split = tl.program_id(1)
    nodes = tl.num_programs(0)
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    top = tl.zeros([], tl.float32)
    if HAS_TOP_P:
        target_mass = _top_p_mass(NUMBERS, MASS, LEVEL, TIES, node, SPLITS, WIDTH)
        end, above = _narrowed(MARKS, PARTS, node, nodes, STEPS, target_mass, SPLITS, WIDTH)
        # The search gave tokens on top-k's edge no weight, so it may have gone below them.
        end = tl.maximum(end, tl.load(EDGES + node).to(tl.uint32, bitcast=True))
        fit = target_mass - above
        top = _largest(TOPS, node, SPLITS, WIDTH)
    else:
        top_k = _top_k_count(WORDS, V)
        end, above = _narrowed(MARKS, PARTS, node, nodes, STEPS, top_k, SPLITS, WIDTH)
        fit = top_k - above
    share = tl.zeros([], tl.float32)
    count = tl.zeros([], tl.float32)
    for start in range(0, SPLIT, BLOCK):
        tokens = split * SPLIT + start + tl.arange(0, BLOCK)
        scores = scores_of(logits, tokens, V, temperature)
        on = (order_of(scores) == end) & (tokens < V)
        count += tl.sum(on.to(tl.float32), 0)
        if HAS_TOP_P:
            share = tl.maximum(share, tl.max(tl.where(on, share_of(scores, top), 0.0), 0))
    tl.store(ENDS + node, end.to(tl.int32, bitcast=True))
    tl.store(FIT + node, fit)
    tl.store(SHARES + node * SPLITS + split, share)
    tl.store(COUNTS + node * SPLITS + split, count)


@triton.jit
def _best_kept(
    LOGITS, DEPTHS, POSITION, WORDS, NUMBERS, EDGES, TIES, ENDS, FIT, SHARES, COUNTS,
    VALUES, TOKENS,
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, HAS_TOP_P: tl.constexpr,
):  # fmt: skip
    """Find the best kept token of a split, noise included, and its score.

    All tokens above the end are kept, and the first `ties` on it by id over all splits.
    """
    node = tl.program_id(0)
    split = tl.program_id(1)
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    end = tl.load(ENDS + node).to(tl.uint32, bitcast=True)
    ties = tl.load(FIT + node)  # how many tokens on the end are kept
    if HAS_TOP_P:
        share = _largest(SHARES, node, SPLITS, WIDTH)
        # the fewest tokens on the end that fill the mass left for them, at least one
        fit = tl.maximum(tl.where(share > 0, tl.ceil(ties / share), 1.0), 1.0)
        edge = tl.load(EDGES + node).to(tl.uint32, bitcast=True)
        ties = tl.where(end > edge, fit, tl.minimum(tl.load(TIES + node), fit))
    # how many tokens on the end the splits before this one have
    met = _total(COUNTS, node, split, SPLITS, WIDTH)
    position = tl.load(POSITION) + tl.load(DEPTHS + node)
    first = tl.load(WORDS)
    second = tl.load(WORDS + 1)
    best = tl.full([], float("-inf"), tl.float32)
    choice = tl.zeros([], tl.int32)
    for start in range(0, SPLIT, BLOCK):
        begin = split * SPLIT + start
        tokens = begin + tl.arange(0, BLOCK)
        scores = scores_of(logits, tokens, V, temperature)
        order = order_of(scores)
        tied = ((order == end) & (tokens < V)).to(tl.float32)
        kept = (tokens < V) & ((order > end) | ((tied > 0) & (met + tl.cumsum(tied, 0) <= ties)))
        met += tl.sum(tied, 0)
        scores = tl.where(kept, scores + noise(first, second, position, tokens), float("-inf"))
        here = tl.max(scores, 0)
        choice = tl.where(here > best, begin + tl.argmax(scores, 0), choice)
        best = tl.maximum(best, here)
    tl.store(VALUES + node * SPLITS + split, best)
    tl.store(TOKENS + node * SPLITS + split, choice)


def best_kept(
    logits: Tensor, depths: Tensor, position: Tensor, sampler: SamplerTensors
) -> tuple[Tensor, Tensor]:
    """Return the best score and its token, `[N, S]` each, among the kept tokens of every split.

    logits `[N, V]`, contiguous; depths `[N]`; `position` is that of the token after the root.
    """
    nodes, size = logits.shape
    splits = triton.cdiv(size, SPLIT)
    split = min(SPLIT, triton.next_power_of_2(size))
    sizes = {"V": size, "SPLIT": split, "SPLITS": splits, "BLOCK": min(BLOCK, split)}
    joined = sizes | {"WIDTH": triton.next_power_of_2(splits)}
    grid = (nodes, splits)
    parameters = (sampler.words, sampler.numbers)
    ties, edges = pair(logits, nodes)
    fit, ends = pair(logits, nodes)
    tops, mass, level, shares, counts = logits.new_empty(5, nodes, splits, dtype=torch.float32)
    parts = logits.new_empty(STEPS.value, nodes, splits, WAYS.value, dtype=torch.float32)
    marks = edges.new_empty(STEPS.value, nodes)
    scales = (tops, mass, level, edges, ties)

    def search(by_mass: bool) -> None:
        for step in range(STEPS.value):
            _weigh[grid](
                logits, *parameters, *scales, marks, parts, step, **joined, BY_MASS=by_mass
            )

    if sampler.has_top_k:
        search(by_mass=False)
    if sampler.has_top_p:
        _tops[grid](logits, sampler.numbers, tops, **sizes)
        _top_k[grid](
            logits, *parameters, tops, marks, parts, edges, ties, mass, level,
            **joined, HAS_TOP_K=sampler.has_top_k,
        )  # fmt: skip
        search(by_mass=True)
    _last[grid](
        logits, *parameters, *scales, marks, parts, ends, fit, shares, counts,
        **joined, HAS_TOP_P=sampler.has_top_p,
    )  # fmt: skip
    values, tokens = pair(logits, nodes, splits)
    _best_kept[grid](
        logits, depths, position, *parameters, edges, ties, ends, fit, shares, counts,
        values, tokens, **joined, HAS_TOP_P=sampler.has_top_p,
    )  # fmt: skip
    return values, tokens
