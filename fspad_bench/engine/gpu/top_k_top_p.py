"""The tokens that top-k and top-p leave of a row, and the best of them: without a sort.

Scores are read as integers of the same order, and the one where the cut falls is found four bits at a time, by counts
for top-k and by masses for top-p. A row is split between many programs; each step is a launch of its own, which adds up
what the splits have left in the step before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.scores import noise, order_of, pair, scores_of, share_of
from fspad_bench.engine.gpu.tensors import Law

SPLIT = 8192
BLOCK = 512
WAYS = tl.constexpr(16)
STEPS = tl.constexpr(8)
LEAST = tl.constexpr(1e-30)  # of a mass asked for: the first token is always kept


@triton.jit
def _largest(VALUES, node, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """Of a value that every split of a node's row has left."""
    split = tl.arange(0, WIDTH)
    return tl.max(
        tl.load(VALUES + node * SPLITS + split, mask=split < SPLITS, other=float("-inf")), 0
    )


@triton.jit
def _total(VALUES, node, before, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """The sum of what the splits `before` one have left."""
    split = tl.arange(0, WIDTH)
    return tl.sum(tl.load(VALUES + node * SPLITS + split, mask=split < before, other=0.0), 0)


@triton.jit
def _few(WORDS, V: tl.constexpr):
    """How many tokens top-k leaves."""
    top_k = tl.load(WORDS + 2)
    return tl.where((top_k > 0) & (top_k < V), top_k, V).to(tl.float32)


@triton.jit
def _wanted(NUMBERS, MASS, LEVEL, TIES, node, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """The mass that top-p asks for, in units of the likeliest token's, of those that top-k left."""
    mass = _total(MASS, node, SPLITS, SPLITS, WIDTH)
    mass += tl.load(TIES + node) * _largest(LEVEL, node, SPLITS, WIDTH)
    return tl.maximum(tl.load(NUMBERS + 1) * mass, LEAST)


@triton.jit
def _narrowed(MARKS, PARTS, node, nodes, step, target, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """The threshold after so many steps, and what lies above it weighs: the least range whose end leaves less than
    `target` above it, by what all splits have weighed in the last step."""
    split = tl.arange(0, WIDTH)
    ways = tl.arange(0, WAYS)
    last = (step - 1) * nodes + node
    at = (last * SPLITS + split[:, None]) * WAYS + ways[None, :]
    weighs = tl.sum(tl.load(PARTS + at, mask=(split < SPLITS)[:, None], other=0.0), 0)
    chosen = tl.min(tl.where(weighs < target, ways, WAYS - 1), 0)
    unit = tl.full([], 1, tl.uint32) << (tl.full([], 32, tl.int32) - 4 * step).to(tl.uint32)
    t = tl.load(MARKS + last).to(tl.uint32, bitcast=True) + chosen.to(tl.uint32) * unit
    return t, tl.sum(tl.where(ways == chosen, weighs, 0.0), 0)


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
    """The largest score of a split."""
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
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    NUCLEUS: tl.constexpr,
):  # fmt: skip
    """A step of the search for the least integer t such that what is ordered above t weighs less than a target.

    A token weighs 1, or for the nucleus exp(score - top) where it is ordered above the edge of top-k. Of 16 ranges in
    which t may lie each split leaves what it has above the end of each.
    """
    node = tl.program_id(0)
    split = tl.program_id(1)
    nodes = tl.num_programs(0)
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    t = tl.zeros([], tl.uint32)
    edge = tl.zeros([], tl.uint32)
    top = tl.zeros([], tl.float32)
    if NUCLEUS:
        target = _wanted(NUMBERS, MASS, LEVEL, TIES, node, SPLITS, WIDTH)
        edge = tl.load(EDGES + node).to(tl.uint32, bitcast=True)
        top = _largest(TOPS, node, SPLITS, WIDTH)
    else:
        target = _few(WORDS, V)
    if STEP > 0:
        t, _ = _narrowed(MARKS, PARTS, node, nodes, STEP, target, SPLITS, WIDTH)
    unit = tl.full([], 1, tl.uint32) << (tl.full([], 28, tl.int32) - 4 * STEP).to(tl.uint32)
    ways = tl.arange(0, WAYS)
    tried = t + ways.to(tl.uint32) * unit + (unit - 1)  # the last integer of each of 16 ranges
    each = tl.zeros([WAYS, BLOCK], tl.float32)
    for start in range(0, SPLIT, BLOCK):
        tokens = split * SPLIT + start + tl.arange(0, BLOCK)
        scores = scores_of(logits, tokens, V, temperature)
        order = order_of(scores)
        if NUCLEUS:
            share = tl.where((order > edge) & (tokens < V), share_of(scores, top), 0.0)
        else:
            share = (tokens < V).to(tl.float32)
        each += tl.where(order[None, :] > tried[:, None], share[None, :], 0.0)
    at = STEP * nodes + node
    tl.store(MARKS + at, t.to(tl.int32, bitcast=True))  # every split writes the same
    tl.store(PARTS + (at * SPLITS + split) * WAYS + ways, tl.sum(each, 1))


@triton.jit
def _top_k(
    LOGITS, WORDS, NUMBERS, TOPS, MARKS, PARTS, EDGES, TIES, MASS, LEVEL,
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    FEW: tl.constexpr,
):  # fmt: skip
    """Where top-k ends: the integer of its last token, how many of those on it belong to it, and the mass of a split
    above it and of one token on it. Without top-k all tokens lie above."""
    node = tl.program_id(0)
    split = tl.program_id(1)
    nodes = tl.num_programs(0)
    edge = tl.zeros([], tl.uint32)
    ties = tl.zeros([], tl.float32)
    if FEW:
        few = _few(WORDS, V)
        edge, above = _narrowed(MARKS, PARTS, node, nodes, STEPS, few, SPLITS, WIDTH)
        ties = few - above  # of the tokens on the edge, those with the smallest ids
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
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    NUCLEUS: tl.constexpr,
):  # fmt: skip
    """Where the cut ends: the integer of the last token, what may still be kept of those on it (of the nucleus a mass,
    of top-k a number), the mass of one of them and how many a split has."""
    node = tl.program_id(0)
    split = tl.program_id(1)
    nodes = tl.num_programs(0)
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    top = tl.zeros([], tl.float32)
    if NUCLEUS:
        wanted = _wanted(NUMBERS, MASS, LEVEL, TIES, node, SPLITS, WIDTH)
        end, above = _narrowed(MARKS, PARTS, node, nodes, STEPS, wanted, SPLITS, WIDTH)
        end = tl.maximum(
            end, tl.load(EDGES + node).to(tl.uint32, bitcast=True)
        )  # those on the edge weighed nothing
        fit = wanted - above
        top = _largest(TOPS, node, SPLITS, WIDTH)
    else:
        few = _few(WORDS, V)
        end, above = _narrowed(MARKS, PARTS, node, nodes, STEPS, few, SPLITS, WIDTH)
        fit = few - above
    share = tl.zeros([], tl.float32)
    count = tl.zeros([], tl.float32)
    for start in range(0, SPLIT, BLOCK):
        tokens = split * SPLIT + start + tl.arange(0, BLOCK)
        scores = scores_of(logits, tokens, V, temperature)
        on = (order_of(scores) == end) & (tokens < V)
        count += tl.sum(on.to(tl.float32), 0)
        if NUCLEUS:
            share = tl.maximum(share, tl.max(tl.where(on, share_of(scores, top), 0.0), 0))
    tl.store(ENDS + node, end.to(tl.int32, bitcast=True))
    tl.store(FIT + node, fit)
    tl.store(SHARES + node * SPLITS + split, share)
    tl.store(COUNTS + node * SPLITS + split, count)


@triton.jit
def _best_kept(
    LOGITS, DEPTHS, POSITION, WORDS, NUMBERS, EDGES, TIES, ENDS, FIT, SHARES, COUNTS, VALUES, TOKENS,
    V: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    NUCLEUS: tl.constexpr,
):  # fmt: skip
    """The best token of a split among those that the cut keeps; on its end those with the smallest ids."""
    node = tl.program_id(0)
    split = tl.program_id(1)
    logits = LOGITS + node.to(tl.int64) * V
    temperature = tl.load(NUMBERS)
    end = tl.load(ENDS + node).to(tl.uint32, bitcast=True)
    ties = tl.load(FIT + node)
    if NUCLEUS:
        share = _largest(SHARES, node, SPLITS, WIDTH)
        fit = tl.maximum(tl.where(share > 0, tl.ceil(ties / share), 1.0), 1.0)
        edge = tl.load(EDGES + node).to(tl.uint32, bitcast=True)
        ties = tl.where(end > edge, fit, tl.minimum(tl.load(TIES + node), fit))
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


def best_kept(logits: Tensor, depths: Tensor, position: Tensor, law: Law) -> tuple[Tensor, Tensor]:
    """The best score and its token of every split of every row, of the tokens that top-k, then top-p leave."""
    nodes, size = logits.shape
    splits = triton.cdiv(size, SPLIT)
    split = min(SPLIT, triton.next_power_of_2(size))
    row = {"V": size, "SPLIT": split, "SPLITS": splits, "BLOCK": min(BLOCK, split)}
    wide = row | {"WIDTH": triton.next_power_of_2(splits)}
    grid = (nodes, splits)
    law_of = (law.words, law.numbers)
    (ties, edges), (fit, ends) = pair(logits, nodes), pair(logits, nodes)
    tops, mass, level, shares, counts = logits.new_empty(5, nodes, splits, dtype=torch.float32)
    parts = logits.new_empty(STEPS.value, nodes, splits, WAYS.value, dtype=torch.float32)
    marks = edges.new_empty(STEPS.value, nodes)
    scales = tops, mass, level, edges, ties

    def search(nucleus: bool) -> None:
        for step in range(STEPS.value):
            _weigh[grid](logits, *law_of, *scales, marks, parts, step, **wide, NUCLEUS=nucleus)

    if law.few:
        search(nucleus=False)
    if law.nucleus:
        _tops[grid](logits, law.numbers, tops, **row)
        _top_k[grid](
            logits, *law_of, tops, marks, parts, edges, ties, mass, level, **wide, FEW=law.few
        )
        search(nucleus=True)
    _last[grid](
        logits,
        *law_of,
        *scales,
        marks,
        parts,
        ends,
        fit,
        shares,
        counts,
        **wide,
        NUCLEUS=law.nucleus,
    )
    values, tokens = pair(logits, nodes, splits)
    cut = edges, ties, ends, fit, shares, counts
    _best_kept[grid](
        logits, depths, position, *law_of, *cut, values, tokens, **wide, NUCLEUS=law.nucleus
    )
    return values, tokens
