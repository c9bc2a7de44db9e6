"""EAGLE-2's dynamic tree built on the device: the tree of `dynamic`, of a fixed size, without the
host.

The draft's cache is a fixed buffer. A step first absorbs the entries of the last accepted path,
padded to the deepest one there can be, then drafts level by level, and the best candidates become
the next tree: sorts, gathers and ancestor bits, all of fixed shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.core.protocols import Context, Scores
from fspad_bench.core.sampling import gumbel, hash32_rows
from fspad_bench.core.tree import WORD
from fspad_bench.drafts.draft import CachedDraft
from fspad_bench.drafts.network import DraftOutput
from fspad_bench.drafts.sizing.policy import FixedTree
from fspad_bench.engine.device_loop import DeviceState
from fspad_bench.engine.gpu.backend import KernelAttention
from fspad_bench.engine.target import TransformersTarget


class DeviceTreeBuilder:
    """Trees of `shape`, with `top_k` children a node, as a `FixedTree` keeps them."""

    def __init__(
        self,
        target: TransformersTarget,
        draft: CachedDraft,
        shape: FixedTree,
        top_k: int,
        coupled: bool,
    ) -> None:
        assert isinstance(target.attention, KernelAttention)
        nodes = shape.nodes
        depth = shape.depth
        self.nodes = nodes
        self.depth = depth
        self.top_k = top_k
        self.coupled = coupled
        self.network = draft.network
        self.capture = draft.capture
        self.vocabulary = draft.vocabulary.base_ids
        self.lm_head = draft.lm_head
        self.embedding = target.embedding
        self.kernels = target.attention.kernels
        self.device = target.device
        sizes = draft.network.shape
        drafted = max(1, (depth - 1) * top_k)
        self.scale = sizes.head_dim**-0.5
        self.head_dim = sizes.head_dim
        # keys and values `[2, H_kv, slots, D]`
        self.entries = torch.zeros(
            2, sizes.kv_heads, 0, sizes.head_dim, dtype=target.dtype, device=self.device
        )
        self.ropes = self.entries[:, 0]
        own = torch.ones((), dtype=torch.int64) << torch.arange(drafted)
        self.own = own.to(self.device)  # the bit of each drafted entry
        self.slots = torch.arange(min(depth + 1, nodes), device=self.device)
        self.one = self.own[:1, None]
        every = [torch.full((top_k,), 1)]
        every += [torch.full((top_k * top_k,), level) for level in range(2, depth + 1)]
        self.levels = torch.cat(every).to(self.device)
        self.drafted = min(nodes - 1, len(self.levels))
        node = torch.arange(nodes, device=self.device)
        bit = torch.ones((), dtype=torch.int64, device=self.device) << (node % WORD)
        words = -(-nodes // WORD)
        self.bit = torch.zeros(nodes, words, dtype=torch.int64, device=self.device)
        self.bit.scatter_(1, (node // WORD)[:, None], bit[:, None])

    @staticmethod
    def deepest(top_k: int) -> int:
        """Return how many levels there can be, so that the drafted entries of a tree have a bit
        each.
        """
        return WORD // top_k + 1

    def begin(self, context: Context, scores: Scores, slots: int) -> None:
        """Cache the entries of the prompt; that of its last token waits for the first step."""
        room = slots + len(self.own)
        if self.entries.shape[2] < room:
            self.entries = self.entries.new_zeros(2, self.entries.shape[1], room, self.head_dim)
            self.ropes = self.network.rope(torch.arange(room, device=self.device)).to(
                self.entries.dtype
            )
        e = self.embedding(
            torch.tensor(context.tokens[1:-1], dtype=torch.int64, device=self.device)
        )
        x = self.network.fuse(e, self.network.read(scores.features[:-1]))
        k, v = self.network.keys_values(x, self.ropes[:, : len(x)])
        self.entries[0, :, : len(x)] = k
        self.entries[1, :, : len(x)] = v

    def draft(self, state: DeviceState, sampled: bool) -> None:
        """Write the next tree to `state.nodes`."""
        length = state.length
        top_k = self.top_k
        out = self._absorb(state)
        tokens, scores = self._children(out, state, 0, sampled)
        levels = [(tokens[0], scores[0], torch.full_like(tokens[0], -1))]
        frontier = torch.arange(top_k, device=self.device)
        parents = torch.zeros_like(frontier)
        ancestors = None
        first = 0
        for level in range(1, self.depth):
            chosen, best, _ = levels[-1]
            own = self.own[(level - 1) * top_k : level * top_k]
            bits = own if ancestors is None else ancestors[parents] | own
            out = self._expand(chosen[frontier], out.h_feature[parents], bits, length, level)
            ancestors = bits
            tokens, scores = self._children(out, state, level, sampled)
            scores = scores + best[frontier][:, None]
            origin = (first + frontier)[:, None].expand_as(tokens)
            first += len(chosen)
            levels.append((tokens.flatten(), scores.flatten(), origin.flatten()))
            frontier = scores.flatten().topk(top_k).indices
            parents = frontier // top_k
        all_tokens, all_scores, all_origins = (torch.cat(p) for p in zip(*levels, strict=True))
        self._write(state, all_tokens, all_scores, all_origins)

    def _absorb(self, state: DeviceState) -> DraftOutput:
        """Cache the entries of the accepted path; the output of the last of them.

        Places after it write entries that the tree's own will overwrite.
        """
        walk = state.walk
        length = state.length
        path = walk.path[: len(self.slots)]
        following = torch.where(
            self.slots + 1 < walk.count, state.nodes.tokens[path.roll(-1)], walk.bonus
        )
        f = self.network.read(state.features[path])
        x = self.network.fuse(self.embedding(following.clamp(min=0)), f)
        at = length - walk.count + self.slots
        rope = self.ropes[:, at]
        self._cache(x, rope, at)
        last = (walk.count - 1).long()
        seen = self._attend(self.network.query(x[last], rope[:, last]), self.one, length - 1)
        return self.network.output(self.network.residual(x, f)[last], seen)

    def _expand(
        self, tokens: Tensor, features: Tensor, bits: Tensor, length: Tensor, level: int
    ) -> DraftOutput:
        """Draft a level: K tokens, their parents' h_feature, bits of the drafted entries each
        attends to, itself too.
        """
        x = self.network.fuse(self.embedding(tokens), features)
        first = (level - 1) * self.top_k
        end = level * self.top_k
        rope = self.ropes[:, length + (level - 1)].expand(-1, len(x), -1)
        self._cache(x, rope, length + torch.arange(first, end, device=self.device))
        every = F.pad(bits, (first, 0))[:, None]
        seen = self._attend(self.network.query(x, rope), every, length)
        return self.network.output(self.network.residual(x, features), seen)

    def _cache(self, x: Tensor, rope: Tensor, at: Tensor) -> None:
        for held, new in zip(self.entries, self.network.keys_values(x, rope), strict=True):
            held.index_copy_(1, at.long(), new)

    def _attend(self, query: Tensor, bits: Tensor, length: Tensor) -> Tensor:
        """Attend from queries `[H, K, D]`, the last of R drafted entries `bits [R, 1]` after
        `length`; projected.

        The kernel takes a query for each entry; those of the earlier ones are padding.
        """
        padded = F.pad(query, (0, 0, len(bits) - query.shape[1], 0))
        keys, values = self.entries
        seen = self.kernels.attend(padded, keys, values, bits, length, self.scale)
        return self.network.project(seen[:, -query.shape[1] :])

    def _children(
        self, out: DraftOutput, state: DeviceState, level: int, sampled: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens after each row and their log-probabilities, `[N, K]` each."""
        logits = self.lm_head(out.h_logit).float()
        if self.coupled and sampled:
            words = state.sampling.words
            temperature = state.sampling.numbers[0]
            position = state.length + (1 + level)
            logits = logits + temperature * gumbel(
                hash32_rows(words[0], words[1], position, self.vocabulary)
            )
        best = logits.log_softmax(-1).topk(self.top_k, dim=-1)
        return self.vocabulary[best.indices], best.values

    def _write(self, state: DeviceState, tokens: Tensor, scores: Tensor, origins: Tensor) -> None:
        """Write the best candidates as nodes, in the order of the pool, in which parents come
        first.
        """
        nodes = state.nodes
        count = self.drafted
        kept = scores.sort(descending=True, stable=True).indices[:count].sort().values
        # one more than the candidates: index -1 is the root's
        place = torch.zeros(len(tokens) + 1, dtype=torch.int64, device=self.device)
        place.scatter_(0, kept, torch.arange(1, count + 1, device=self.device))
        nodes.tokens[:1].copy_(state.walk.bonus)
        nodes.tokens[1 : count + 1].copy_(tokens[kept])
        nodes.parents[1 : count + 1].copy_(place[origins[kept]])
        nodes.depths[1 : count + 1].copy_(self.levels[kept])
        parents = nodes.parents.clamp(min=0).long()
        bits = self.bit.clone()
        above = parents
        for _ in range(self.depth):
            bits |= self.bit[above]
            above = parents[above]
        bits[count + 1 :] = self.bit[count + 1 :]
        nodes.bits.copy_(bits)
