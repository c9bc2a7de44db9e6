"""The one loop that every decoder runs in: propose, score, verify, commit, observe.

Vanilla decoding is the drafter that proposes nothing, so baseline and decoder differ in exactly the
thing measured. How a tree becomes tokens is the business of a rule (`verification`), where the
output is proved to be the target's, whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Self

import torch

from fspad_bench.core.forwards import Forwards
from fspad_bench.core.processors import check_functions, first_logits, node_logits
from fspad_bench.core.protocols import (
    Context,
    Drafter,
    Generation,
    Limit,
    Scores,
    Step,
    Target,
    as_drafter,
)
from fspad_bench.core.tree import AcceptedPath, Tree, as_tree
from fspad_bench.core.verification import Accepted, Chooser


class Decoding:
    """A generation at work: its session, its text so far, and what its steps did.

    After a prefill and `begin`, a step is `propose`, a forward of the tree, and `take`. As a
    context manager it closes its session at the end.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        sampler: Chooser,
        prompt: Sequence[int],
        limit: Limit,
    ) -> None:
        self.drafter = as_drafter(drafter)
        self.sampler = sampler
        self.limit = limit
        self.verify = target.verifier(self.drafter.rule)
        self.context = Context(list(prompt), len(prompt), sampler)
        self.committed: list[int] = []
        self.drafted: list[int] = []
        self.paths: list[AcceptedPath] = []
        self.draft_seconds = 0.0
        self.verify_seconds = 0.0
        self.score_seconds = 0.0
        capacity = len(prompt) + limit.max_new_tokens
        self.session = target.session(capacity, capture=self.drafter.capture)

    def __enter__(self) -> Self:
        self.session.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.session.__exit__(*error)

    @property
    def finished(self) -> bool:
        return self.limit.reached(self.context)

    def begin(self, scores: Scores) -> None:
        """Choose the first token after the prefill, whose scores these are."""
        context = self.context
        sampler = self.sampler
        prompt = context.tokens
        first = first_logits(scores.logits[-1], sampler, prompt)
        context.tokens = [*prompt, sampler.next(first, context.position)]
        if not self.finished:
            if sampler.processors:
                check_functions(sampler.processors, scores.logits[-1], prompt, context.tokens[-1])
            self.drafter.begin(context, scores)

    def propose(self) -> Tree:
        """Return the tree of the next step.

        Raises ValueError for one that does not continue the text: its tokens would be taken for
        the target's.
        """
        began = perf_counter()
        length, last = len(self.context.tokens), self.context.tokens[-1]
        tree = as_tree(self.drafter.propose(self.context, self.limit.room(self.context)))
        self.draft_seconds += perf_counter() - began
        if (len(self.context.tokens), self.context.tokens[-1]) != (length, last):
            raise ValueError("propose() changed context.tokens, which are the loop's")
        if tree.tokens[0] != last:
            raise ValueError(
                f"propose() returned a tree rooted in {tree.tokens[0]}; the last token is {last}"
            )
        return tree

    def take(self, tree: Tree, scores: Scores, seconds: float) -> int:
        """Verify a tree whose forward took so long, commit what is accepted, and return the number
        of new tokens.
        """
        context = self.context
        began = perf_counter()
        logits = node_logits(
            tree, scores.logits, self.sampler, context.tokens, context.prompt_length
        )
        accepted = self.verify(tree, logits, self.sampler, context.position)
        self.verify_seconds += perf_counter() - began
        if not isinstance(accepted, Accepted):
            raise TypeError(f"its rule returned {type(accepted).__name__}, not an Accepted")
        self.session.commit(accepted.path)
        new = [tree.tokens[node] for node in accepted.path[1:]] + [accepted.bonus]
        kept = self.limit.cut(context, new)
        context.tokens += kept
        self.drafter.observe(Step(context, tree, scores, accepted, seconds))
        self.score_seconds += seconds
        self.committed.append(len(kept))
        self.drafted.append(len(tree) - 1)
        self.paths.append(AcceptedPath(tuple(tree.parents), tuple(accepted.path)))
        return len(kept)

    def generation(
        self,
        prefill_seconds: float,
        decode_seconds: float,
        forwards: int,
        partial_forwards: int = 0,
        prefill_forwards: int = 0,
    ) -> Generation:
        """Return what was generated, in so much time and by so many forwards."""
        has_drafts = any(self.drafted)
        return Generation(
            tokens=self.context.new_tokens,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            forwards=forwards,
            committed=self.committed,
            drafted=self.drafted,
            draft_seconds=self.draft_seconds,
            score_seconds=self.score_seconds,
            verify_seconds=self.verify_seconds,
            partial_forwards=partial_forwards,
            prefill_forwards=prefill_forwards,
            depths=[path.depth for path in self.paths] if has_drafts else None,
            ranks=[path.ranks for path in self.paths] if has_drafts else None,
            refused=[path.refused for path in self.paths] if has_drafts else None,
        )


@torch.inference_mode()
def generate(
    target: Target, drafter: Drafter, sampler: Chooser, prompt: Sequence[int], limit: Limit
) -> Generation:
    """Decode until `limit`.

    The decode clock starts when the prefill's logits exist; `begin` is inside it. No code of the
    decoder's runs off the clock, and forwards are counted from the start.
    """
    start = perf_counter()
    forwards = Forwards(target)
    partial = target.partial_forwards
    with Decoding(target, drafter, sampler, prompt, limit) as decoding:
        session = decoding.session
        scores = session.prefill(prompt)
        target.synchronize()
        ready = perf_counter()
        forwards.prefilled()
        decoding.begin(scores)
        while not decoding.finished:
            tree = decoding.propose()
            began = perf_counter()
            scores = session.score(tree)
            decoding.take(tree, scores, perf_counter() - began)
        target.synchronize()
        done = perf_counter()
    return decoding.generation(
        ready - start,
        done - ready,
        forwards=forwards.decoding,
        partial_forwards=target.partial_forwards - partial,
        prefill_forwards=forwards.prefill,
    )
