"""Identity: the same prompt, law, seed and limit give the same tokens as vanilla, and the cache holds what it should.

The grid is two orthogonal arrays: 50 generations in which every two levels of any two of prompt, temperature, cuts,
length, seed and stop meet twice; `--thorough` takes many more combinations. Beside the outputs each generation
leaves a cache, which must equal a fresh prefill of the committed tokens, and what its rounds were like. One prompt
holds the target's own continuation, so that drafters which copy are right at length and meet a stop on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.verdict import FLOAT32_BOUND, FLOAT32_TIES
from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Method
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.report import ELSEWHERE, PASS, VACUOUS, Check
from fspad_bench.lossless.uniform import ALPHA, shift_seen
from fspad_bench.lossless.witness import Sights, Witness

TEMPERATURES = [0.0, 0.0, 0.5, 1.0, 1.4]
CUTS = [(0, 1.0), (0, 0.9), (8, 1.0), (20, 0.7), (0, 0.5)]
LENGTHS = [1, 2, 7, 24, 65]
PROMPTS = [
    "x",
    "u:Say it again.<|end|>a:",
    "the cat, the hat, the cat, the",
    "ab" * 30,
    "To be, or not to be?\n" * 3,
]
SEEDS = [0, 1, 2, 3, 4]
SELF_TALK = 72
OWN_STOPS = 6
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
CACHE_BOUND = {torch.float64: 1e-9, torch.float32: 1e-3}


class Cell(NamedTuple):
    """One generation of the grid."""

    name: str
    prompt: list[int]
    sampler: Sampler
    limit: Limit


class Outputs(NamedTuple):
    """What a decoder made of every cell."""

    tokens: dict[str, list[int]]
    cache_error: float


def cells(target: TransformersTarget, *, thorough: bool = False) -> list[Cell]:
    """The grid on a target: 50 cells that hold all pairs of levels, or 625 that hold all of four, and all pairs."""
    places = THOROUGH if thorough else PAIRWISE
    prompts = [list(target.tokenizer(text)["input_ids"]) for text in PROMPTS]
    prompts[3] += generate(target, Vanilla(target), Sampler(), prompts[3], Limit(SELF_TALK)).tokens
    return [_cell(target, prompts, place) for place in places]


def _cell(target: TransformersTarget, prompts: list[list[int]], place: Sequence[int]) -> Cell:
    temperature, cut, length, prompt, seed, stop = place
    name = "".join(map(str, place))
    end = target.stop_ids
    every = target.config.vocab_size
    stops = [
        frozenset(),
        end,
        frozenset(range(2, every, 31)),
        frozenset(range(0, every, 9)),
        frozenset(),
    ]
    sampler = Sampler(TEMPERATURES[temperature], *CUTS[cut], SEEDS[seed], f"cell {name}")
    return Cell(name, prompts[prompt], sampler, Limit(LENGTHS[length], stops[stop]))


def reference(target: TransformersTarget, grid: Iterable[Cell]) -> dict[str, list[int]]:
    """Vanilla's tokens of every cell."""
    return {
        cell.name: generate(target, Vanilla(target), cell.sampler, cell.prompt, cell.limit).tokens
        for cell in grid
    }


