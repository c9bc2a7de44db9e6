"""EAGLE-2's dynamic tree grown on the device: the tree of `dynamic`, of a fixed size, without a word to the host.

The draft's cache is a fixed buffer. A round first absorbs the rows of the last accepted path, padded to the deepest one
there can be, then drafts level by level, and the best candidates become the next tree: sorts, gathers and ancestor
bits, all of fixed shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.core.loop import Context, Scores
from fspad_bench.core.sampling import gumbel, hash32_rows
from fspad_bench.core.tree import WORD
from fspad_bench.drafts.fused import LeanNetwork
from fspad_bench.drafts.network import DraftOutput
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.device_loop import Round
from fspad_bench.engine.target import TransformersTarget


class Growth:
    """Trees of `nodes` nodes, `depth` levels and `top_k` children, as a `FixedSize` keeps them."""

    def __init__(
        self,
        target: TransformersTarget,
        network: LeanNetwork,
        vocabulary: Tensor,
        lm_head: Matrix,
        *,
        nodes: int,
        depth: int,
        top_k: int,
        coupled: bool,
    ) -> None:
        self.nodes = nodes
        self.depth = depth
        self.top_k = top_k
        self.coupled = coupled
        self.network = network
        self.vocabulary = vocabulary
        self.lm_head = lm_head
        self.embedding = target.embedding
        self.kernels = target.kernels
        self.device = target.device
        shape = network.shape
        drafted = max(1, (depth - 1) * top_k)
        self.scale = shape.head_dim**-0.5
        self.head_dim = shape.head_dim
        self.rows = torch.zeros(
            2, shape.kv_heads, 0, shape.head_dim, dtype=target.dtype, device=self.device
        )
        self.ropes = self.rows[:, 0]
        self.own = torch.ones((), dtype=torch.int64) << torch.arange(drafted)
        self.own, self.slots = (
            self.own.to(self.device),
            torch.arange(min(depth + 1, nodes), device=self.device),
        )
        self.one = self.own[:1, None]
        every = [
            torch.full((top_k,), 1),
            *[torch.full((top_k * top_k,), level) for level in range(2, depth + 1)],
        ]
        self.levels = torch.cat(every).to(self.device)
        self.drafted = min(nodes - 1, len(self.levels))
        node = torch.arange(nodes, device=self.device)
        bit = torch.ones((), dtype=torch.int64, device=self.device) << (node % WORD)
        words = -(-nodes // WORD)
        self.bit = torch.zeros(nodes, words, dtype=torch.int64, device=self.device)
        self.bit.scatter_(1, (node // WORD)[:, None], bit[:, None])

    @staticmethod
    def deepest(top_k: int) -> int:
        """How many levels there can be, so that the drafted rows of a tree have a bit each."""
        return WORD // top_k + 1

    def begin(self, context: Context, scores: Scores, capacity: int) -> None:
        """Cache the rows of the prompt; that of its last token waits for the first round."""
        room = capacity + len(self.own)
        if self.rows.shape[2] < room:
            self.rows = self.rows.new_zeros(2, self.rows.shape[1], room, self.head_dim)
            self.ropes = self.network.rope(torch.arange(room, device=self.device)).to(
                self.rows.dtype
            )
        e = self.embedding(
            torch.tensor(context.tokens[1:-1], dtype=torch.int64, device=self.device)
        )
        x = self.network.fuse(e, scores.features[:-1])
        k, v = self.network.keys_values(x, self.ropes[:, : len(x)])
        self.rows[0, :, : len(x)] = k
        self.rows[1, :, : len(x)] = v

    def grow(self, round_: Round, sampled: bool) -> None:
        """The next tree, written to `round_.nodes`."""
        length = round_.length
        top_k = self.top_k
        out = self._absorb(round_)
        tokens, scores = self._children(out, round_, 0, sampled)
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
            tokens, scores = self._children(out, round_, level, sampled)
            scores = scores + best[frontier][:, None]
            origin = (first + frontier)[:, None].expand_as(tokens)
            first += len(chosen)
            levels.append((tokens.flatten(), scores.flatten(), origin.flatten()))
            frontier = scores.flatten().topk(top_k).indices
            parents = frontier // top_k
        self._write(round_, *(torch.cat(part) for part in zip(*levels, strict=True)))

    def _absorb(self, round_: Round) -> DraftOutput:
        """The rows of the accepted path, and the output of the last of them. Slots behind it write rows that the tree's
        own will overwrite."""
        walk = round_.walk
        length = round_.length
        path = walk.path[: len(self.slots)]
        following = torch.where(
            self.slots + 1 < walk.count, round_.nodes.tokens[path.roll(-1)], walk.bonus
        )
        x = self.network.fuse(self.embedding(following.clamp(min=0)), round_.features[path])
        at = length - walk.count + self.slots
        rope = self.ropes[:, at]
        self._cache(x, rope, at)
        last = (walk.count - 1).long()
        seen = self._attend(self.network.query(x[last], rope[:, last]), self.one, length - 1)
        return self.network.output(x[last], seen)

    def _expand(
        self, tokens: Tensor, features: Tensor, bits: Tensor, length: Tensor, level: int
    ) -> DraftOutput:
        """One level: K tokens, their parents' h_feature, and the drafted rows that each sees, itself among them."""
        x = self.network.fuse(self.embedding(tokens), features)
        behind = (level - 1) * self.top_k
        rows = level * self.top_k
        rope = self.ropes[:, length + (level - 1)].expand(-1, len(x), -1)
        self._cache(x, rope, length + torch.arange(behind, rows, device=self.device))
        every = F.pad(bits, (behind, 0))[:, None]
        return self.network.output(x, self._attend(self.network.query(x, rope), every, length))

    def _cache(self, x: Tensor, rope: Tensor, at: Tensor) -> None:
        for held, new in zip(self.rows, self.network.keys_values(x, rope), strict=True):
            held.index_copy_(1, at.long(), new)

    def _attend(self, query: Tensor, bits: Tensor, length: Tensor) -> Tensor:
        """Queries `[H, K, D]` of the last of R drafted rows `bits [R, 1]` behind `length`; output-projected.

        The kernel asks for a query a row; the rows before are given none that matters.
        """
        padded = F.pad(query, (0, 0, len(bits) - query.shape[1], 0))
        seen = self.kernels.attend(padded, *self.rows, bits, length, self.scale)[
            :, -query.shape[1] :
        ]
        return self.network.project(seen)

    def _children(
        self, out: DraftOutput, round_: Round, level: int, sampled: bool
    ) -> tuple[Tensor, Tensor]:
        """The likeliest tokens after each row and their log-probabilities, `[N, K]` each."""
        logits = self.lm_head(out.h_logit).float()
        if self.coupled and sampled:
            words = round_.law.words
            temperature = round_.law.numbers[0]
            position = round_.length + (1 + level)
            logits = logits + temperature * gumbel(
                hash32_rows(words[0], words[1], position, self.vocabulary)
            )
        best = logits.log_softmax(-1).topk(self.top_k, dim=-1)
        return self.vocabulary[best.indices], best.values

    def _write(self, round_: Round, tokens: Tensor, scores: Tensor, origins: Tensor) -> None:
        """The best candidates as nodes, in the order of the pool, in which parents come first."""
        nodes = round_.nodes
        count = self.drafted
        kept = scores.sort(descending=True, stable=True).indices[:count].sort().values
        place = torch.zeros(
            len(tokens) + 1, dtype=torch.int64, device=self.device
        )  # the last: of -1, the root
        place.scatter_(0, kept, torch.arange(1, count + 1, device=self.device))
        nodes.tokens[:1].copy_(round_.walk.bonus)
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
