"""A pytest plugin: certify a package's own decoder in its own CI, and hold it to its baseline.

    pip install fspad-bench
    pytest --fspad-decoder mypackage.module:MyDecoder
    pytest mybaseline.yaml

- Each check of each decoder becomes a test beside the package's own tests, such as
  `fspad-bench::MyDecoder::identity`; so does each expectation of a baseline that the command line
  names.
- pytest loads the plugin wherever this package is installed, so nothing heavy is imported until a
  decoder or a baseline is named.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fspad_bench.lossless.baseline_runs import Outcome
    from fspad_bench.lossless.certify import PlannedCheck
    from fspad_bench.lossless.checks import Check
    from fspad_bench.lossless.promises import Expectation

YAML = (".yaml", ".yml")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fspad-bench", "certify speculative decoders")
    group.addoption(
        "--fspad-decoder",
        action="append",
        default=[],
        metavar="NAME",
        help="a name, or module:Class",
    )
    group.addoption("--fspad-option", action="append", default=[], metavar="DECODER.OPTION=VALUE")
    group.addoption("--fspad-effort", choices=["quick", "standard", "thorough"], default="quick")


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the checks of the decoders that the command line names."""
    labels = config.getoption("--fspad-decoder")
    if not labels:
        return
    for step in _steps(config, labels):
        name = f"fspad-bench::{step.subject}::{step.name}"
        items.append(Certification.from_parent(session, name=name, step=step))


def _steps(config: pytest.Config, arguments: list[str]) -> list[PlannedCheck]:
    from fspad_bench.decoders.options import decoder_labels, read_options
    from fspad_bench.lossless import certify
    from fspad_bench.models.load import load_target
    from fspad_bench.util.errors import BenchError

    try:
        options = read_options(config.getoption("--fspad-option"))
        target = load_target("tiny")
        effort = getattr(certify, config.getoption("--fspad-effort").upper())
        labels = [label for text in arguments for label in decoder_labels(text)]
        return list(certify.decoder_checks(labels, options, target, target, effort))
    except BenchError as error:
        raise pytest.UsageError(f"{error.message}\n{error.hint}") from error


class NotCertified(Exception):
    """Checks that do not hold, one per line."""


class CheckItem(pytest.Item):
    """A test that consists of checks."""

    @abstractmethod
    def checks(self) -> Sequence[Check]:
        """Return the checks, made now."""

    def runtest(self) -> None:
        failures = [check for check in self.checks() if not check.holds]
        lines = [f"{c.name}: {c.verdict}: {c.figure} (bound: {c.bound})" for c in failures]
        if lines:
            raise NotCertified("\n".join(lines))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, NotCertified):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


class Certification(CheckItem):
    """One check of one decoder."""

    def __init__(self, *, step: PlannedCheck, **options: Any) -> None:
        super().__init__(**options)
        self.step = step

    def checks(self) -> Sequence[Check]:
        return self.step.run()


# baselines


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a baseline that the command line names; YAML of folders is others'."""
    if file_path.suffix not in YAML or not parent.session.isinitpath(file_path):
        return None
    return Baseline.from_parent(parent, path=file_path)


class Baseline(pytest.File):
    """A baseline, whose expectations are tests."""

    def collect(self) -> Iterable[ExpectationItem]:
        from fspad_bench.lossless.promises import read_baseline
        from fspad_bench.util.errors import BenchError

        try:
            entries = read_baseline(self.path)
        except BenchError as error:
            raise self.CollectError(f"{error.message}\n{error.hint}") from error
        for entry in entries:
            yield ExpectationItem.from_parent(self, name=entry.subject, expectation=entry)


class ExpectationItem(CheckItem):
    """One expectation. The first of a setting runs all that were selected of that setting."""

    def __init__(self, *, expectation: Expectation, **options: Any) -> None:
        super().__init__(**options)
        self.expectation = expectation
        self.outcome: Outcome | None = None

    def checks(self) -> Sequence[Check]:
        from fspad_bench.lossless.baseline_runs import group_outcomes
        from fspad_bench.lossless.baselines import checks_of

        if self.outcome is None:
            items = [item for item in self.session.items if isinstance(item, ExpectationItem)]
            setting = self.expectation.setting
            group = [item for item in items if item.expectation.setting == setting]
            outcomes = group_outcomes([item.expectation for item in group])
            for item, outcome in zip(group, outcomes, strict=True):
                item.outcome = outcome
        assert self.outcome is not None
        return checks_of(self.outcome)
