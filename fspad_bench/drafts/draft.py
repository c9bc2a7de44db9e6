"""A draft network with its KV cache and its vocabulary, stepped one level of a tree at a time.

The cache holds only rows computed from the target's features: a tree's rows are written behind them and forgotten,
and the accepted tokens' rows come next round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fspad_bench.core.loop import Context, Scores, Step
from fspad_bench.drafts.cache import DraftRows
from fspad_bench.drafts.fused import LeanNetwork
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftOutput
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.target import TransformersTarget


class Draft:
    """`vocabulary [V_draft]` are the target's ids of what it can say, with `prompted` those of the text so far too."""

    def __init__(self, target: TransformersTarget, head: Head, *, prompted: bool = True) -> None:
        self.network = head.network
        self.lean = LeanNetwork(head.network)
        self.sayable = Vocabulary(head.vocabulary, target.config.vocab_size, prompted=prompted)
        self.embedding = target.embedding
        self.every_row = target.lm_head.weight
        self.lm_head, self.rows = (
            Matrix(self.every_row[head.vocabulary]),
            DraftRows(target, self.lean),
        )
        self._forget()

    def begin(self, context: Context, scores: Scores) -> None:
        self.rows.clear()
        self.features = scores.features
        self.tokens = context.tokens[1:]
        self._forget()
        self._hear(context.tokens)

    def observe(self, step: Step) -> None:
        path = step.accepted.path
        self.features = step.scores.features[path]
        self.tokens = [step.tree.tokens[node] for node in path[1:]] + [step.accepted.bonus]
        self._hear(self.tokens)

    def _forget(self) -> None:
        self.heard: set[int] = set()
        self.vocabulary = self.sayable.usual
        self.joined = None

    def _hear(self, tokens: Sequence[int]) -> None:
        """From now on the draft can say these too."""
        if new := self.sayable.joining(tokens) - self.heard:
            self.heard |= new
            joined = torch.tensor(sorted(self.heard), device=self.sayable.usual.device)
            self.vocabulary = torch.cat([self.sayable.usual, joined])
            self.joined = Matrix(self.every_row[joined])

    def absorb(self) -> DraftOutput:
        """Cache the rows of the tokens committed since the last round, and predict from the last of them."""
        e = self.embedding(torch.tensor(self.tokens, device=self.features.device))
        start = self.rows.length
        x = self.lean.fuse(e, self.features)
        rope = self.rows.rope(self.lean, start, start + len(x))
        seen = self._see(x, 1, rope)
        self.rows.length += len(x)
        return self.lean.output(x[-1:], seen)

    def expand(
        self, tokens: Tensor, features: Tensor, ancestors: Tensor, level: int
    ) -> DraftOutput:
        """One draft step for a whole level: K tokens, their parents' h_feature, the tree's rows each sees `[K, R]`.

        The R rows are those of all levels so far, this one's K last.
        """
        x = self.lean.fuse(self.embedding(tokens), features)
        position = self.rows.length + level
        seen = ancestors.shape[1]
        rope = self.rows.rope(self.lean, position, position + 1)
        return self.lean.output(x, self._see(x, len(x), rope, seen - len(tokens), ancestors))

    def _see(
        self, x: Tensor, asked: int, rope: Tensor, behind: int = 0, ancestors: Tensor | None = None
    ) -> Tensor:
        """Cache the rows of x `[M, d]`, `behind` a tree's others; what the last `asked` of them see, projected.

        Of the tree's rows, these included, each sees what `ancestors [asked, R]` says.
        """
        if self.lean.attends:
            return self.lean.see(
                x,
                asked,
                rope,
                *self.rows.room(behind + len(x)),
                self.rows.length + behind,
                ancestors,
            )
        self.rows.append(*self.lean.keys_values(x, rope), behind=behind)
        keys, values = self.rows.view(behind + len(x))
        mask = None
        if ancestors is not None:
            shape = (
                self.lean.shape
            )  # a published head may group its heads otherwise than its target
            mask = x.new_zeros(shape.heads // shape.kv_heads, asked, keys.shape[1])
            mask[..., self.rows.length :].masked_fill_(~ancestors, -torch.inf)
            mask = mask.flatten(0, 1)
        return self.lean.attend(self.lean.query(x[-asked:], rope[:, -asked:]), keys, values, mask)

    def logits(self, out: DraftOutput) -> Tensor:
        """Over the draft vocabulary, `[N, V_draft]` float32."""
        logits = self.lm_head(out.h_logit)
        if self.joined:
            logits = torch.cat([logits, self.joined(out.h_logit)], dim=-1)
        return logits.float()
