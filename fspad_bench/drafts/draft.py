"""A draft at work on a text: a head's network with its vocabulary and what it has to read, stepped
one level of a tree at a time.

`Draft` is what trees are built from. `CachedDraft` does it with a decoder layer and a KV cache,
`parallel.ParallelDraft` without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import Self

import torch
from torch import Tensor

from fspad_bench.core.protocols import Context, Scores, Step
from fspad_bench.drafts.cache import DraftCache
from fspad_bench.drafts.fused import FusedNetwork
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftNetwork, DraftOutput
from fspad_bench.drafts.vocabulary import JoinedTokens, Vocabulary
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.target import TransformersTarget


class Draft(ABC):
    """The tokens that a head can propose, and the target's features that it has not read yet.

    `ids [V_draft]`: the target's ids of these tokens; with `prompted` the text's own join them,
    unless the head has an LM head of its own, which has no rows for them. `length`: how many tokens
    it has read.
    """

    def __init__(self, target: TransformersTarget, head: Head, *, prompted: bool = True) -> None:
        self.capture = head.network.shape.capture
        prompted = prompted and head.network.lm_head is None
        self.vocabulary = Vocabulary(head.vocabulary, target.config.vocab_size, prompted=prompted)
        self.embedding = target.embedding
        weight = target.lm_head.weight
        self.lm_head = Matrix(head.network.head_rows(weight, head.vocabulary))
        self.joined = JoinedTokens(self.vocabulary, weight)

    @property
    def ids(self) -> Tensor:
        return self.joined.ids

    def twin(self) -> Self:
        """Return the same draft for another text: they share weights, and nothing else."""
        twin = copy(self)
        twin.joined = self.joined.twin()
        return twin

    def begin(self, context: Context, scores: Scores) -> None:
        """Start after a prefill, whose features these are, and the first token."""
        self.length = 0
        self.features = scores.features
        self.tokens = context.tokens[1:]
        self.absorbed = False
        self.joined.reset()
        self.joined.extend(context.tokens)

    def observe(self, step: Step) -> None:
        """Take the features and tokens of a committed path, for the next `absorb`.

        Those of earlier steps that drafted nothing wait with them.
        """
        features = step.scores.features[step.accepted.path]
        tokens = step.tokens
        self.joined.extend(tokens)
        if self.absorbed:
            self.features = features
            self.tokens = tokens
        else:
            self.features = torch.cat([self.features, features])
            self.tokens = self.tokens + tokens
        self.absorbed = False

    @abstractmethod
    def absorb(self) -> DraftOutput:
        """Read the tokens committed since the last step, and predict from the last of them."""

    @abstractmethod
    def expand(self, tokens: Tensor, parents: Tensor, ancestors: Tensor, level: int) -> DraftOutput:
        """Draft a whole level: K tokens, their parents among the rows of the output before, `[K]`
        each.

        `ancestors [K, R]` marks what each attends to: of the R entries of the tree's levels so far,
        this one's K last.
        """

    @abstractmethod
    def rewind(self, length: int) -> None:
        """Forget what was read after the first `length` tokens."""

    def logits(self, out: DraftOutput) -> Tensor:
        """Return logits over the draft vocabulary, `[N, V_draft]` float32."""
        return self.joined.complete(self.lm_head(out.h_logit), out.h_logit).float()


class CachedDraft(Draft):
    """A decoder layer at work: its weights packed, and its cache.

    The cache holds only entries computed from the target's features: a tree's entries are written
    behind them and forgotten, and the accepted tokens' entries come with the next step.
    """

    def __init__(self, target: TransformersTarget, head: Head, *, prompted: bool = True) -> None:
        super().__init__(target, head, prompted=prompted)
        assert isinstance(head.network, DraftNetwork)
        self.network = FusedNetwork(head.network)
        self.context = head.network.context
        self.keeps_states = head.network.keeps_states
        self.cache = DraftCache(target, self.network)

    def twin(self) -> Self:
        twin = super().twin()
        twin.cache = self.cache.twin()
        return twin

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        self.cache.clear()
        self.before = context.tokens[1:2] * (self.context - 1)  # the first stands for those before

    def absorb(self) -> DraftOutput:
        """Cache the entries of the tokens committed since the last step, and predict from the last
        of them.
        """
        tokens = self.before + self.tokens
        self.before = tokens[len(self.tokens) :]
        windows = torch.tensor(tokens, device=self.features.device).unfold(0, self.context, 1)
        f = self.network.read(self.features)
        x = self.network.fuse(self.embedding(windows).flatten(1), f)
        rows, rope = self._entries(x, f)
        output = self._layer(rows, self.network.residual(x, f)[-1:], rope)
        self.cache.length += len(rows)
        self.length += len(x)
        self.absorbed = True
        return self._concluded(output, f[-1:], windows[-1:])

    def expand(self, tokens: Tensor, parents: Tensor, ancestors: Tensor, level: int) -> DraftOutput:
        windows = tokens[:, None]
        if self.context > 1:
            windows = torch.cat([self.windows[parents, 1:], windows], dim=1)
        f = self.last.h_feature[parents]
        x = self.network.fuse(self.embedding(windows).flatten(1), f)
        position = self.length + level + self.keeps_states
        rope = self.cache.rope(position, position + 1)
        offset = ancestors.shape[1] - len(tokens)
        residual = self.network.residual(x, f)
        output = self._layer(self.network.enter(x), residual, rope, offset, ancestors)
        return self._concluded(output, f, windows)

    def rewind(self, length: int) -> None:
        self.length = length
        self.cache.length = length * (1 + self.keeps_states)

    def _entries(self, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return what attention reads of the new rows, those of x last, and their rope."""
        start = self.length
        end = start + len(x)
        if not self.keeps_states:
            return self.network.enter(x), self.cache.rope(start, end)
        rope = self.cache.rope(start, end + 1)
        rows = torch.cat([self.network.enter(f), self.network.enter(x)])
        return rows, torch.cat([rope[:, :-1], rope[:, 1:]], dim=1)

    def _concluded(self, output: DraftOutput, f: Tensor, windows: Tensor) -> DraftOutput:
        """Return a level's outputs, and keep what the next level reads of it."""
        self.last = self.network.conclude(output, f)
        self.windows = windows
        return self.last

    def _layer(
        self,
        x: Tensor,
        residual: Tensor,
        rope: Tensor,
        offset: int = 0,
        ancestors: Tensor | None = None,
    ) -> DraftOutput:
        """Run the layer on x of M rows, whose last N ask: those of the residual `[N, d]`, which may
        be overwritten. The other arguments are those of `_attend`.
        """
        layer = self.network.layer
        if layer is None or not layer.fits(x):
            seen = self._attend(x, len(residual), rope, offset, ancestors)
            return self.network.output(residual, seen)
        keys, values = self.cache.room(offset + len(x))
        start = self.cache.length + offset
        update = layer(x, residual, rope, keys, values, start, ancestors)
        return self.network.outputs(residual, update)

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
            shape = self.network.shape  # a published head may group its heads otherwise
            mask = x.new_zeros(shape.heads // shape.kv_heads, count, keys.shape[1])
            mask[..., self.cache.length :].masked_fill_(~ancestors, -torch.inf)
            mask = mask.flatten(0, 1)
        query = self.network.query(x[-count:], rope[:, -count:])
        return self.network.attend(query, keys, values, mask)
