"""A causal language model as a draft: another model with a cache of its own, one that was trained
for this target (`language_network`), or some of the target's own layers, which read the target's
entries.

- The model stays in step with the text by itself. `absorb` keeps what of its last drafts was
  committed, token by token, and runs the rest: entries of drafts that were accepted otherwise than
  they were drafted (through a merged node, after a refusal) are never used.
- Layers of the target share its entries, so nothing is absorbed but the last token, and nothing
  stays: the target writes to the same place.
- Past the end of the model's context nothing is drafted.
- One trained for the target has a draft vocabulary, which the text's own tokens join.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from fspad_bench.core.protocols import ALL, Context, LayerPlan
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.language_network import as_target, vocabulary_of
from fspad_bench.drafts.vocabulary import JoinedTokens
from fspad_bench.engine.session import LARGEST_TREE, Scores, Session
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError


class LanguageModel:
    """A draft for `target`: `model`, or the `layers` of the target itself.

    A trained one has a vocabulary `joined`, over whose base ids the model's logits are.
    """

    def __init__(
        self,
        target: TransformersTarget,
        model: TransformersTarget,
        layers: LayerPlan = ALL,
        joined: JoinedTokens | None = None,
    ) -> None:
        self.target = target
        self.model = model
        self.layers = layers
        self.joined = joined
        self.shares = model is target
        self.vocabulary_size = model.config.vocab_size
        size = min(self.vocabulary_size, target.config.vocab_size)
        self.common_ids = torch.arange(size, device=target.device)
        self.session: Session | None = None
        self.main: Session | None = None  # the target's, whose entries are shared
        self.capacity = 0
        self.length = 0  # of the text when it was last followed

    @classmethod
    def of(
        cls, target: TransformersTarget, model: TransformersTarget | Head, skip: float
    ) -> LanguageModel:
        """Return the draft by another model, a trained one, or the target without this share of its
        layers.

        Raises BenchError for a target whose layers cannot be skipped.
        """
        if isinstance(model, Head):
            joined = JoinedTokens(vocabulary_of(model, target), target.lm_head.weight)
            return cls(target, as_target(model, target), joined=joined)
        if model is not target:
            return cls(target, model)
        if not 0 < skip < 1:
            raise BenchError(f"skip={skip:g} is no share of the layers", "between 0 and 1")
        layers = spread(target.config.num_hidden_layers, skip)
        if not layers:
            raise BenchError(
                f"{target.name} has one layer, and so none to skip", "name a draft model"
            )
        plan = LayerPlan(layers, layers)
        target.check_plan(plan)
        return cls(target, model, plan)

    def twin(self) -> LanguageModel:
        """Return the same draft for another text, by the same model."""
        joined = None if self.joined is None else self.joined.twin()
        return LanguageModel(self.target, self.model, self.layers, joined)

    @property
    def ids(self) -> Tensor:
        """The tokens that it can draft: those that both models have, or its vocabulary's.

        `[V_draft]`.
        """
        return self.common_ids if self.joined is None else self.joined.ids

    def settings(self) -> dict[str, Any]:
        """Return what drafts: the layers left out, or the model by its content."""
        if self.shares:
            return {"model": "self", "skipped_layers": sorted(self.layers.skip_attention)}
        return {
            "model": self.model.name,
            "model_identity": self.model.identity,
            "model_sha256": self.model.files_sha256,
        }

    def begin(self) -> None:
        """Start a generation on the target's session, which was opened last."""
        self._close()
        self.length = 0
        if self.joined is not None:
            self.joined.reset()
        if self.shares:
            self.main = self.target.last_session
            self._share()

    def follow(self, context: Context, budget: int) -> int:
        """Take the text as it stands; return how many levels can be drafted behind it."""
        if self.joined is not None:
            self.joined.extend(context.tokens[self.length :])
        self.length = len(context.tokens)
        self.tokens = context.tokens
        needed = len(self.tokens) + budget
        if self.shares:
            return budget
        capacity = min(needed, self.model.max_length)
        if self.session is None or self.capacity < capacity:
            self._close()
            self.session = self.model.session(capacity)
            self.capacity = capacity
        return capacity - len(self.tokens)

    def absorb(self) -> Tensor:
        """Run the tokens committed since the last step; return the logits `[1, V_draft]` after the
        last of them.
        """
        session = self._session()
        if self.shares:
            self.level = range(1)
            return self._logits(session.extend(self.tokens[-1:], [-1]))
        if not session.length:
            scores = session.prefill(self._readable(self.tokens))
        else:
            session.commit(self._kept(session.length))
            session.rewind(min(session.length, len(self.tokens) - 1))  # it was asked of this text
            while session.length < len(self.tokens):
                new = self._readable(self.tokens[session.length :][:LARGEST_TREE])
                scores = session.extend(new, range(-1, len(new) - 1))
                session.commit(range(len(new)))
        self.children: dict[tuple[int, int], int] = {}
        self.level = range(-1, 0)
        return self._logits(Scores(scores.logits[-1:], scores.features[-1:]))

    def expand(self, tokens: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Run a level of drafted tokens, each below a node of the level before; return the logits
        `[K, V_draft]` after them.
        """
        session = self._session()
        parents = [self.level[row] for row in rows]
        first = session.pending
        self.level = range(first, first + len(tokens))
        if not self.shares:
            self.children |= dict(zip(zip(parents, tokens, strict=True), self.level, strict=True))
        return self._logits(session.extend(tokens, parents))

    def release(self) -> None:
        """Let the target write to its entries again, after a tree was drafted."""
        if self.shares:
            self._session().rollback()

    def use(self, layers: LayerPlan) -> None:
        """Draft with other layers of the target from now on."""
        if layers != self.layers:
            self.layers = layers
            self._share()

    def read_again(self, tokens: Sequence[int], start: int, layers: LayerPlan) -> Tensor:
        """Return what these layers of the target predict `[N, V_draft]` after each of N `tokens` of
        the text, from the one at `start` on.

        The target's entries of the text before `start` are read; what stands at those tokens now is
        left as it is.
        """
        assert self.main is not None
        with self.target.session(0, layers=layers, share=self.main) as session:
            session.look_back(self.main.length - start)
            return self._logits(session.extend(tokens, range(-1, len(tokens) - 1)))

    def _session(self) -> Session:
        assert self.session is not None, "follow the text first"
        return self.session

    def _share(self) -> None:
        self.session = self.target.session(0, layers=self.layers, share=self.main)

    def _close(self) -> None:
        if self.session is not None:
            self.session.close()
        self.session = None

    def _kept(self, committed: int) -> list[int]:
        """Return the pending entries that carry the text on from its first `committed` tokens.

        The last token of the text is run in any case: its logits are wanted.
        """
        path: list[int] = []
        with suppress(KeyError):
            for token in self.tokens[committed:-1]:
                path.append(self.children[path[-1] if path else -1, token])
        return path

    def _readable(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens as the model knows them; one that it lacks stands as its last."""
        return [min(token, self.vocabulary_size - 1) for token in tokens]

    def _logits(self, scores: Scores) -> Tensor:
        """Return the logits over `ids`, in float32 or wider."""
        logits = scores.logits[:, : len(self.common_ids)]
        if self.joined is not None:
            logits = self.joined.complete(scores.logits, scores.features)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def spread(layers: int, share: float) -> frozenset[int]:
    """Return a share of a model's layers, at least one, evenly spread.

    The first is not among them, and the last only where there are two.
    """
    inner = inner_layers(layers)
    count = min(max(1, round(share * layers)), len(inner))
    return frozenset(inner[(2 * i + 1) * len(inner) // (2 * count)] for i in range(count))


def inner_layers(layers: int) -> range:
    """Return the layers that a draft may skip: all but the first and the last; of two the last."""
    return range(1, max(layers - 1, min(layers, 2)))
