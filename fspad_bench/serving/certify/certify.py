"""Certify a served engine: a grid of cells and checks, speculation on against speculation off.

- A fault may show in one cell alone, so each combination of the sweeps is checked by itself.
- The tests of distributions, and the greedy cells' tests against a control that differed from
  itself, share one family-wise error, split evenly. Where the control did not differ, one
  difference is a finding, with no bound on its error: an engine may seldom differ from itself.
- A check passes only where enough was drafted in the answers that it compares.
- A plain side that drafts is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

from fspad_bench.lossless.checks import ELSEWHERE, INCONCLUSIVE, SERVED_CELLS, Check, Part
from fspad_bench.serving.certify.drafts import check_drafts, with_drafts
from fspad_bench.serving.certify.greedy import Judge, Scorer, check_greedy
from fspad_bench.serving.certify.ledger import END, Ledger
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.certify.pair import Pair
from fspad_bench.serving.certify.parameters import check_parameters
from fspad_bench.serving.certify.plan import PLAIN, SERVED, Cell, Plan
from fspad_bench.serving.certify.same_model import Scores, check_same_model
from fspad_bench.serving.certify.sampled import (
    Comparison,
    Lengths,
    LogProbabilities,
    Pit,
    Repeats,
    Round,
    Stops,
    Tokens,
    WholeTexts,
)
from fspad_bench.serving.certify.seeds import check_seeds, ignored
from fspad_bench.serving.engine import Engine
from fspad_bench.util.progress import Progress

TESTS = 7  # of distributions, in a sampled cell

LISTED = {
    "bonus-without-temperature": ("parameters", "PIT", "tokens"),
    "recovery-noise-reused": ("tokens", "texts"),
    "one-hot-residual": ("tokens", "texts"),
    "filter-order": ("texts", "tokens"),
    "short-rollback": ("greedy identity", "PIT", "log-probs"),
    "ignored-sampling": ("parameters", "PIT"),
    "shorter-outputs": ("lengths", "stops"),
    "cached-answers": ("repeats",),
}
"""The checks listed for each fault that served engines have had (`serving.double`)."""


def certify(
    served: Engine,
    plain: Engine,
    plan: Plan,
    path: Path | None = None,
    scorer: Scorer | None = None,
) -> list[Part]:
    """Run the checks of every cell; answers and verdicts are written to `path` as they come.

    Raises BenchError where a server fails, or the two do not serve the same model.
    """
    facts = {"plan": asdict(plan), SERVED: served.facts(), PLAIN: plain.facts()}
    ledger = Ledger(path, facts)
    try:
        certification = Certification(Pair(served, plain, plan, ledger), scorer)
        checks = certification.run()
        ledger.write({"kind": END, "certified": all(check.holds for check in checks)})
        shown = {side: _shown(facts[side]) for side in (SERVED, PLAIN)}
        about = "\n".join(f"{side}: {words}" for side, words in shown.items() if words)
        return [Part(SERVED_CELLS, checks, about)]
    finally:
        ledger.close()


def _shown(server: Mapping[str, Any]) -> str:
    """Return what is known of a server in a few words; a model by the last part of its path."""
    engine = " ".join(str(server[name]) for name in ("dialect", "version") if server.get(name))
    model = str(server.get("model") or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    return ", ".join(part for part in (engine, model, str(server.get("url") or "")) if part)


class Certification:
    """The checks of a pair of servers, cell by cell."""

    def __init__(self, pair: Pair, scorer: Scorer | None) -> None:
        self.pair = pair
        self.plan = pair.plan
        self.scorer = scorer
        self.dependent = ""  # why sampled answers are not independent
        self.cells = self.plan.cells()
        sampled = sum(not cell.sampling.greedy for cell in self.cells)
        greedy = len(self.cells) - sampled  # one test each, where the control differs
        self.alpha = self.plan.error / (sampled * TESTS + greedy)

    def run(self) -> list[Check]:
        self._try_plain()
        scores = check_same_model(self.pair)
        if any(not cell.sampling.greedy for cell in self.cells):
            self.dependent = ignored(self.pair)
        checks = []
        with Progress("cells", len(self.cells)) as progress:
            for cell in self.cells:
                progress.advance(0, cell.name)
                found = self._cell(cell, scores, lambda note: progress.advance(0, note))
                lines = [check._asdict() for check in found]
                self.pair.ledger.write({"kind": "checks", "cell": cell.name, "checks": lines})
                checks += found
                progress.advance()
        return checks

    def _try_plain(self) -> None:
        """Ask the plain side once, so that one that speculates is refused before anything is kept.

        Its later answers are held to the same.
        """
        cell = self.cells[0]
        asks = [self.plan.ask(PLAIN, cell, prompt, seed=1) for prompt in self.plan.prompts]
        self.pair.send(PLAIN, asks, cell.concurrency)

    def _cell(self, cell: Cell, scores: Scores, on_round: Callable[[str], None]) -> list[Check]:
        judge = Judge(cell.sampling, scores.raw, self.scorer, self.plan.tie)
        if cell.sampling.greedy:
            return check_greedy(self.pair, cell, judge, self.alpha)
        by_token = [check_parameters(self.pair, cell, judge), check_seeds(self.pair, cell)]
        drafts, *tested = self._tested(cell, scores.apart, on_round)
        return [drafts, *by_token, *tested]

    def _tested(self, cell: Cell, apart: str, on_round: Callable[[str], None]) -> list[Check]:
        """Run the tests of distributions, round by round; the first check is of their drafts."""
        tests = self._tests(apart)
        served: list[Observation] = []
        for i in range(self.plan.rounds):
            answers = self._round(cell, i)
            served += itertools.chain.from_iterable(answers.served)
            for test in tests:
                test.round(answers, self.alpha)
            findings = [test.name for test in tests if test.taken is not None]
            on_round(f"{cell.name}: round {i + 1}{''.join(f', {name}' for name in findings)}")
            if findings and self.plan.stop_early:
                break
        checks = [with_drafts(self._verdict(test, cell), served) for test in tests]
        return [check_drafts(cell.name, served), *checks]

    def _verdict(self, test: Comparison, cell: Cell) -> Check:
        """Return a test's check; answers that are not independent prove nothing."""
        check = test.check(cell.name, self.alpha)
        if not self.dependent or check.verdict == ELSEWHERE:
            return check
        figure = f"{self.dependent}; {check.figure}"
        return check._replace(verdict=INCONCLUSIVE, figure=figure)

    def _tests(self, apart: str) -> list[Comparison]:
        tests = [Tokens(), WholeTexts(), Lengths(), Stops(self.plan.max_tokens), Repeats()]
        return [*tests, LogProbabilities(apart), Pit(apart)]

    def _round(self, cell: Cell, i: int) -> Round:
        """Ask both sides; every answer has a seed of its own, or they would not be independent."""
        sides = {}
        prompts = self.plan.prompts_of(cell)
        each = self.plan.each
        first = crc32(cell.name.encode()) % 2**30  # other seeds in other cells
        for k, side in enumerate((SERVED, PLAIN)):
            asks = []
            for j, prompt in enumerate(prompt for prompt in prompts for _ in range(each)):
                seed = self.plan.seed + first + (2 * i + k) * len(prompts) * each + j
                asks.append(self.plan.ask(side, cell, prompt, seed=seed))
            answers = self.pair.sample(f"round {i} | {cell.name}", side, asks, cell.concurrency)
            sides[side] = [answers[n : n + each] for n in range(0, len(answers), each)]
        return Round(sides[SERVED], sides[PLAIN])
