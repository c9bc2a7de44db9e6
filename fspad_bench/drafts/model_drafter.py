"""A drafter with a language model: what `draft_model` and `gsd` share."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

from fspad_bench.core.protocols import Context, Scores
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.language_model import LanguageModel
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.engine.target import TransformersTarget


class ModelDrafter(SizedDrafter):
    """The base class: `drafted` must be written.

    model   a draft model that `train` made for the target, or any language model of its tokenizer;
            the target itself: without a share `skip` of its layers, evenly spread.
    tree    see `SizedDrafter`; empty, it is fixed where `nodes` is given.
    """

    def __init__(
        self,
        target: TransformersTarget,
        *,
        model: Head | TransformersTarget,
        skip: float,
        tree: str,
        nodes: int | None,
    ) -> None:
        super().__init__(target, tree=tree, size=nodes)
        self.draft = LanguageModel.of(target, model, skip)

    def drafted(self, context: Context, levels: int, budget: int) -> Tree:
        """Return a tree of so many levels of the draft model, no deeper than `budget`."""
        raise TypeError(f"{type(self).__name__} has no drafted(context, levels, budget)")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.draft.settings()}

    def twin(self) -> Self:
        twin = copy(self)
        twin.draft = self.draft.twin()
        return twin

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        self.draft.begin()

    def candidates(self, context: Context, budget: int) -> Tree:
        levels = self.draft.follow(context, budget)
        if levels < 1:
            return Tree.root(context.tokens[-1])
        tree = self.drafted(context, levels, budget)
        self.draft.release()
        return tree
