"""Tokens a second of several requests at once, with and without speculation.

- The same questions are decoded at every batch size, by all decoders in turns of a few rounds, so
  that all meet the same state of the machine. Requests that end are replaced by the next ones.
- Only rounds in which the batch was full count. Every request of such a round is charged an equal
  share of its seconds, so that prompts can be resampled as they are at batch 1.
- Every request's tokens are compared with those that the same decoder gave it alone (`company`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.speeds import NO_INTERVAL, if_enough
from fspad_bench.benchmark.stats import Cost, Interval, ratio_interval, speedup
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter
from fspad_bench.core.shared_loop import Question, SharedLoop
from fspad_bench.decoders.batching import drafters
from fspad_bench.decoders.border import blamed
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.together import check_shares, keeps_bits
from fspad_bench.profiling.break_even import Pair, break_even
from fspad_bench.profiling.company import LOSSY, Referee
from fspad_bench.util import machine
from fspad_bench.util.errors import BenchError
from fspad_bench.util.memory import is_out_of_memory
from fspad_bench.util.progress import Progress

TURN = 8  # rounds that a decoder runs before the next one's turn
FILLS = 2  # a batch is filled at least so many times over


@dataclass
class Cell:
    """The work of a decoder at a batch size, in rounds with a full batch.

    By prompt: `seconds`, `tokens` and `steps`. `differing`: requests whose tokens are not those
    that they get alone, of `requests`; `verdict`: whether rounding explains them.
    """

    decoder: str
    batch: int
    seconds: list[float]
    tokens: list[int]
    steps: list[int]
    nodes: int = 0
    requests: int = 0
    differing: int = 0
    verdict: str = "exact"

    @property
    def rate(self) -> float:
        """Tokens a second, of all requests together."""
        return sum(self.tokens) / sum(self.seconds)

    @property
    def nodes_per_step(self) -> float:
        return self.nodes / sum(self.steps)

    @property
    def tokens_per_step(self) -> Interval:
        counts = [p for p in zip(self.tokens, self.steps, strict=True) if p[1]]
        return if_enough(ratio_interval(counts), len(counts))


@dataclass
class Throughput:
    """All cells of a measurement.

    `keeps_bits`: whether the engine's rows are the same to the bit in any company; `others`: cores
    that other work used meanwhile; `too_large`: the batch size that did not fit the memory;
    `speculate_up_to`: the largest batch that drafts, None for all.
    """

    prompts: int
    keeps_bits: bool
    others: float = 0.0
    too_large: int | None = None
    speculate_up_to: int | None = None
    cells: list[Cell] = field(default_factory=list)

    def of(self, decoder: str) -> dict[int, Cell]:
        """Return a decoder's cells by batch size."""
        return {cell.batch: cell for cell in self.cells if cell.decoder == decoder}

    def speedup(self, cell: Cell) -> Interval:
        """Return vanilla's seconds per token over this decoder's, both at this batch size."""
        vanilla, own = self._pair(cell)
        return if_enough(speedup(vanilla, own), len(own))

    def drafting(self, decoder: str) -> dict[int, Cell]:
        """Return a decoder's cells by batch size, without those of rounds that drafted nothing."""
        limit = self.speculate_up_to
        return {n: cell for n, cell in self.of(decoder).items() if limit is None or n <= limit}

    def break_even(self, decoder: str) -> Interval:
        """Return the batch size from which on a decoder is slower than vanilla, among those at
        which it drafts; nan where there is none.
        """
        pairs = {size: self._pair(cell) for size, cell in self.drafting(decoder).items()}
        if not pairs:
            return NO_INTERVAL
        return if_enough(break_even(pairs), min(len(own) for _, own in pairs.values()))

    def _pair(self, cell: Cell) -> Pair:
        """Return vanilla's and a decoder's costs of the prompts that both made steps for."""
        vanilla = self.of(VANILLA)[cell.batch]
        both = [
            prompt
            for prompt in range(self.prompts)
            if vanilla.tokens[prompt] and cell.tokens[prompt]
        ]
        costs = [
            [Cost(one.seconds[prompt], one.tokens[prompt]) for prompt in both]
            for one in (vanilla, cell)
        ]
        return costs[0], costs[1]

    @property
    def is_lossy(self) -> bool:
        """Whether a request got tokens that it would not get alone, whatever the rounding."""
        return any(cell.verdict == LOSSY for cell in self.cells)


