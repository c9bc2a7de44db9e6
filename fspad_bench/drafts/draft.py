"""A draft network with its KV cache and its vocabulary, stepped one level of a tree at a time.

The cache holds only entries computed from the target's features: a tree's entries are written
behind them and forgotten, and the accepted tokens' entries come with the next step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fspad_bench.core.protocols import Context, Scores, Step
from fspad_bench.drafts.cache import DraftCache
from fspad_bench.drafts.fused import FusedNetwork
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftOutput
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.target import TransformersTarget


class Draft:
    """A draft network at work: its weights packed, its cache, and the tokens that it can propose.

    `ids [V_draft]`: the target's ids of these tokens; with `prompted` the text's own join them,
    unless the head has an LM head of its own, which has no rows for them.
    """

    def __init__(self, target: TransformersTarget, head: Head, *, prompted: bool = True) -> None:
        self.network = FusedNetwork(head.network)
        self.capture = head.network.shape.capture
        prompted = prompted and head.network.lm_head is None
        self.vocabulary = Vocabulary(head.vocabulary, target.config.vocab_size, prompted=prompted)
        self.embedding = target.embedding
        self.lm_head_weight = target.lm_head.weight
        self.lm_head = Matrix(head.network.head_rows(self.lm_head_weight, head.vocabulary))
        self.cache = DraftCache(target, self.network)
        self._reset_vocabulary()

    def begin(self, context: Context, scores: Scores) -> None:
        """Start after a prefill, whose features these are, and the first token."""
        self.cache.clear()
        self.features = scores.features
        self.tokens = context.tokens[1:]
        self.absorbed = False
        self._reset_vocabulary()
        self._extend_vocabulary(context.tokens)

    def observe(self, step: Step) -> None:
        """Take the features and tokens of a committed path, for the next `absorb`.

        Those of earlier steps that drafted nothing wait with them.
        """
        features = step.scores.features[step.accepted.path]
        tokens = step.tokens
        self._extend_vocabulary(tokens)
        if self.absorbed:
            self.features = features
            self.tokens = tokens
        else:
            self.features = torch.cat([self.features, features])
            self.tokens = self.tokens + tokens
        self.absorbed = False

    def absorb(self) -> DraftOutput:
        """Cache the entries of the tokens committed since the last step, and predict from the last
        of them.
        """
        start = self.cache.length
        e = self.embedding(torch.tensor(self.tokens, device=self.features.device))
        f = self.network.read(self.features)
        x = self.network.fuse(e, f)
        rope = self.cache.rope(start, start + len(x))
        seen = self._attend(x, 1, rope)
        self.cache.length += len(x)
        self.absorbed = True
        return self.network.output(self.network.residual(x, f)[-1:], seen)

    def expand(
        self, tokens: Tensor, features: Tensor, ancestors: Tensor, level: int
    ) -> DraftOutput:
        """Draft a whole level: K tokens, their parents' h_feature `[K, d]`, what each attends to
        `[K, R]`.

        The R entries are those of the tree's levels so far, this one's K last.
        """
        x = self.network.fuse(self.embedding(tokens), features)
        position = self.cache.length + level
        rope = self.cache.rope(position, position + 1)
        offset = ancestors.shape[1] - len(tokens)
        seen = self._attend(x, len(x), rope, offset, ancestors)
        return self.network.output(self.network.residual(x, features), seen)

    def logits(self, out: DraftOutput) -> Tensor:
        """Return logits over the draft vocabulary, `[N, V_draft]` float32."""
        logits = self.lm_head(out.h_logit)
        if self.joined:
            logits = torch.cat([logits, self.joined(out.h_logit)], dim=-1)
        return logits.float()

    def _attend(
        self,
        x: Tensor,
        count: int,
        rope: Tensor,
        offset: int = 0,
        ancestors: Tensor | None = None,
    ) -> Tensor:
        """Cache x of M rows at `offset` behind the committed entries; attend from its last `count`.

        They attend to all committed entries and to the tree's entries that `ancestors [count, R]`
        marks. Returns the output projection `[count, d]`.
        """
        total = offset + len(x)
        if self.network.compiled_attention:
            keys, values = self.cache.room(total)
            start = self.cache.length + offset
            return self.network.attend_compiled(x, count, rope, keys, values, start, ancestors)
        self.cache.append(*self.network.keys_values(x, rope), offset=offset)
        keys, values = self.cache.view(total)
        mask = None
        if ancestors is not None:
            shape = (
                self.network.shape
            )  # a published head may group its heads otherwise than its target
            mask = x.new_zeros(shape.heads // shape.kv_heads, count, keys.shape[1])
            mask[..., self.cache.length :].masked_fill_(~ancestors, -torch.inf)
            mask = mask.flatten(0, 1)
        query = self.network.query(x[-count:], rope[:, -count:])
        return self.network.attend(query, keys, values, mask)

    def _reset_vocabulary(self) -> None:
        self.new_ids: set[int] = set()
        self.ids = self.vocabulary.base_ids
        self.joined: Matrix | None = None

    def _extend_vocabulary(self, tokens: Sequence[int]) -> None:
        """Let the draft propose these tokens of the text too."""
        if new := self.vocabulary.new_ids(tokens) - self.new_ids:
            self.new_ids |= new
            ids = torch.tensor(sorted(self.new_ids), device=self.vocabulary.base_ids.device)
            self.ids = torch.cat([self.vocabulary.base_ids, ids])
            self.joined = Matrix(self.lm_head_weight[ids])
