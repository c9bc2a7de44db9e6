"""The one loop that every decoder runs in: propose, score, verify, commit, observe.

Vanilla decoding is the drafter that proposes nothing, so baseline and decoder differ in exactly the
thing measured. How a tree becomes tokens is the business of a rule (`verification`), where the
output is proved to be the target's, whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch

from fspad_bench.core.processors import check_functions, first_logits, node_logits
from fspad_bench.core.protocols import (
    Context,
    Drafter,
    Forwards,
    Generation,
    Limit,
    Step,
    Target,
    as_drafter,
)
from fspad_bench.core.tree import AcceptedPath, as_tree
from fspad_bench.core.verification import Accepted, Chooser


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
    drafter = as_drafter(drafter)
    verify = target.verifier(drafter.rule)
    capacity = len(prompt) + limit.max_new_tokens
    with target.session(capacity, capture=drafter.capture) as session:
        scores = session.prefill(prompt)
        target.synchronize()
        ready = perf_counter()
        forwards.prefilled()
        context = Context(list(prompt), len(prompt), sampler)
        first = first_logits(scores.logits[-1], sampler, prompt)
        context.tokens.append(sampler.next(first, context.position))
        committed: list[int] = []
        drafted: list[int] = []
        paths: list[AcceptedPath] = []
        draft_seconds = score_seconds = verify_seconds = 0.0
        if not limit.reached(context):
            if sampler.processors:
                check_functions(sampler.processors, scores.logits[-1], prompt, context.tokens[-1])
            drafter.begin(context, scores)
        while not limit.reached(context):
            began = perf_counter()
            tree = as_tree(drafter.propose(context, limit.room(context)))
            proposed = perf_counter()
            scores = session.score(tree)
            scored = perf_counter()
            logits = node_logits(tree, scores.logits, sampler, context.tokens, len(prompt))
            accepted = verify(tree, logits, sampler, context.position)
            verified = perf_counter()
            if not isinstance(accepted, Accepted):
                raise TypeError(f"its rule returned {type(accepted).__name__}, not an Accepted")
            session.commit(accepted.path)
            new = [tree.tokens[node] for node in accepted.path[1:]] + [accepted.bonus]
            kept = limit.cut(context, new)
            context.tokens += kept
            drafter.observe(Step(context, tree, scores, accepted, scored - proposed))
            committed.append(len(kept))
            drafted.append(len(tree) - 1)
            paths.append(AcceptedPath(tuple(tree.parents), tuple(accepted.path)))
            draft_seconds += proposed - began
            score_seconds += scored - proposed
            verify_seconds += verified - scored
        target.synchronize()
        done = perf_counter()
    return Generation(
        tokens=context.new_tokens,
        prefill_seconds=ready - start,
        decode_seconds=done - ready,
        forwards=forwards.decoding,
        committed=committed,
        drafted=drafted,
        draft_seconds=draft_seconds,
        score_seconds=score_seconds,
        verify_seconds=verify_seconds,
        partial_forwards=target.partial_forwards - partial,
        prefill_forwards=forwards.prefill,
        depths=[path.depth for path in paths] if any(drafted) else None,
        ranks=[path.ranks for path in paths] if any(drafted) else None,
        refused=[path.refused for path in paths] if any(drafted) else None,
    )
