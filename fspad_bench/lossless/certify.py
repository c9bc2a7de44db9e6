"""Certification: every check for every decoder, the mutations beside them, one report.

- The engine that will run comes first: the target at hand in its precision and on its device, and
  small ones of the shapes that the compiled step serves, compared with slow references.
- The sampler and vanilla are proved next. A decoder verified by `match` then has their
  distribution, and is held to identity, non-vacuity and cache.
- Every rule of verification, and every decoder that can be constructed on a scripted target, is
  held to the exact distribution and to the G-test. All decoders are held to PIT on the target
  itself.
- The mutations come last: a certification whose checks let one of them pass certifies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fspad_bench.core.protocols import Limit, Target
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import RULES
from fspad_bench.decoders.build import Decoder, build_decoder, check_options
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless import (
    depths,
    distribution,
    engine,
    engines,
    exact,
    identity,
    noise_key,
    paths,
    proofs,
    trials,
)
from fspad_bench.lossless.checks import DECODERS, ELSEWHERE, FAIL, WRONG, Check, Part
from fspad_bench.lossless.engine import Sizes
from fspad_bench.lossless.engine_faults import ENGINE_FAULTS
from fspad_bench.lossless.mutations import MUTATIONS as LOOP_FAULTS
from fspad_bench.lossless.reference import Reference
from fspad_bench.lossless.trial_target import TrialTarget
from fspad_bench.lossless.witness import Observations, Witness
from fspad_bench.util.errors import BenchError
from fspad_bench.util.progress import Progress
from fspad_bench.util.strangers import contained, described, place_of
from fspad_bench.util.terminal import note

GREEDY_TOKENS = 48
MUTATIONS = [*ENGINE_FAULTS, *LOOP_FAULTS]
Options = dict[str, dict[str, str]]  # name of a decoder -> its options


@dataclass(frozen=True)
class Effort:
    """The size of a certification.

    - `draws` of the noise; `thorough_grid` for identity; `drafts` and `salts` of the rules' exact
      distributions.
    - `distance`: the total variation that the G-test reveals with 99% probability.
    - `repeats` of the prompts and `tokens` of each for PIT.
    - `sizes` of trees and prefixes for the engine.
    - `skipped`: the checks that mutations are not held to; `blind_too`: whether the checks that
      cannot see a mistake of the engine are run under it.
    """

    draws: int
    thorough_grid: bool
    drafts: tuple[str, ...]
    salts: tuple[int, ...]
    distance: float
    repeats: int
    tokens: int
    sizes: Sizes
    skipped: tuple[str, ...] = ()
    blind_too: bool = True


QUICK = Effort(
    draws=10**6,
    thorough_grid=False,
    drafts=("ranked", "drawn, own vocabulary"),
    salts=(0,),
    distance=0.1,
    repeats=2,
    tokens=32,
    sizes=engine.FEW,
    skipped=("G-test", "PIT", "paths"),  # but where nothing else refuses a mistake
    blind_too=False,
)
STANDARD = Effort(
    draws=10**7,
    thorough_grid=False,
    drafts=("ranked", "drawn", "drawn, own vocabulary"),
    salts=(0,),
    distance=0.05,
    repeats=6,
    tokens=64,
    sizes=engine.MANY,
)
THOROUGH = Effort(
    draws=10**8,
    thorough_grid=True,
    drafts=tuple(exact.DRAFTS),
    salts=exact.SALTS,
    distance=0.02,
    repeats=24,
    tokens=64,
    sizes=engine.ALL,
)


class PlannedCheck(NamedTuple):
    """A unit of a certification: its name, its subject, and the function that runs it."""

    name: str
    subject: str
    run: Callable[[], list[Check]]


def certify(
    labels: Sequence[str],
    options: Options,
    target: TransformersTarget,
    tiny: TransformersTarget,
    effort: Effort,
    like: Sampler = identity.PLAIN,
) -> list[Part]:
    """Run all checks of these decoders on `target`; identity and PIT with the penalties and the
    min-p of `like`.

    Raises BenchError where one cannot be built on it.
    """
    decoders = list(
        decoder_checks(labels, options, target, tiny, effort, like)  # first: it may raise
    )
    trial_target = TrialTarget(tiny)
    plan = {
        "engine": list(_engines(target, trial_target, effort)),
        "foundations": list(_foundations(target, effort)),
        "rules": list(_rules(effort)),
        DECODERS: decoders,
        WRONG: list(_mutations(trial_target, effort)),
    }
    with Progress("checks", sum(map(len, plan.values()))) as progress:
        return [
            Part(title, [check for unit in units for check in _run(unit, progress)])
            for title, units in plan.items()
        ]


def _run(unit: PlannedCheck, progress: Progress) -> list[Check]:
    progress.advance(0, f"{unit.name}: {unit.subject}")
    checks = _guarded(unit)
    progress.advance()
    return checks


def _guarded(unit: PlannedCheck) -> list[Check]:
    """Turn an exception into a failed check, so that the others go on."""
    try:
        with contained():
            return unit.run()
    except BenchError as error:  # says all
        return [Check(unit.name, unit.subject, FAIL, error.message)]
    except Exception as error:
        where = place_of(error)
        place = f"{where.filename}:{where.lineno}"
        note(f"{unit.name}: {unit.subject}: {described(error)} ({place})")
        return [Check(unit.name, unit.subject, FAIL, described(error))]


def _prompts(target: TransformersTarget, repeats: int) -> list[list[int]]:
    texts = [f"{text} {i}" for i in range(repeats) for text in identity.PROMPTS]
    return identity.encode(target, texts)


def _engines(
    target: TransformersTarget, trial_target: TrialTarget, effort: Effort
) -> Iterator[PlannedCheck]:
    """Plan the checks of the small engines, and of the target at hand where it is not `tiny`.

    A large target is looked at whole behind one long prefix, and in every size by its first layers.
    """
    references = {engines.described(r.target): r for r in trial_target.engines.references}
    first = engines.shallow(target)
    if first not in trial_target.engines.targets:
        references[engines.described(first)] = Reference(first)
    for subject, reference in references.items():
        small = reference.target
        # first, while the cache is small: the reference kernels read all of it
        yield PlannedCheck("paths", subject, partial(paths.check_paths, small, subject))
        run = partial(engine.check_engine, reference, effort.sizes, subject)
        yield PlannedCheck("engine", subject, run)
        yield PlannedCheck("ties", subject, partial(_check_ties, small, subject))
    if first is not target:
        subject = engines.described(target)
        run = partial(engine.check_forwards, Reference(target), engine.ONE, subject)
        yield PlannedCheck("engine", subject, run)


def _check_ties(target: TransformersTarget, subject: str) -> list[Check]:
    verify = target.verifier(RULES["match"])
    return [depths.check_ties(subject, verify, greedy=False, target=target)]


def _foundations(target: TransformersTarget, effort: Effort) -> Iterator[PlannedCheck]:
    prompts = _prompts(target, 2)
    yield PlannedCheck("noise distribution", "sampler", partial(proofs.check_sampler, effort.draws))
    yield PlannedCheck("noise key", "sampler", lambda: [noise_key.check_key()])
    yield PlannedCheck(
        "greedy is generate",
        "vanilla",
        lambda: [proofs.check_greedy(target, prompts, GREEDY_TOKENS)],
    )
    yield PlannedCheck(
        "greedy is generate",
        "vanilla, penalties",
        lambda: [proofs.check_greedy(target, prompts[::2], GREEDY_TOKENS, proofs.PENALTIES)],
    )


def _rules(effort: Effort) -> Iterator[PlannedCheck]:
    yield PlannedCheck(exact.NAME, "rules", lambda: exact.check_rules(effort.drafts, effort.salts))
    yield PlannedCheck(depths.NAME, "rules", depths.check_rules)
    for rule in RULES:
        draft = "ranked" if rule == "match" else "drawn"
        make = exact.scripted(rule, draft)
        label = f"{rule}, {draft}"
        yield PlannedCheck(
            "G-test",
            rule,
            partial(_listed, distribution.check_g_test, label, make, effort.distance),
        )


def decoder_checks(
    labels: Sequence[str],
    options: Options,
    target: TransformersTarget,
    tiny: TransformersTarget,
    effort: Effort,
    like: Sampler = identity.PLAIN,
) -> Iterator[PlannedCheck]:
    """Plan the checks of each decoder.

    Raises BenchError, at once, where one cannot be built on the target.
    """
    check_options(labels, options)
    for label in labels:
        # its checks report any other exception
        with suppress(ImportError, AttributeError, TypeError, ValueError, RuntimeError):
            decoder = build_decoder(label, target, options)
            decoder.check_sampler(like)
            _ = decoder.options  # as a run would name it
    grid = identity.cells(target, thorough=effort.thorough_grid, like=like)
    vanilla = identity.reference(target, grid)
    prompts = _prompts(target, effort.repeats)
    for label in labels:
        make = partial(build_decoder, label, target, options)
        scripted = partial(_decoder, label, options)
        yield PlannedCheck("identity", label, partial(identity.check, make, target, grid, vanilla))
        yield PlannedCheck(
            exact.NAME, label, partial(_listed, exact.check_decoder, label, scripted, tiny)
        )
        yield PlannedCheck(
            "G-test",
            label,
            partial(_listed, distribution.check_g_test, label, scripted, effort.distance),
        )
        yield PlannedCheck(
            depths.NAME, label, partial(_check_rule, label, make, target, prompts[0])
        )
        yield PlannedCheck(
            "PIT",
            label,
            partial(_check_pit, make, target, prompts, effort.tokens, like),
        )


def _check_rule(
    label: str, make: Callable[[], Decoder], target: TransformersTarget, prompt: list[int]
) -> list[Check]:
    """Check a decoder's own rule at every depth, and its greedy walks where logits tie."""
    decoder = make()
    if decoder.drafter is None:
        return [Check(depths.NAME, label, ELSEWHERE, "an engine of its own: PIT")]
    rule = decoder.drafter.rule
    verify = target.verifier(rule)
    ties = depths.check_ties(label, verify, greedy=decoder.verification != "match", target=target)
    if decoder.verification != "own":
        return [ties]  # its rule is among those checked above
    observations = Observations()
    witness = Decoder(label, target, drafter=Witness(decoder.drafter, observations))
    witness.generate(target, distribution.SAMPLER, prompt, Limit(depths.OWN_TOKENS))
    return [depths.check_rule(label, rule, drawn=bool(observations.draws)), ties]


