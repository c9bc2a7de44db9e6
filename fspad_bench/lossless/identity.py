"""Identity: equal prompt, sampler, seed and limit give vanilla's tokens and a correct cache.

- The grid is two orthogonal arrays: 50 generations in which every two levels of any two of prompt,
  temperature, cuts, length, seed and stop meet twice; `--thorough` takes many more combinations.
- After each generation the cache must hold vanilla's bits where they are promised, else a fresh
  prefill of the committed tokens. The steps must have covered the cases that matter (`witness`).
- One prompt ends in the target's own continuation, so that drafters which copy are right for many
  tokens and meet a stop on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from scipy import stats

from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.uniform import ALPHA, detectable_shift
from fspad_bench.benchmark.verdict import FLOAT32_BOUND, FLOAT32_TIES
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.device_loop import DeviceLoop
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.together import keeps_bits
from fspad_bench.lossless.checks import ELSEWHERE, PASS, VACUOUS, Check, worst_of
from fspad_bench.lossless.rounding import (
    ROUNDS_OTHERWISE,
    cache_bound,
    cache_error,
    is_precise,
    rounds_otherwise,
)
from fspad_bench.lossless.witness import Observations, Witness

TEMPERATURES = [0.0, 0.0, 0.5, 1.0, 1.4]
CUTS = [(0, 1.0), (0, 0.9), (8, 1.0), (20, 0.7), (0, 0.5)]  # top-k, top-p
LENGTHS = [1, 2, 7, 24, 65]
PROMPTS = [
    "x",
    "u:Say it again.<|end|>a:",
    "the cat, the hat, the cat, the",
    "ab" * 30,
    "To be, or not to be?\n" * 3,
]
COPIED_PROMPT = 3  # the prompt that the target's own continuation is appended to
COPIED_TOKENS = 72
SEEDS = [0, 1, 2, 3, 4]
OWN_STOPS = 6
PLAIN = Sampler()
PAIRWISE = [
    (*((a + k * b) % 5 for k in range(5)), (b + c) % 5)
    for c in (0, 2)
    for a in range(5)
    for b in range(5)
]
FOURS = itertools.product(range(5), repeat=4)
THOROUGH = [
    (a, b, c, d, (a + b + c + d) % 5, (a + 2 * b + 3 * c + 4 * d) % 5) for a, b, c, d in FOURS
]
TIES_BOUND = "all, but for float32 ties"

Tokens = dict[str, list[int]]  # name of a cell -> its output


class Cell(NamedTuple):
    """One generation of the grid."""

    name: str
    prompt: list[int]
    sampler: Sampler
    limit: Limit

    @property
    def greedy(self) -> bool:
        return not self.sampler.temperature


class Outputs(NamedTuple):
    """A decoder's output for every cell, and the largest error of the cache after any of them."""

    tokens: Tokens
    cache_error: float


class Comparison(NamedTuple):
    """Outputs against vanilla's: of `total`, the equal ones and those that rounding explains."""

    total: int
    equal: int
    ties: int

    @property
    def holds(self) -> bool:
        return self.total - self.equal == self.ties


def encode(target: TransformersTarget, texts: Iterable[str]) -> list[list[int]]:
    """Return the token ids of each text."""
    assert target.tokenizer is not None, "certification needs a target with a tokenizer"
    return [list(target.tokenizer(text)["input_ids"]) for text in texts]


def cells(
    target: TransformersTarget, *, thorough: bool = False, like: Sampler = PLAIN
) -> list[Cell]:
    """Return the grid on a target: 50 cells, or 625 with every combination of four factors.

    All cells have the penalties and the min-p of `like`.
    """
    levels = THOROUGH if thorough else PAIRWISE
    prompts = encode(target, PROMPTS)
    copied = prompts[COPIED_PROMPT]
    copied += generate(target, Vanilla(target), Sampler(), copied, Limit(COPIED_TOKENS)).tokens
    grid = [_cell(target, prompts, row) for row in levels]
    return [cell._replace(sampler=penalised(cell.sampler, like)) for cell in grid]


def penalised(sampler: Sampler, like: Sampler) -> Sampler:
    """Return the sampler with the penalties and the min-p of another."""
    return replace(sampler, min_p=like.min_p, processors=like.processors)


def _cell(target: TransformersTarget, prompts: list[list[int]], levels: Sequence[int]) -> Cell:
    temperature, cut, length, prompt, seed, stop = levels
    vocabulary = target.config.vocab_size
    stops: list[frozenset[int]] = [
        frozenset(),
        target.stop_ids,
        frozenset(range(2, vocabulary, 31)),
        frozenset(range(0, vocabulary, 9)),
        frozenset(),
    ]
    name = "".join(map(str, levels))
    sampler = Sampler(TEMPERATURES[temperature], *CUTS[cut], SEEDS[seed], f"cell {name}")
    return Cell(name, prompts[prompt], sampler, Limit(LENGTHS[length], stops[stop]))


