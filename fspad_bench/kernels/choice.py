"""Verification on a GPU: what the target says after every node, and the walk down the tree, with no word to the host.

Logits become scores (temperature), tokens that top-k or top-p leave out are dropped, and the noise of `sampling` is
computed where it is added: it depends on the key, the absolute position and the token alone, so every node at a
position hears the same. A cut is found without a sort: scores are read as integers of the same order, and the one where
the cut falls is found four bits at a time, by counts for top-k and by masses for top-p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.kernels.law import Law, Nodes, Walk

BLOCK, CUT_BLOCK = 2048, 512
WAYS = tl.constexpr(16)
STEPS = tl.constexpr(8)
LEAST = tl.constexpr(1e-30)  # of a mass asked for: the first token is always kept


@triton.jit
def _mix(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _noise(first, second, position, token):
    """`sampling.gumbel(sampling.hash32(...))`; log1p by way of log, exact where 1 - w rounds (Kahan)."""
    row = _mix((position + first).to(tl.uint32, bitcast=True))
    again = _mix(row ^ second.to(tl.uint32, bitcast=True))
    h = _mix(_mix(token.to(tl.uint32) ^ row) + again)
    high = (h >> 16).to(tl.float32) * (1.0 / 65536)
    low = ((h & 0xFFFF).to(tl.float32) + 0.5) * (1.0 / 4294967296)
    w = tl.minimum(high + low, 1.0 - 1.0 / 16777216)
    u = 1.0 - w
    less = 1.0 - u
    exponential = tl.where(less == 0, w, -tl.log(u) * (w / tl.where(less == 0, 1.0, less)))
    return -tl.log(exponential)


@triton.jit
def _order(score):
    """A float32 as the uint32 of the same order."""
    bits = (score + 0.0).to(tl.uint32, bitcast=True)  # the two zeros are one
    return tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000)


@triton.jit
def _scores(logits, tokens, V: tl.constexpr, temperature):
    return tl.load(logits + tokens, mask=tokens < V, other=float("-inf")).to(tl.float32) / temperature


@triton.jit
def _share(scores, top):
    """exp(score - top), also where both overflowed."""
    return tl.where(scores == top, 1.0, tl.exp(scores - top))


@triton.jit
def _best(
    LOGITS, DEPTHS, POSITION, WORDS, NUMBERS, VALUES, TOKENS,
    V: tl.constexpr, BLOCK: tl.constexpr, SAMPLED: tl.constexpr,
):  # fmt: skip
    """The best token of a block of a node's row."""
    node, block = tl.program_id(0), tl.program_id(1)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = LOGITS + node.to(tl.int64) * V
    if SAMPLED:
        scores = _scores(logits, tokens, V, tl.load(NUMBERS))
        position = tl.load(POSITION) + tl.load(DEPTHS + node)
        scores += _noise(tl.load(WORDS), tl.load(WORDS + 1), position, tokens)
    else:
        scores = _scores(logits, tokens, V, 1.0)
    at = node * tl.num_programs(1) + block
    tl.store(VALUES + at, tl.max(scores, 0))
    tl.store(TOKENS + at, block * BLOCK + tl.argmax(scores, 0))


