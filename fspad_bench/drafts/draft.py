"""A draft network with its KV cache and its vocabulary, stepped one level of a tree at a time.

The cache holds only rows computed from the target's features: a tree's rows are written behind them and forgotten,
and the accepted tokens' rows come next round.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench import linear
from fspad_bench.decoding import Context, Scores, Step
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftOutput
from fspad_bench.drafts.rows import DraftRows
from fspad_bench.linear import Matrix
from fspad_bench.target import TransformersTarget


class Draft:
    """`vocabulary [V_draft]` are the target's ids of the tokens it can say."""

    def __init__(self, target: TransformersTarget, head: Head) -> None:
        self.network, self.vocabulary = head.network, head.vocabulary
        linear.adopt(self.network)
        self.embedding, self.lm_head = target.embedding, Matrix(target.lm_head.weight[head.vocabulary])
        self.target_vocabulary = target.config.vocab_size
        self.rows = DraftRows(target)

    def begin(self, context: Context, scores: Scores) -> None:
        self.rows.clear()
        self.features, self.tokens = scores.features, context.tokens[1:]

    def observe(self, step: Step) -> None:
        path = step.accepted.path
        self.features = step.scores.features[path]
        self.tokens = [step.tree.tokens[node] for node in path[1:]] + [step.accepted.bonus]

    def absorb(self) -> DraftOutput:
        """Cache the rows of the tokens committed since the last round, and predict from the last of them."""
        e, start = self.embedding(torch.tensor(self.tokens, device=self.features.device)), self.rows.length
        x = self.network.fuse(e, self.features)
        rope = self.rows.rope(self.network, start, start + len(x))
        self.rows.append(*self.network.attention.keys_values(x, rope))
        self.rows.length += len(x)
        last, k, v = x[-1:], *self.rows.view()
        return self.network.output(last + self.network.attention.attend(last, rope[:, -1:], k, v, None))

    def expand(self, tokens: Tensor, features: Tensor, ancestors: Tensor, level: int) -> DraftOutput:
        """One draft step for a whole level: K tokens, their parents' h_feature, the tree's rows each sees `[K, R]`.

        The R rows are those of all levels so far, this one's K last.
        """
        x = self.network.fuse(self.embedding(tokens), features)
        position, seen = self.rows.length + level, ancestors.shape[1]
        rope = self.rows.rope(self.network, position, position + 1)
        self.rows.append(*self.network.attention.keys_values(x, rope), behind=seen - len(tokens))
        k, v = self.rows.view(seen)
        mask = F.pad(torch.where(ancestors, 0.0, float("-inf")), (self.rows.length, 0))
        shape = self.network.shape  # a published head may group its heads otherwise than its target
        mask = mask.repeat(shape.heads // shape.kv_heads, 1).to(x)
        return self.network.output(x + self.network.attention.attend(x, rope, k, v, mask))

    def logits(self, out: DraftOutput) -> Tensor:
        """Over the draft vocabulary, `[N, V_draft]` float32."""
        return self.lm_head(out.h_logit).float()