def measure(
    target: TransformersTarget,
    decoders: Sequence[Decoder],
    questions: Sequence[Question],
    sizes: Sequence[int],
    speculate_up_to: int | None = None,
) -> Throughput:
    """Measure decoders, vanilla among them, at these batch sizes.

    A size that does not fit the memory ends the measurement. Raises BenchError for a target or a
    decoder whose requests cannot be decoded together, and where answers are too short for a step.
    """
    check_shares(target)
    pools = {decoder.label: drafters(decoder, max(sizes)) for decoder in decoders}
    result = Throughput(len(questions), keeps_bits(target), speculate_up_to=speculate_up_to)
    load = machine.Load()
    total = len(pools) * (len(questions) + sum(map(len, _runs(questions, sizes))))
    with Progress("generations", total) as progress:
        alone = {label: _alone(target, label, pools[label][0], questions) for label in pools}
        referee = Referee(target, questions, alone, alone[VANILLA])
        progress.advance(len(pools) * len(questions))
        for size, run in zip(sizes, _runs(questions, sizes), strict=True):
            loops = {
                label: SharedLoop(
                    target, pool[:size], run, None if label == VANILLA else speculate_up_to
                )
                for label, pool in pools.items()
            }
            try:
                cells = _in_turns(loops, size, len(questions), progress)
            except BenchError as error:
                _check_fits(error, size, result)
                break
            for decoder in decoders:
                cell = cells[decoder.label]
                generations = loops[decoder.label].generations
                cell.requests = len(generations)
                cell.differing = len(referee.differing(decoder.label, generations))
                cell.verdict = referee.verdict(decoder, generations)
                result.cells.append(cell)
    result.others = load.others()
    return result


def _check_fits(error: BenchError, size: int, result: Throughput) -> None:
    """Note a batch size that does not fit the memory. Raise what else went wrong, and that too
    where nothing was measured before.
    """
    if error.__cause__ is None or not is_out_of_memory(error.__cause__):
        raise error
    if not result.cells:
        raise BenchError(f"a batch of {size} does not fit the memory", "lower --batch") from error
    result.too_large = size


def _runs(questions: Sequence[Question], sizes: Sequence[int]) -> list[list[Question]]:
    """Return the questions of each batch size, all of them as often."""
    return [list(questions) * -(-FILLS * size // len(questions)) for size in sizes]


def _alone(
    target: TransformersTarget, label: str, drafter: Drafter, questions: Sequence[Question]
) -> list[list[int]]:
    """Return the tokens of each question by itself, which also warms the machine up."""
    with blamed(label, "a generation"):
        return [
            generate(target, drafter, question.sampler, question.prompt, question.limit).tokens
            for question in questions
        ]


def _in_turns(
    loops: dict[str, SharedLoop], size: int, prompts: int, progress: Progress
) -> dict[str, Cell]:
    """Run all loops to their ends, a few rounds of each at a time, and return their cells.

    Raises BenchError where no round was full.
    """
    cells = {
        label: Cell(label, size, [0.0] * prompts, [0] * prompts, [0] * prompts) for label in loops
    }
    with ExitStack() as stack:
        for loop in loops.values():
            stack.enter_context(loop)
        for label in _turns(loops):
            ended = len(loops[label].generations)
            with blamed(label, f"a batch of {size}"):
                _run(loops[label], cells[label])
            progress.advance(len(loops[label].generations) - ended, f"{label}, batch {size}")
    if not all(sum(cell.tokens) for cell in cells.values()):
        raise BenchError(
            f"no round had {size} answers that are longer than their first token",
            "raise --max-new-tokens, or name another task",
        )
    return cells


def _turns(loops: dict[str, SharedLoop]) -> Iterator[str]:
    """Yield whose turn it is, in a new random order each time, until all have finished."""
    dice = random.Random(0)
    while unfinished := [label for label, loop in loops.items() if not loop.finished]:
        yield from dice.sample(unfinished, len(unfinished))


def _run(loop: SharedLoop, cell: Cell) -> None:
    """Run a turn, and charge the full rounds to their prompts."""
    prompts = len(cell.tokens)
    for _ in range(TURN):
        if loop.finished:
            return
        done = loop.step()
        if len(done.tokens) < cell.batch:
            continue
        cell.nodes += done.nodes
        for number, tokens in done.tokens.items():
            prompt = number % prompts
            cell.seconds[prompt] += done.seconds / cell.batch
            cell.tokens[prompt] += tokens
            cell.steps[prompt] += 1
