"""Rules of verification at every depth: the exact distribution of what follows any path.

- The target's distribution is certain along a path of `depth` nodes, so the rule must accept them
  all; at its end stand two levels of children, drawn or ranked, with other probabilities than the
  target's.
- Every draw of the children and every decision of the rule is enumerated (`oracle`). The next two
  tokens must have the target's own distribution, to 1e-10.
- A rule that loses its residual, or takes what it likes, from some depth on is wrong here at that
  depth, though right at every other.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, Accepted, Rule, without
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless import choice
from fspad_bench.lossless.checks import Check, worst_of
from fspad_bench.lossless.oracle import Distribution, Oracle, distance, explore
from fspad_bench.lossless.reference import DEEPEST

NAME = "every depth"
BOUND = 1e-10
VOCABULARY = 2
CERTAIN = 1e4  # logits between a token and the others: their probability rounds to 0
SAMPLER = Sampler(1.0)
CHILDREN = 2  # of the path's last node; the first of them has one child
POSITION = 30
OWN_TOKENS = 16  # generated to see whether a decoder draws its trees
TIED_VOCABULARY = 160
LARGE_VOCABULARY = 1500  # beyond the sampler's shortlist
TIED_SAMPLERS = (
    Sampler(),
    Sampler(1.0, stream="ties"),
    Sampler(0.7, top_k=3, seed=1, stream="ties"),
    Sampler(1.3, top_p=0.8, seed=2, stream="ties"),
    Sampler(1.0, top_k=40, top_p=0.613, seed=3, stream="ties"),
    Sampler(5.0, top_p=0.95, seed=4, stream="ties"),
    Sampler(2.0, top_p=0.9, min_p=0.2, seed=5, stream="ties"),
)
TIED_NODES = (1, 3, 64, 65, 128)
TIED_POSITIONS = (5, 250, 255, 256, 1021, 2047, 70_000)


def distances(rule: Rule, *, drawn: bool, depths: Iterable[int]) -> Iterator[tuple[int, float]]:
    """Yield each depth, and the total variation there of a rule's two next tokens from the
    target's.
    """
    for depth in depths:
        yield depth, _distance(rule, drawn, depth)


def _distance(rule: Rule, drawn: bool, depth: int) -> float:
    dice = random.Random(depth)
    logits = [_row(dice) for _ in range(1 + VOCABULARY)]  # after the path, and after each token
    draft = [_row(dice).softmax(0) for _ in range(2)]

    def play(oracle: Oracle) -> tuple[int, ...]:
        tree, rows = _case(depth, logits, draft, oracle if drawn else None)
        path, bonus = rule(tree, rows, oracle, POSITION)
        output = [*(tree.tokens[node] for node in path[1:]), bonus][depth:]
        if len(output) < 2:  # the second token is the target's own next step
            output.append(oracle.next(logits[1 + output[0]], POSITION + depth + 1))
        return tuple(output[:2])

    expected: Distribution = {}
    for first, p in enumerate(logits[0].softmax(0).tolist()):
        for second, q in enumerate(logits[1 + first].softmax(0).tolist()):
            expected[first, second] = p * q
    return distance(explore(SAMPLER, play), expected)


def _row(dice: random.Random) -> Tensor:
    return torch.tensor([dice.uniform(-1.5, 1.5) for _ in range(VOCABULARY)], dtype=torch.float64)


def _case(
    depth: int, logits: Sequence[Tensor], draft: Sequence[Tensor], oracle: Oracle | None
) -> tuple[Tree, Tensor]:
    """Return a tree and its logits: a certain path of `depth` nodes, then the children.

    Drawn by the oracle, with `q`; without an oracle the most likely ones.
    """
    tokens = [depth % VOCABULARY]
    parents = [-1]
    rows: list[Tensor] = []
    claimed: list[Tensor] = []
    for level in range(1, depth + 1):
        certain = torch.zeros(VOCABULARY, dtype=torch.float64)
        certain[level % VOCABULARY] = CERTAIN
        rows.append(certain)
        claimed.append(torch.nn.functional.one_hot(certain.argmax(), VOCABULARY).double())
        tokens.append(level % VOCABULARY)
        parents.append(level - 1)
    rows.append(logits[0])
    claimed.append(draft[0])
    end = depth
    for token in _children(draft[0], CHILDREN, oracle):
        tokens.append(token)
        parents.append(end)
        rows.append(logits[1 + token])
        claimed.append(draft[1])
    (grandchild,) = _children(draft[1], 1, oracle)
    tokens.append(grandchild)
    parents.append(end + 1)
    rows.append(logits[0])
    claimed.append(torch.zeros(VOCABULARY, dtype=torch.float64))
    return Tree(tokens, parents, torch.stack(claimed) if oracle else None), torch.stack(rows)


def _children(q: Tensor, count: int, oracle: Oracle | None) -> list[int]:
    if oracle is None:
        return q.sort(descending=True).indices[:count].tolist()
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(oracle.draw(q))
        q = without(q, tokens[-1])
    return tokens


def check_rules() -> list[Check]:
    """Check every rule of verification, with drawn and with ranked children."""
    return [
        check_rule(f"{name}, {'drawn' if drawn else 'ranked'}", rule, drawn=drawn)
        for name, rule in RULES.items()
        for drawn in (True, False)
    ]


def check_rule(subject: str, rule: Rule, *, drawn: bool) -> Check:
    by_depth = dict(distances(rule, drawn=drawn, depths=range(DEEPEST + 1)))
    wrong = [str(depth) for depth, tv in by_depth.items() if not tv <= BOUND]
    figure = f"TV {worst_of(list(by_depth.values())):.1e} over depths 0 to {DEEPEST}"
    if wrong:
        figure += f", wrong at {', '.join(wrong)}"
    return Check.of(NAME, subject, not wrong, figure, f"{BOUND:.0e}")


def ties_hold(verify: Rule, *, greedy: bool, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a rule walks trees of tied logits as the definition does.

    Few levels of logits tie everywhere: at the top, and at the edges of top-k and top-p. A rule
    other than `match` is asked for its `greedy` walks.
    """
    return all(
        verify(case.tree, case.rows.to(device, dtype, copy=True), case.sampler, case.position)
        == case.expected
        for case in tied_cases()
        if case.sampler.greedy or not greedy
    )


