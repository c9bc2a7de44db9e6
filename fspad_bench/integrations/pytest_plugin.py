"""A pytest plugin: certify a package's own decoder in its own CI.

    pip install fspad-bench
    pytest --fspad-decoder mypackage.module:MyDecoder

- Each check of each decoder becomes a test beside the package's own tests, such as
  `fspad-bench::MyDecoder::identity`.
- pytest loads the plugin wherever this package is installed, so nothing heavy is imported until a
  decoder is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from fspad_bench.lossless.certify import PlannedCheck


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
    from fspad_bench.errors import BenchError
    from fspad_bench.lossless import certify
    from fspad_bench.models.load import load_target

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


class Certification(pytest.Item):
    """One check of one decoder."""

    def __init__(self, *, step: PlannedCheck, **options: Any) -> None:
        super().__init__(**options)
        self.step = step

    def runtest(self) -> None:
        failures = [check for check in self.step.run() if not check.holds]
        lines = [f"{c.name}: {c.verdict}: {c.figure} (bound: {c.bound})" for c in failures]
        if lines:
            raise NotCertified("\n".join(lines))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, NotCertified):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name