def _check_pit(
    make: Callable[[], Decoder],
    target: TransformersTarget,
    prompts: list[list[int]],
    tokens: int,
    like: Sampler,
) -> list[Check]:
    sampler = identity.penalised(distribution.SAMPLER, like)
    return [distribution.check_pit(make(), target, prompts, tokens, sampler)]


def _decoder(label: str, options: Options, target: Target) -> Any:
    """Build a decoder, and return its engine or its drafter: prepared, and asked in every step.

    Raises BenchError where it cannot be built on this target, or not prepared.
    """
    decoder = build_decoder(label, target, options)
    if decoder.drafter is None:
        return decoder.engine
    decoder.whole()
    decoder.prepare()
    return decoder.drafter


def _mutations(target: TrialTarget, effort: Effort) -> Iterator[PlannedCheck]:
    """Plan the trials of all mutations, those of the compiled step where an engine runs it."""
    known = [m for m in MUTATIONS if not m.compiled or target.engines.are_compiled]
    for mutation in known:
        blind_too = effort.blind_too or mutation in LOOP_FAULTS
        run = partial(
            _listed, trials.judge, mutation, target, without=effort.skipped, blind_too=blind_too
        )
        yield PlannedCheck(mutation.name, "", run)


def _listed(check: Callable[..., Check], *arguments: Any, **options: Any) -> list[Check]:
    return [check(*arguments, **options)]
