"""Hold decoders to the expectations of baseline files, and write what a run has measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fspad_bench.lossless.baseline_file import edited
from fspad_bench.lossless.baseline_runs import Outcome, outcomes
from fspad_bench.lossless.bounds import Bound, bound_of, most_diverging
from fspad_bench.lossless.checks import BASELINES, NOT_RUN, Check, Part
from fspad_bench.lossless.promises import (
    IDENTITY,
    Expectation,
    read_baseline,
    selected,
    shipped_baselines,
)
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import write_atomically
from fspad_bench.util.text import text_file

STEPS = "steps of each output"


def check_baselines(
    paths: Sequence[Path], decoders: Sequence[str] | None = None, target: str | None = None
) -> Part:
    """Hold decoders to the expectations of baseline files (of none given, to those of this suite).

    `decoders` and `target` select expectations. An expectation whose run is refused fails as a
    check named NOT_RUN. Raises BenchError for a file that is not a baseline, and where nothing is
    left to check.
    """
    entries = [entry for path in paths or shipped_baselines() for entry in read_baseline(path)]
    wanted = selected(entries, decoders, target)
    by_entry = {id(outcome.expectation): outcome for outcome in outcomes(wanted)}
    return Part(BASELINES, [check for entry in wanted for check in checks_of(by_entry[id(entry)])])


def checks_of(outcome: Outcome) -> list[Check]:
    """Return the checks of an expectation; the first has its seconds."""
    expectation = outcome.expectation
    if outcome.refused:
        return [Check.of(NOT_RUN, expectation.subject, False, outcome.refused, "a run")]
    first, *others = expectation.judge(outcome.row)
    if expectation.steps and not outcome.is_free and _may_fail(outcome):
        others.append(_steps_check(outcome))
    return [first._replace(seconds=outcome.seconds), *others]


def _may_fail(outcome: Outcome) -> bool:
    """Whether rounding leaves outputs whose steps must be those that are written.

    In bfloat16 it may change any of them: a check that cannot fail says nothing.
    """
    return most_diverging(outcome.steps, outcome.row["dtype"]) < len(outcome.steps)


def _steps_check(outcome: Outcome) -> Check:
    """Compare the steps of each output with those that the expectation states.

    Few outputs take other steps where the decoder is unchanged, however few tokens a step are lost.
    """
    expectation = outcome.expectation
    most = most_diverging(outcome.steps, outcome.row["dtype"])
    bound = f"more steps than when written in at most {most}"
    now = [len(output) for output in outcome.steps]
    if len(now) != len(expectation.steps):
        figure = f"{len(now)} outputs, but steps of {len(expectation.steps)} are written"
        return Check.of(STEPS, expectation.subject, False, figure, bound)
    slower = sum(count > before for count, before in zip(now, expectation.steps, strict=True))
    figure = f"more steps in {slower} of {len(now)} outputs"
    return Check.of(STEPS, expectation.subject, slower <= most, figure, bound)


def require_runs(part: Part) -> None:
    """Raise BenchError where an expectation could not be run."""
    refused = [check for check in part.checks if check.name == NOT_RUN]
    if refused:
        total = len(refused) + sum(check.name == IDENTITY for check in part.checks)
        raise BenchError(
            f"{len(refused)} of {total} expectations could not be run", refused[0].figure
        )


# writing


@dataclass(frozen=True)
class Update:
    """The change that a run made to an expectation: its new bound, or why there is none."""

    path: Path
    expectation: Expectation
    bound: Bound | None
    reason: str = ""
    steps: Sequence[int] = ()  # of each output; none where the same text may take others

    def __str__(self) -> str:
        subject = self.expectation.subject
        if self.bound is None:
            return f"{self.path}: {subject}: left as it was: {self.reason}"
        return (
            f"{self.path}: {subject}: at least {self.expectation.tokens_per_step:g} -> "
            f"{self.bound.least:g}, measured {self.bound.measured:.3f}; "
            f"finds a loss of {self.bound.finds:.3f} tokens a step"
        )


def update_baselines(
    paths: Sequence[Path], decoders: Sequence[str] | None = None, target: str | None = None
) -> list[Update]:
    """Measure expectations anew and write bounds that an unchanged decoder keeps.

    Only figures change in the files. An expectation whose run is refused or whose output is not
    the target's stays as it is.
    """
    files = {path: read_baseline(path) for path in paths or shipped_baselines()}
    wanted = selected([entry for file in files.values() for entry in file], decoders, target)
    by_entry = {id(outcome.expectation): outcome for outcome in outcomes(wanted)}
    updates: list[Update] = []
    for path, entries in files.items():
        own = {
            number: _update(path, by_entry[id(entry)])
            for number, entry in enumerate(entries)
            if id(entry) in by_entry
        }
        _write(path, own)
        updates += own.values()
    return updates


def _update(path: Path, outcome: Outcome) -> Update:
    expectation = outcome.expectation
    if outcome.refused:
        return Update(path, expectation, None, outcome.refused)
    identity = expectation.judge(outcome.row)[0]
    if not identity.holds:
        return Update(path, expectation, None, identity.figure)
    if not any(outcome.steps):
        return Update(path, expectation, None, "no output has a step")
    bound = bound_of(outcome.steps, outcome.row["dtype"], is_free=outcome.is_free)
    steps = [] if outcome.is_free else [len(output) for output in outcome.steps]
    return Update(path, expectation, bound, steps=steps)


def _write(path: Path, updates: dict[int, Update]) -> None:
    figures = {
        number: {
            "tokens_per_step": f"{update.bound.least:g}",
            "measured": f"{update.bound.measured:.3f}",
            **({"steps": str(list(update.steps))} if update.steps else {}),
        }
        for number, update in updates.items()
        if update.bound
    }
    if not figures:
        return
    text = edited(text_file(path), figures)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise BenchError(
            f"cannot write {path}: {error.strerror or error}", "see its permissions"
        ) from error