def with_stops(grid: Sequence[Cell], sights: Sights) -> list[Cell]:
    """A few cells again, with a stop that this decoder is known to have accepted as a draft."""
    able = [cell for cell in grid if cell.name in sights.new and cell.limit.max_new_tokens > 2]
    chosen = able[:: max(1, len(able) // OWN_STOPS)][:OWN_STOPS]  # spread over the laws
    return [
        Cell(
            f"{c.name} stop",
            c.prompt,
            c.sampler,
            Limit(c.limit.max_new_tokens, frozenset([sights.new[c.name]])),
        )
        for c in chosen
    ]


def outputs(
    method: Method, target: TransformersTarget, grid: Iterable[Cell], sights: Sights
) -> Outputs:
    """One decoder object for all cells, as a run has it; `sights` gather what its rounds were like."""
    tokens = {}
    worst = 0.0
    drafts = hasattr(method.decoder, "propose")
    decoder = Method(method.label, Witness(method.decoder, sights), {}) if drafts else method
    for cell in grid:
        sights.now = cell.name
        sights.stops = cell.limit.stop_ids
        tokens[cell.name] = decoder.generate(target, cell.sampler, cell.prompt, cell.limit).tokens
        if drafts:
            worst = max(worst, cache_error(target, [*cell.prompt, *tokens[cell.name]]))
    return Outputs(tokens, worst)


@torch.inference_mode()
def cache_error(target: TransformersTarget, tokens: Sequence[int]) -> float:
    """The largest difference between the rows that the cache holds of `tokens` and those of a fresh prefill."""
    length = min(target.length, len(tokens))  # rows accepted behind a stop are nobody's
    if length < len(tokens) - 1:
        return float("inf")
    held = [rows.clone() for rows in _rows(target, length)]
    target.prefill(list(tokens[:length]), 1)
    pairs = zip(held, _rows(target, length), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def _rows(target: TransformersTarget, length: int) -> list[Tensor]:
    return [
        rows[:, :, :length] for layer in target.cache.layers for rows in (layer.keys, layer.values)
    ]


def check(make: Callable[[], Method], target: TransformersTarget, grid: Sequence[Cell],
          vanilla: dict[str, list[int]]) -> list[Check]:  # fmt: skip
    """Identity, non-vacuity and cache of one decoder."""
    method = make()
    sights = Sights()
    if (
        method.verification == "foreign"
    ):  # it may not sample at all, and its sampled text is its own
        grid = [cell for cell in grid if _greedy(cell)]
    label = method.label
    first = outputs(method, target, grid, sights)
    again = with_stops(grid, sights)
    second = outputs(method, target, again, sights)
    made = Outputs(first.tokens | second.tokens, max(first.cache_error, second.cache_error))
    grid = [*grid, *again]
    vanilla = vanilla | reference(target, again)
    promised = [cell for cell in grid if method.verification == "match" or _greedy(cell)]
    other = [cell for cell in promised if made.tokens[cell.name] != vanilla[cell.name]]
    ties = _ties(target, other, vanilla, made.tokens)
    scope = "" if len(promised) == len(grid) else ", greedy ones: the rest by law"
    figure = f"{len(promised) - len(other)} of {len(promised)} equal{scope}" + (
        f", {ties} ties" if ties else ""
    )
    found = [Check.of("identity", label, len(other) == ties, figure, "all, but for float32 ties")]
    if method.verification == "foreign":
        return [
            *found,
            Check("non-vacuity", label, ELSEWHERE, "an engine of its own, seen from outside"),
        ]
    bound = CACHE_BOUND[target.dtype]
    error = Check.of("cache", label, made.cache_error <= bound, f"{made.cache_error:.1e} from a fresh prefill",
                     f"{bound:.0e}")  # fmt: skip
    device = _on_device(method, target, grid, vanilla) if method.loop else []
    return [*found, _vacuity(label, method, sights), error, *_draws(label, sights), *device]


def _on_device(
    method: Method, target: TransformersTarget, grid: Sequence[Cell], vanilla: dict
) -> list[Check]:
    """The same of the loop that runs whole rounds on the device: its tokens, its cache, and that it accepted drafts."""
    made = {}
    worst = 0.0
    most = 0
    for cell in grid:
        found = method.loop.generate(cell.sampler, cell.prompt, cell.limit)
        made[cell.name] = found.tokens
        most = max(most, *found.committed, 0)
        worst = max(worst, cache_error(target, [*cell.prompt, *found.tokens]))
    other = [cell for cell in grid if made[cell.name] != vanilla[cell.name]]
    ties = _ties(target, other, vanilla, made)
    bound = CACHE_BOUND[target.dtype]
    figure = f"{len(grid) - len(other)} of {len(grid)} equal, up to {most} tokens a round"
    checks = [
        Check.of(
            "identity, device",
            method.label,
            len(other) == ties,
            figure,
            "all, but for float32 ties",
        )
    ]
    if most < 2 and not isinstance(method.decoder, Vanilla):
        checks.append(
            Check(
                "non-vacuity, device", method.label, VACUOUS, "no draft was ever accepted", "some"
            )
        )
    error = f"{worst:.1e} from a fresh prefill"
    return [*checks, Check.of("cache, device", method.label, worst <= bound, error, f"{bound:.0e}")]


def _draws(label: str, sights: Sights) -> list[Check]:
    """Where children are drawn: do they come from the law that the tree says they come from? Every rule leans on it."""
    if not sights.draws:
        return []
    p = float(stats.kstest(sights.draws, "uniform").pvalue)
    count = len(sights.draws)
    figure = f"p {p:.2g} of {count}; shifts of {shift_seen(count):.2f} seen"
    return [Check.of("draws", label, p >= ALPHA, figure, f"p {ALPHA:.0e}")]


def _vacuity(label: str, method: Method, sights: Sights) -> Check:
    if isinstance(method.decoder, Vanilla):
        return Check("non-vacuity", label, ELSEWHERE, "the baseline drafts nothing")
    seen = ", ".join(f"{n}: {count}" for n, count in sorted(sights.accepted.items()))
    missing = sights.missing()
    return Check("non-vacuity", label, VACUOUS if missing else PASS, "; ".join(missing) or f"accepted {seen}",
                 "0, the deepest, one between; moved rows, stops")  # fmt: skip


def _ties(target: TransformersTarget, other: list[Cell], vanilla: dict, made: dict) -> int:
    """Of the cells that differ, in float32, those that rounding explains (DESIGN: regrets of at most 4e-4)."""
    if target.dtype != torch.float32:
        return 0
    auditor = Auditor(target)
    audits = [
        auditor.audit(c.sampler, c.prompt, vanilla[c.name], made[c.name], c.limit) for c in other
    ]
    ties = sum(max(found.decoder_regrets) <= FLOAT32_BOUND for found in audits)
    return min(ties, max(1, sum(map(len, made.values())) // FLOAT32_TIES))


def _greedy(cell: Cell) -> bool:
    return not cell.sampler.temperature
