"""The two sides that are compared, and the one door through which they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from fspad_bench.serving.certify.drafts import refuse_plain_drafts
from fspad_bench.serving.certify.ledger import Ledger
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.certify.pit import transformed
from fspad_bench.serving.certify.plan import PLAIN, SERVED, Cell, Plan, Sampling
from fspad_bench.serving.engine import Ask, Engine
from fspad_bench.util.errors import BenchError

RESUMES = "the same command resumes where this one stopped"


class Pair:
    """Speculation on and off: two servers, or one that requests switch."""

    def __init__(self, served: Engine, plain: Engine, plan: Plan, ledger: Ledger) -> None:
        self.engines: Mapping[str, Engine] = {SERVED: served, PLAIN: plain}
        self.plan = plan
        self.ledger = ledger

    def ask(self, name: str, side: str, asks: Sequence[Ask], concurrency: int) -> list[Observation]:
        """Return the answers to `asks`, from the report file where it holds them."""
        return self._kept(f"{name} | {side}", side, lambda: self.send(side, asks, concurrency))

    def sample(
        self, name: str, side: str, asks: Sequence[Ask], concurrency: int
    ) -> list[Observation]:
        """Return sampled answers, with u in place of the alternatives."""
        question = f"{name} | {side}"
        dice = Random(question)

        def send() -> list[Observation]:
            return [transformed(answer, dice) for answer in self.send(side, asks, concurrency)]

        return self._kept(question, side, send)

    def _kept(
        self, question: str, side: str, send: Callable[[], list[Observation]]
    ) -> list[Observation]:
        answers = self.ledger.answers(question, send)
        if side == PLAIN:
            refuse_plain_drafts(answers)
        return answers

    def send(self, side: str, asks: Sequence[Ask], concurrency: int) -> list[Observation]:
        """Return a server's answers to `asks`, asked now.

        Raises BenchError where the server fails, or is the plain side and drafted something.
        """
        answers = self._sent(side, asks, concurrency)
        if side == PLAIN:
            refuse_plain_drafts(answers)
        return answers

    def _sent(self, side: str, asks: Sequence[Ask], concurrency: int) -> list[Observation]:
        engine = self.engines[side]
        try:
            before = engine.drafts()
            answers = list(map(Observation.of, engine.ask_all(asks, concurrency)))
            if before is None or any(answer.drafted is not None for answer in answers):
                return answers
            after = engine.drafts()
        except BenchError as error:
            hint = f"{error.hint}; {RESUMES}" if error.hint else RESUMES
            raise BenchError(f"{side}: {error.message}", hint) from error
        counted = after.since(before) if after else None
        if counted is None:
            return answers
        # of all together: the first answer has them
        return [answers[0]._replace(**counted._asdict()), *answers[1:]]

    def greedy(
        self, name: str, side: str, cell: Cell, sampling: Sampling, *, times: int = 1, alone: bool
    ) -> list[Observation]:
        """Return answers to every prompt, `times` over; one at a time if `alone`."""
        prompts = self.plan.prompts_of(cell) * times
        asks = [self.plan.ask(side, cell, p, sampling=sampling, seed=1) for p in prompts]
        where = replace(cell, sampling=sampling)
        if alone and side == PLAIN:  # the same in every cell
            where = replace(where, depth=None, concurrency=1)
        concurrency = 1 if alone else cell.concurrency
        return self.ask(f"{name} | {where.name}", side, asks, concurrency)