class TiedCase(NamedTuple):
    """A tree with logits `rows [N, V]` of which many tie, and its walk by the definition."""

    tree: Tree
    rows: Tensor
    sampler: Sampler
    position: int
    expected: Accepted


@cache
def tied_cases() -> tuple[TiedCase, ...]:
    """Return all cases. The same for every engine, rule and mistake: the definition is our own."""
    return tuple(_tied_cases())


def _tied_cases() -> Iterator[TiedCase]:
    for number, position in enumerate(TIED_POSITIONS):
        for sampler in TIED_SAMPLERS:
            dice = random.Random(position)
            nodes = TIED_NODES[number % len(TIED_NODES)]
            right = min(DEEPEST, nodes // 2, 3 * number)
            vocabulary = TIED_VOCABULARY if number else LARGE_VOCABULARY
            tree, rows = choice.tied_case(dice, nodes, right, vocabulary, sampler, position)
            expected = choice.walked(tree, rows.tolist(), sampler, position)
            assert len(expected.path) == right + 1, "the path was made to be chosen"
            yield TiedCase(tree, rows, sampler, position, expected)


def check_ties(subject: str, verify: Rule, *, greedy: bool, target: TransformersTarget) -> Check:
    """Check a rule, as the target's device carries it out, where logits tie."""
    holds = ties_hold(verify, greedy=greedy, dtype=target.dtype, device=target.device)
    figure = "greedy walks" if greedy else "greedy walks, top-k and top-p"
    figure += f" of trees of up to {max(TIED_NODES)} nodes with tied logits"
    return Check.of("ties", subject, holds, figure, "the lowest token id leads")