def reference(target: TransformersTarget, grid: Iterable[Cell]) -> Tokens:
    """Return vanilla's tokens for every cell."""
    return {
        cell.name: generate(target, Vanilla(target), cell.sampler, cell.prompt, cell.limit).tokens
        for cell in grid
    }


def with_stops(grid: Sequence[Cell], observations: Observations) -> list[Cell]:
    """Return up to OWN_STOPS cells again, each with a stop that was accepted as a draft there."""
    stoppable = [
        cell for cell in grid if cell.name in observations.new and cell.limit.max_new_tokens > 2
    ]
    spread = stoppable[:: max(1, len(stoppable) // OWN_STOPS)]  # over the samplers
    stopped = []
    for cell in spread[:OWN_STOPS]:
        stops = frozenset([observations.new[cell.name]])
        limit = Limit(cell.limit.max_new_tokens, stops)
        stopped.append(cell._replace(name=f"{cell.name} stop", limit=limit))
    return stopped


def outputs(
    decoder: Decoder,
    target: TransformersTarget,
    grid: Iterable[Cell],
    observations: Observations,
) -> Outputs:
    """Generate every cell with one decoder object, as a run does, on the host; record its steps."""
    tokens = {}
    worst = 0.0
    for cell, output in generated(decoder, target, grid, observations):
        tokens[cell.name] = output
        if decoder.drafter is not None:
            worst = worst_of([worst, cache_error(target, cell.prompt, output)])
    return Outputs(tokens, worst)


def generated(
    decoder: Decoder,
    target: TransformersTarget,
    grid: Iterable[Cell],
    observations: Observations,
) -> Iterator[tuple[Cell, list[int]]]:
    """Yield the tokens of each cell, from one decoder object on the host; record its steps."""
    if decoder.drafter is not None:
        witness = Witness(decoder.drafter, observations)
        decoder = Decoder(decoder.label, target, drafter=witness)
    for cell in grid:
        observations.current = cell.name
        observations.stops = cell.limit.stop_ids
        yield cell, decoder.generate(target, cell.sampler, cell.prompt, cell.limit).tokens


def check(
    make: Callable[[], Decoder],
    target: TransformersTarget,
    grid: Sequence[Cell],
    vanilla: Tokens,
) -> list[Check]:
    """Check identity, non-vacuity, cache and draws of one decoder, and its device loop if any."""
    decoder = make()
    if decoder.verification == "foreign":
        return _check_foreign(decoder, target, grid, vanilla)
    observations = Observations()
    first = outputs(decoder, target, grid, observations)
    stopped = with_stops(grid, observations)
    second = outputs(decoder, target, stopped, observations)
    grid = [*grid, *stopped]
    vanilla = vanilla | reference(target, stopped)
    tokens = first.tokens | second.tokens
    error = worst_of([first.cache_error, second.cache_error])
    checks = [
        _check_identity(decoder, target, grid, vanilla, tokens),
        _check_vacuity(decoder, observations),
        _check_cache("cache", decoder.label, target, error),
        *_check_draws(decoder.label, observations),
    ]
    if decoder.loop:
        checks += _check_on_device(decoder, decoder.loop, target, grid, vanilla)
    return checks


def _check_foreign(
    decoder: Decoder, target: TransformersTarget, grid: Sequence[Cell], vanilla: Tokens
) -> list[Check]:
    """Check the greedy cells of a foreign engine, which may not sample or has noise of its own."""
    grid = [cell for cell in grid if cell.greedy]
    tokens = outputs(decoder, target, grid, Observations()).tokens
    unseen = Check(
        "non-vacuity", decoder.label, ELSEWHERE, "an engine of its own, seen from outside"
    )
    return [_check_identity(decoder, target, grid, vanilla, tokens), unseen]


def _check_identity(
    decoder: Decoder,
    target: TransformersTarget,
    grid: Sequence[Cell],
    vanilla: Tokens,
    tokens: Tokens,
) -> Check:
    """Compare all cells under `match`, else the greedy ones: other rules sample other tokens."""
    identical = [cell for cell in grid if decoder.verification == "match" or cell.greedy]
    is_part = len(identical) < len(grid)
    note = ", greedy ones: the rest by distribution" if is_part else ""
    return _compared("identity", decoder, target, identical, vanilla, tokens, note)


def _compared(
    name: str,
    decoder: Decoder,
    target: TransformersTarget,
    grid: Sequence[Cell],
    vanilla: Tokens,
    tokens: Tokens,
    note: str,
) -> Check:
    """Compare outputs with vanilla's, where rounding leaves something to compare.

    An engine of its own computes in its own way, which keeps no bits of ours.
    """
    bits = keeps_bits(target) and decoder.verification != "foreign"
    if not (bits or is_precise(target)):
        return Check(name, decoder.label, ELSEWHERE, ROUNDS_OTHERWISE)
    result = compare(target, grid, vanilla, tokens, bits=bits)
    figure = f"{result.equal} of {result.total} equal{note}"
    if result.ties:
        figure += f", {result.ties} ties"
    bound = "all" if bits else TIES_BOUND
    return Check.of(name, decoder.label, result.holds, figure, bound)


def _check_vacuity(decoder: Decoder, observations: Observations) -> Check:
    if isinstance(decoder.drafter, Vanilla):
        return Check("non-vacuity", decoder.label, ELSEWHERE, "the baseline drafts nothing")
    counts = sorted(observations.accepted.items())
    accepted = ", ".join(f"{length}: {count}" for length, count in counts)
    missing = observations.missing()
    verdict = VACUOUS if missing else PASS
    figure = "; ".join(missing) or f"accepted {accepted}"
    bound = "0, the deepest, one between; moved entries, stops"
    return Check("non-vacuity", decoder.label, verdict, figure, bound)


def _check_cache(name: str, label: str, target: TransformersTarget, error: float) -> Check:
    if rounds_otherwise(target):
        return Check(name, label, ELSEWHERE, ROUNDS_OTHERWISE)
    bound = cache_bound(target)
    right = "vanilla's" if keeps_bits(target) else "a fresh prefill"
    return Check.of(name, label, error <= bound, f"{error:.1e} from {right}", f"{bound:.0e}")


def _check_draws(label: str, observations: Observations) -> list[Check]:
    """Check that drawn children come from the distribution that `Tree.q` claims."""
    if not observations.draws:
        return []
    p_value = float(stats.kstest(observations.draws, "uniform").pvalue)
    count = len(observations.draws)
    figure = f"p {p_value:.2g} of {count}; shifts of {detectable_shift(count):.2f} detectable"
    return [Check.of("draws", label, p_value >= ALPHA, figure, f"p {ALPHA:.0e}")]


def _check_on_device(
    decoder: Decoder,
    loop: DeviceLoop,
    target: TransformersTarget,
    grid: Sequence[Cell],
    vanilla: Tokens,
) -> list[Check]:
    """Check the device's loop: its tokens, its cache, and that it accepted drafts."""
    tokens = {}
    worst = 0.0
    most = 0
    grid = [cell for cell in grid if not cell.sampler.on_host]
    if not grid:
        reason = "logits processors run on the host"
        return [Check("identity, device", decoder.label, ELSEWHERE, reason)]
    for cell in grid:
        generation = loop.generate(cell.sampler, cell.prompt, cell.limit)
        tokens[cell.name] = generation.tokens
        most = max(most, *generation.committed, 0)
        worst = worst_of([worst, cache_error(target, cell.prompt, generation.tokens)])
    note = f", up to {most} tokens a step"
    checks = [_compared("identity, device", decoder, target, grid, vanilla, tokens, note)]
    if most < 2 and not isinstance(decoder.drafter, Vanilla):
        reason = "no draft was ever accepted"
        checks.append(Check("non-vacuity, device", decoder.label, VACUOUS, reason, "some"))
    return [*checks, _check_cache("cache, device", decoder.label, target, worst)]


def compare(
    target: TransformersTarget,
    grid: Sequence[Cell],
    vanilla: Tokens,
    tokens: Tokens,
    *,
    bits: bool,
) -> Comparison:
    """Compare outputs with vanilla's; `bits`: they are promised, and rounding explains nothing."""
    different = [cell for cell in grid if tokens[cell.name] != vanilla[cell.name]]
    ties = 0 if bits else _ties(target, different, vanilla, tokens)
    return Comparison(len(grid), len(grid) - len(different), ties)


def _ties(
    target: TransformersTarget, different: list[Cell], vanilla: Tokens, tokens: Tokens
) -> int:
    """Return how many of the differing cells rounding explains.

    It explains those in float32 whose regret is at most FLOAT32_BOUND.
    """
    if target.dtype != torch.float32:
        return 0
    auditor = Auditor(target)
    audits = [
        auditor.audit(c.sampler, c.prompt, vanilla[c.name], tokens[c.name], c.limit)
        for c in different
    ]
    ties = sum(max(audit.decoder_regrets) <= FLOAT32_BOUND for audit in audits)
    return min(ties, max(1, sum(map(len, tokens.values())) // FLOAT32_TIES))
