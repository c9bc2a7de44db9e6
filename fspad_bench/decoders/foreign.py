"""The account of a foreign engine's generation: which of its steps and tokens count.

An engine that drafts several tokens a step may go beyond the limit before it looks at it. Its
output is cut there. Its seconds and its forwards also made what was cut, so that counts as well, as
far as it is the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fspad_bench.core.processors import output_logits
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.target import TransformersTarget

MOST_CONFIRMED = 64  # an engine overshoots by a step or two


def first_steps(committed: Sequence[int], tokens: int) -> list[int]:
    """Return the tokens of each step that committed the first `tokens` after the prefill's."""
    kept = []
    for count in committed:
        kept.append(min(count, tokens))
        tokens -= kept[-1]
    return [count for count in kept if count]


@torch.inference_mode()
def confirmed(
    target: TransformersTarget,
    sampler: Sampler,
    context: Context,
    beyond: Sequence[int],
    limit: Limit,
) -> int:
    """Return how many leading tokens of `beyond` the target chooses after a text, up to a stop.

    It asks by a forward of the benchmark's own: no clock runs, and it is not counted.
    """
    before = context.tokens
    size = target.config.vocab_size
    room = min(target.max_length - len(before), MOST_CONFIRMED)
    beyond = [token for token in beyond[: max(0, room)] if 0 <= token < size]
    if not beyond or not 0 <= min(before) <= max(before) < size:
        return 0
    forwards = target.forwards
    with target.session(len(before)) as session:
        logits = [session.prefill(before).logits[-1]]
        if len(beyond) > 1:
            chain = [*range(-1, len(beyond) - 2)]
            logits += list(session.extend(beyond[:-1], chain).logits)
        rows = output_logits(torch.stack(logits), sampler, before, beyond[: len(logits) - 1])
        chosen = [sampler.next(row, len(before) + i) for i, row in enumerate(rows)]
    target.forwards = forwards
    return _agreeing(context, beyond, chosen, limit)


def _agreeing(context: Context, beyond: Sequence[int], chosen: Sequence[int], limit: Limit) -> int:
    tokens = list(context.tokens)
    for count, (token, own) in enumerate(zip(beyond, chosen, strict=True)):
        if token != own:
            return count
        tokens.append(token)
        if limit.stopped(Context(tokens, context.prompt_length)):
            return count + 1
    return len(beyond)
