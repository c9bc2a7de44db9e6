"""Verification on a GPU without a device-to-host sync: the target's tokens and the walk.

The target's token after a node: logits become scores (temperature), tokens outside top-k or top-p
are dropped, noise is added, and the best score wins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.scores import noise, pair, scores_of
from fspad_bench.engine.gpu.tensors import Nodes, SamplerTensors, Walk
from fspad_bench.engine.gpu.top_k_top_p import best_kept

BLOCK = 2048  # tokens of one program


@triton.jit
def _best(
    LOGITS, DEPTHS, POSITION, WORDS, NUMBERS, VALUES, TOKENS,
    V: tl.constexpr, BLOCK: tl.constexpr, SAMPLED: tl.constexpr,
):  # fmt: skip
    """Find the best token of one block of a node's logits, and its score."""
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
    """Choose a node's token among the best of its blocks; the smallest id of equal ones.

    WIDTH is BLOCKS rounded up to a power of two.
    """
    node = tl.program_id(0)
    block = tl.arange(0, WIDTH)
    values = tl.load(VALUES + node * BLOCKS + block, mask=block < BLOCKS, other=float("-inf"))
    tl.store(CHOICE + node, tl.load(TOKENS + node * BLOCKS + tl.argmax(values, 0)))


@triton.jit(do_not_specialize=["NODES"])
def _walk(
    NODE_TOKENS, PARENTS, DEPTHS, BITS, CHOICE, PATH, COUNT, BONUS, NODES,
    WORDS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Walk a whole tree in one program, as `reference.walk` defines; all vectors are [WIDTH].

    WIDTH is at least NODES, WORDS the int64 words of a node's bits.
    """
    node = tl.arange(0, WIDTH)
    live = node < NODES
    parent = tl.load(PARENTS + node, mask=live, other=0)
    depth = tl.load(DEPTHS + node, mask=live, other=-1)
    # The target's token after each node's parent.
    target_token = tl.load(CHOICE + tl.maximum(parent, 0), mask=live, other=-2)
    token = tl.load(NODE_TOKENS + node, mask=live, other=-1)
    agrees = live & (depth >= 0) & ((parent < 0) | (token == target_token))
    # A node is on the path if its bits, itself and all its ancestors, are a subset of those that
    # agree. The latter are packed a word at a time: a sum of different powers of two is their OR.
    on_path = agrees
    for word in tl.static_range(WORDS):
        own = tl.full([WIDTH], 1, tl.int64) << (node % 64).to(tl.int64)
        agreed = tl.sum(tl.where(agrees & (node // 64 == word), own, 0), 0)
        bits = tl.load(BITS + node * WORDS + word, mask=live, other=-1)
        on_path &= (bits & ~agreed) == 0
    deepest = tl.argmax(tl.where(on_path, depth, -1), 0)
    word = tl.load(BITS + deepest * WORDS + tl.minimum(node // 64, WORDS - 1))
    accepted = live & (((word >> (node % 64).to(tl.int64)) & 1) == 1)
    # Parents precede their children, so the order of nodes is that of the path.
    rank = tl.cumsum(accepted.to(tl.int32), 0) - 1
    tl.store(PATH + rank, node, mask=accepted)
    tl.store(COUNT, tl.sum(accepted.to(tl.int32), 0))
    tl.store(BONUS, tl.load(CHOICE + deepest))


def choose(logits: Tensor, depths: Tensor, position: Tensor, sampler: SamplerTensors) -> Tensor:
    """Return the target's token after every node, `[N]`, as `reference.choose` defines.

    logits `[N, V]`; depths `[N]`; `position` is that of the token after the root.
    """
    if logits.dtype == torch.float64 and not sampler.sampled:  # scores are float32 here
        return logits.argmax(-1).to(torch.int32)
    nodes, size = logits.shape
    logits = logits.contiguous()
    choice = logits.new_empty(nodes, dtype=torch.int32)
    if sampler.sampled and (sampler.has_top_k or sampler.has_top_p):
        values, tokens = best_kept(logits, depths, position, sampler)
    else:
        values, tokens = pair(logits, nodes, triton.cdiv(size, BLOCK))
        _best[values.shape](
            logits,
            depths,
            position,
            sampler.words,
            sampler.numbers,
            values,
            tokens,
            V=size,
            BLOCK=BLOCK,
            SAMPLED=sampler.sampled,
        )
    blocks = values.shape[1]
    _gather[nodes,](values, tokens, choice, BLOCKS=blocks, WIDTH=triton.next_power_of_2(blocks))
    return choice


def walk(nodes: Nodes, choice: Tensor) -> Walk:
    """Find the accepted path as `reference.walk` defines; `choice` `[N]` as of `choose`."""
    size, words = nodes.bits.shape
    path = torch.zeros_like(nodes.parents)
    count = path.new_empty(())
    bonus = choice.new_empty(())
    _walk[1,](
        nodes.tokens, nodes.parents, nodes.depths, nodes.bits, choice, path, count, bonus, size,
        WORDS=words, WIDTH=triton.next_power_of_2(size),
    )  # fmt: skip
    return Walk(path, count, bonus)
