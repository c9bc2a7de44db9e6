"""Verification on a GPU: what the target says after every node, and the walk down the tree, with no word to the host.

Logits become scores (temperature), tokens that top-k or top-p leave out are dropped, noise is added, and the best wins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.scores import noise, pair, scores_of
from fspad_bench.engine.gpu.tensors import Law, Nodes, Walk
from fspad_bench.engine.gpu.top_k_top_p import best_kept

BLOCK = 2048


@triton.jit
def _best(
    LOGITS, DEPTHS, POSITION, WORDS, NUMBERS, VALUES, TOKENS,
    V: tl.constexpr, BLOCK: tl.constexpr, SAMPLED: tl.constexpr,
):  # fmt: skip
    """The best token of a block of a node's row."""
    node = tl.program_id(0)
    block = tl.program_id(1)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = LOGITS + node.to(tl.int64) * V
    if SAMPLED:
        scores = scores_of(logits, tokens, V, tl.load(NUMBERS))
        position = tl.load(POSITION) + tl.load(DEPTHS + node)
        scores += noise(tl.load(WORDS), tl.load(WORDS + 1), position, tokens)
    else:
        scores = scores_of(logits, tokens, V, 1.0)
    at = node * tl.num_programs(1) + block
    tl.store(VALUES + at, tl.max(scores, 0))
    tl.store(TOKENS + at, block * BLOCK + tl.argmax(scores, 0))


@triton.jit
def _gather(VALUES, TOKENS, CHOICE, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """The best token of a node's row, of the best of its blocks; the first where some are equal."""
    node = tl.program_id(0)
    block = tl.arange(0, WIDTH)
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
    agrees = (
        live
        & (depth >= 0)
        & ((parent < 0) | (tl.load(NODE_TOKENS + node, mask=live, other=-1) == said))
    )
    whole = agrees
    for word in tl.static_range(WORDS):
        own = tl.full([WIDTH], 1, tl.int64) << (node % 64).to(tl.int64)
        agreed = tl.sum(tl.where(agrees & (node // 64 == word), own, 0), 0)
        bits = tl.load(BITS + node * WORDS + word, mask=live, other=-1)
        whole &= (bits & ~agreed) == 0
    best = tl.argmax(tl.where(whole, depth, -1), 0)
    word = tl.load(BITS + best * WORDS + tl.minimum(node // 64, WORDS - 1))
    on = live & (((word >> (node % 64).to(tl.int64)) & 1) == 1)
    rank = (
        tl.cumsum(on.to(tl.int32), 0) - 1
    )  # parents precede children: the order of nodes is that of the path
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
    if law.sampled and (law.few or law.nucleus):
        values, tokens = best_kept(logits, depths, position, law)
    else:
        values, tokens = pair(logits, nodes, triton.cdiv(size, BLOCK))
        _best[values.shape](
            logits,
            depths,
            position,
            law.words,
            law.numbers,
            values,
            tokens,
            V=size,
            BLOCK=BLOCK,
            SAMPLED=law.sampled,
        )
    blocks = values.shape[1]
    _gather[nodes,](values, tokens, choice, BLOCKS=blocks, WIDTH=triton.next_power_of_2(blocks))
    return choice


def walk(nodes: Nodes, choice: Tensor) -> Walk:
    """From the root down where a child agrees."""
    size, words = nodes.bits.shape
    path = torch.zeros_like(nodes.parents)
    count = path.new_empty(())
    bonus = choice.new_empty(())
    _walk[1,](
        nodes.tokens, nodes.parents, nodes.depths, nodes.bits, choice, path, count, bonus, size,
        WORDS=words, WIDTH=triton.next_power_of_2(size),
    )  # fmt: skip
    return Walk(path, count, bonus)