@triton.jit
def _threshold(logits, temperature, top, weight, target, V: tl.constexpr, BLOCK: tl.constexpr, MASS: tl.constexpr):
    """The least integer t such that what is ordered above t weighs less than `target`, and what that weighs.

    A token weighs 1, or with MASS exp(score - top) where its integer is at least `weight`.
    """
    t, above = (target * 0).to(tl.uint32), target * 0
    ways = tl.arange(0, WAYS)
    unit = (target * 0).to(tl.uint32) + (1 << 28)
    for _ in range(STEPS):
        tried = t + ways.to(tl.uint32) * unit + (unit - 1)  # the last integer of each of 16 ranges
        each = tl.zeros([WAYS, BLOCK], tl.float32)
        for start in range(0, V, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            scores = _scores(logits, tokens, V, temperature)
            order = _order(scores)
            share = (tokens < V).to(tl.float32)
            if MASS:
                share = tl.where((order >= weight) & (tokens < V), _share(scores, top), 0.0)
            each += tl.where(order[None, :] > tried[:, None], share[None, :], 0.0)
        weighs = tl.sum(each, 1)
        chosen = tl.min(tl.where(weighs < target, ways, WAYS - 1), 0)
        t += chosen.to(tl.uint32) * unit
        unit >>= 4
        above = tl.sum(tl.where(ways == chosen, weighs, 0.0), 0)
    return t, above


@triton.jit
def _cut(
    LOGITS, DEPTHS, POSITION, WORDS, NUMBERS, CHOICE, V: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The token of a node's row among those that top-k, then top-p leave."""
    node = tl.program_id(0)
    logits = LOGITS + node.to(tl.int64) * V
    temperature, top_p, top_k = tl.load(NUMBERS), tl.load(NUMBERS + 1), tl.load(WORDS + 2)
    top = tl.full([], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        top = tl.maximum(top, tl.max(_scores(logits, start + tl.arange(0, BLOCK), V, temperature), 0))
    few = tl.where((top_k > 0) & (top_k < V), top_k, V).to(tl.float32)
    edge, above = (few * 0).to(tl.uint32), few  # without top-k all tokens lie above the edge
    if few < V:
        edge, above = _threshold(logits, temperature, top, 0, few, V, BLOCK, False)
    ties = few - above  # of the tokens on the edge, those with the smallest ids
    if top_p < 1:
        mass, level = tl.zeros([], tl.float32), tl.zeros([], tl.float32)
        for start in range(0, V, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            scores = _scores(logits, tokens, V, temperature)
            order, share = _order(scores), _share(scores, top)
            mass += tl.sum(tl.where((order > edge) & (tokens < V), share, 0.0), 0)
            level = tl.maximum(level, tl.max(tl.where((order == edge) & (tokens < V), share, 0.0), 0))
        mass += ties * level
        wanted = tl.maximum(top_p * mass, LEAST)
        nucleus, heavier = _threshold(logits, temperature, top, edge + 1, wanted, V, BLOCK, True)
        nucleus = tl.maximum(nucleus, edge)  # the tokens on the edge weighed nothing
        share = tl.zeros([], tl.float32)
        for start in range(0, V, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            scores = _scores(logits, tokens, V, temperature)
            one = tl.where((_order(scores) == nucleus) & (tokens < V), _share(scores, top), 0.0)
            share = tl.maximum(share, tl.max(one, 0))
        fit = tl.maximum(tl.where(share > 0, tl.ceil((wanted - heavier) / share), 1.0), 1.0)
        ties = tl.where(nucleus > edge, fit, tl.minimum(ties, fit))
        edge = nucleus
    position = tl.load(POSITION) + tl.load(DEPTHS + node)
    first, second = tl.load(WORDS), tl.load(WORDS + 1)
    best, choice, met = tl.full([], float("-inf"), tl.float32), tl.zeros([], tl.int32), tl.zeros([], tl.float32)
    for start in range(0, V, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        scores = _scores(logits, tokens, V, temperature)
        order = _order(scores)
        tied = ((order == edge) & (tokens < V)).to(tl.float32)
        kept = (tokens < V) & ((order > edge) | ((tied > 0) & (met + tl.cumsum(tied, 0) <= ties)))
        met += tl.sum(tied, 0)
        scores = tl.where(kept, scores + _noise(first, second, position, tokens), float("-inf"))
        here = tl.max(scores, 0)
        choice = tl.where(here > best, start + tl.argmax(scores, 0), choice)
        best = tl.maximum(best, here)
    tl.store(CHOICE + node, choice)


@triton.jit
def _gather(VALUES, TOKENS, CHOICE, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """The best token of a node's row, of the best of its blocks; the first where some are equal."""
    node, block = tl.program_id(0), tl.arange(0, WIDTH)
    values = tl.load(VALUES + node * BLOCKS + block, mask=block < BLOCKS, other=float("-inf"))
    tl.store(CHOICE + node, tl.load(TOKENS + node * BLOCKS + tl.argmax(values, 0)))


@triton.jit(do_not_specialize=["NODES"])
def _walk(
    NODE_TOKENS, PARENTS, DEPTHS, BITS, CHOICE, PATH, COUNT, BONUS, NODES, WORDS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The deepest node that agrees with the target as all its ancestors do, from the bits alone."""
    node = tl.arange(0, WIDTH)
    live = node < NODES
    parent = tl.load(PARENTS + node, mask=live, other=0)
    depth = tl.load(DEPTHS + node, mask=live, other=-1)
    said = tl.load(CHOICE + tl.maximum(parent, 0), mask=live, other=-2)
    agrees = live & (depth >= 0) & ((parent < 0) | (tl.load(NODE_TOKENS + node, mask=live, other=-1) == said))
    whole = agrees
    for word in tl.static_range(WORDS):
        own = tl.full([WIDTH], 1, tl.int64) << (node % 64).to(tl.int64)
        agreed = tl.sum(tl.where(agrees & (node // 64 == word), own, 0), 0)
        bits = tl.load(BITS + node * WORDS + word, mask=live, other=-1)
        whole &= (bits & ~agreed) == 0
    best = tl.argmax(tl.where(whole, depth, -1), 0)
    word = tl.load(BITS + best * WORDS + tl.minimum(node // 64, WORDS - 1))
    on = live & (((word >> (node % 64).to(tl.int64)) & 1) == 1)
    rank = tl.cumsum(on.to(tl.int32), 0) - 1  # parents precede children: the order of nodes is that of the path
    tl.store(PATH + rank, node, mask=on)
    tl.store(COUNT, tl.sum(on.to(tl.int32), 0))
    tl.store(BONUS, tl.load(CHOICE + best))


def choose(logits: Tensor, depths: Tensor, position: Tensor, law: Law) -> Tensor:
    """The target's token after every node, `[N]`: logits `[N, V]`, depths `[N]`; `position` follows the root's."""
    if logits.dtype == torch.float64 and not law.sampled:  # scores are float32 here
        return logits.argmax(-1).to(torch.int32)
    nodes, size = logits.shape
    logits = logits.contiguous()
    choice = logits.new_empty(nodes, dtype=torch.int32)
    if law.cut and law.sampled:
        _cut[nodes,](logits, depths, position, law.words, law.numbers, choice, V=size, BLOCK=CUT_BLOCK)
        return choice
    blocks = triton.cdiv(size, BLOCK)
    values, tokens = logits.new_empty(nodes, blocks, dtype=torch.float32), choice.new_empty(nodes, blocks)
    _best[nodes, blocks](
        logits, depths, position, law.words, law.numbers, values, tokens, V=size, BLOCK=BLOCK, SAMPLED=law.sampled
    )
    _gather[nodes,](values, tokens, choice, BLOCKS=blocks, WIDTH=triton.next_power_of_2(blocks))
    return choice


def walk(nodes: Nodes, choice: Tensor) -> Walk:
    """From the root down where a child agrees."""
    size, words = nodes.bits.shape
    path = torch.zeros_like(nodes.parents)
    count, bonus = path.new_empty(()), choice.new_empty(())
    _walk[1,](
        nodes.tokens, nodes.parents, nodes.depths, nodes.bits, choice, path, count, bonus, size,
        WORDS=words, WIDTH=triton.next_power_of_2(size),
    )  # fmt: skip
    return Walk(path, count, bonus)
