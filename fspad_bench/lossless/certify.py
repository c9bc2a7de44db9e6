"""Certification: every check for every decoder, the wrong rules beside them, one report.

Vanilla and the sampler are proved first; for a decoder that is verified by `match` the law is then theirs, and it is
held to identity, non-vacuity and cache; every rule of verification and every decoder that can stand on a scripted
target is held to the exact law and to the G-test; all are held to PIT on the target itself. Last come the wrong
rules: a certification whose checks would let one of them pass certifies nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fspad_bench.core.verification import RULES
from fspad_bench.decoders.build import build, check_options
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless import distribution, exact, identity, proofs, trials
from fspad_bench.lossless.mutations import WRONG_RULES
from fspad_bench.lossless.report import DECODERS, FAIL, WRONG, Check, Part
from fspad_bench.util.progress import Progress

GREEDY_TOKENS = 48


@dataclass(frozen=True)
class Effort:
    """How much is looked at; `distance` is the total variation that the G-test shows with 99%."""

    draws: int
    thorough_grid: bool
    ways: tuple[str, ...]
    salts: tuple[int, ...]
    distance: float
    repeats: int
    tokens: int
    skipped: tuple[str, ...] = ()


QUICK = Effort(
    10**6, False, ("ranked", "drawn, own vocabulary"), (0,), 0.1, 2, 32, ("G-test", "PIT")
)
STANDARD = Effort(10**7, False, ("ranked", "drawn", "drawn, own vocabulary"), (0,), 0.05, 6, 64)
THOROUGH = Effort(10**8, True, tuple(exact.WAYS), exact.SALTS, 0.02, 24, 64)


class Step(NamedTuple):
    """A part of a certification: what it is called, whom it is about, and what to run."""

    name: str
    subject: str
    run: Callable[[], list[Check]]


def certify(
    labels: Sequence[str],
    options: dict[str, dict[str, str]],
    target: TransformersTarget,
    tiny: TransformersTarget,
    effort: Effort,
) -> list[Part]:
    """All checks of these decoders on `target`. Raises BenchError where a decoder cannot be built on it."""
    plan = {
        "foundations": list(_foundations(target, effort)),
        "rules": list(_rules(effort)),
        DECODERS: list(decoder_steps(labels, options, target, tiny, effort)),
        WRONG: list(_wrong(tiny, effort)),
    }
    with Progress("checks", sum(map(len, plan.values()))) as progress:
        return [
            Part(title, [c for step in steps for c in _run(step, progress)])
            for title, steps in plan.items()
        ]


def _run(step: Step, progress: Progress) -> list[Check]:
    progress.advance(0, f"{step.name}: {step.subject}")
    found = _guarded(step)
    progress.advance()
    return found


def _guarded(step: Step) -> list[Check]:
    """A decoder that raises has failed the check; the others go on."""
    try:
        return step.run()
    except Exception as error:
        traceback.print_exc()
        return [Check(step.name, step.subject, FAIL, f"{type(error).__name__}: {error}")]


def _prompts(target: TransformersTarget, repeats: int) -> list[list[int]]:
    texts = [f"{text} {i}" for i in range(repeats) for text in identity.PROMPTS]
    return [list(target.tokenizer(text)["input_ids"]) for text in texts]


def _foundations(target: TransformersTarget, effort: Effort) -> Iterator[Step]:
    yield Step("law of the noise", "sampler", partial(proofs.check_sampler, effort.draws))
    prompts = _prompts(target, 2)
    yield Step(
        "greedy is generate",
        "vanilla",
        lambda: [proofs.check_greedy(target, prompts, GREEDY_TOKENS)],
    )


def _rules(effort: Effort) -> Iterator[Step]:
    yield Step("exact law", "rules", lambda: exact.check_rules(effort.ways, effort.salts))
    for rule in RULES:
        way = "ranked" if rule == "match" else "drawn"
        make = exact.scripted(rule, way)
        yield Step(
            "G-test",
            rule,
            partial(_listed, distribution.check_law, f"{rule}, {way}", make, effort.distance),
        )


def decoder_steps(
    labels: Sequence[str],
    options: dict[str, dict[str, str]],
    target: TransformersTarget,
    tiny: TransformersTarget,
    effort: Effort,
) -> Iterator[Step]:
    """What is asked of each decoder. Raises BenchError, at once, where one cannot be built on the target."""
    check_options(labels, options)
    for label in labels:
        with suppress(
            ImportError, AttributeError, TypeError, ValueError, RuntimeError
        ):  # its checks will say so
            build(label, target, options)
    grid = identity.cells(target, thorough=effort.thorough_grid)
    vanilla = identity.reference(target, grid)
    prompts = _prompts(target, effort.repeats)
    for label in labels:
        make = partial(build, label, target, options)
        scripted = lambda stand, label=label: build(label, stand, options).decoder  # noqa: E731
        yield Step("identity", label, partial(identity.check, make, target, grid, vanilla))
        yield Step("exact law", label, partial(_listed, exact.check_decoder, label, scripted, tiny))
        yield Step(
            "G-test",
            label,
            partial(_listed, distribution.check_law, label, scripted, effort.distance),
        )
        yield Step(
            "PIT",
            label,
            lambda make=make: [distribution.check_pit(make(), target, prompts, effort.tokens)],
        )


def _wrong(tiny: TransformersTarget, effort: Effort) -> Iterator[Step]:
    ground = trials.Ground(tiny)
    for wrong in WRONG_RULES:
        run = partial(_listed, trials.judge, wrong, ground, without=effort.skipped)
        yield Step(wrong.name, "", run)


def _listed(check: Callable[..., Check], *arguments: object, **options: object) -> list[Check]:
    return [check(*arguments, **options)]
