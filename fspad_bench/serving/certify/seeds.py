"""Seeded identity: where a server keys its noise by seed, sampled answers can be compared.

- The control asks the plain server twice with the same seeds: if it does not repeat itself, seeds
  say nothing.
- The tests of distributions need answers that are independent: a plain server that draws alike
  whatever the seed gives none.
- An engine that verifies by rejection is right with other tokens, so a difference is no finding
  unless the engine promises identity (`Plan.seeded`). Equal answers are the strongest evidence.
"""

from __future__ import annotations

from fspad_bench.lossless.checks import ELSEWHERE, FAIL, INCONCLUSIVE, PASS, Check
from fspad_bench.serving.certify.drafts import with_drafts
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.certify.pair import Pair
from fspad_bench.serving.certify.plan import PLAIN, SERVED, Cell, Sampling

NAME = "seeded identity"
SEEDS = 4  # a prompt, in the control of independence


def check_seeds(pair: Pair, cell: Cell) -> Check:
    """Compare sampled answers of the same seeds."""
    plain = _answers(pair, cell, PLAIN, "seeds")
    again = _answers(pair, cell, PLAIN, "seeds again")
    repeated = _same(plain, again)
    if repeated < len(plain):
        figure = f"the plain server repeats {repeated} of {len(plain)} seeds itself"
        verdict = INCONCLUSIVE if pair.plan.seeded else ELSEWHERE
        return Check(NAME, cell.name, verdict, figure)
    served = _answers(pair, cell, SERVED, "seeds")
    same = _same(plain, served)
    figure = f"{same} of {len(plain)} answers identical by seed"
    if same == len(plain):
        return with_drafts(Check(NAME, cell.name, PASS, figure, "all"), served)
    if pair.plan.seeded:
        return Check(NAME, cell.name, FAIL, figure, "all")
    return Check(NAME, cell.name, ELSEWHERE, f"{figure}: tests of the distribution decide")


def ignored(pair: Pair) -> str:
    """Return that the plain server gives one answer to a prompt whatever the seed, or nothing."""
    cell = Cell(Sampling(temperature=1.0), concurrency=pair.plan.concurrency[0])
    asks = [
        pair.plan.ask(PLAIN, cell, prompt, seed=seed)
        for prompt in pair.plan.prompts
        for seed in range(SEEDS)
    ]
    answers = pair.sample(f"other seeds | {cell.name}", PLAIN, asks, cell.concurrency)
    by_prompt = [answers[i : i + SEEDS] for i in range(0, len(answers), SEEDS)]
    if any(_same(kept[:-1], kept[1:]) < SEEDS - 1 for kept in by_prompt):
        return ""
    return "the plain server gives one answer whatever the seed"


def _answers(pair: Pair, cell: Cell, side: str, name: str) -> list[Observation]:
    prompts = pair.plan.prompts_of(cell)
    asks = [pair.plan.ask(side, cell, prompt, seed=7 + i) for i, prompt in enumerate(prompts)]
    return pair.sample(f"{name} | {cell.name}", side, asks, cell.concurrency)


def _same(a: list[Observation], b: list[Observation]) -> int:
    return sum(x.tokens == y.tokens and x.end == y.end for x, y in zip(a, b, strict=True))
