"""A pytest plugin: a decoder's own package holds it to certification in its own CI.

    pip install fspad-bench
    pytest --fspad-decoder mypackage.module:MyDecoder

Each check of each decoder becomes a test beside the package's own (`fspad-bench::MyDecoder::identity`). It is there
in every pytest run where this package is installed, so it imports nothing heavy until a decoder is named.
"""

from __future__ import annotations

from typing import Any

import pytest


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
    """Add the checks of the decoders that were named."""
    if labels := config.getoption("--fspad-decoder"):
        items += [Certification.from_parent(session, name=f"fspad-bench::{step.subject}::{step.name}", step=step)
                  for step in _steps(config, labels)]  # fmt: skip


def _steps(config: pytest.Config, labels: list[str]) -> list[Any]:
    from fspad_bench.cli.main import decoder_labels, read_options
    from fspad_bench.errors import BenchError
    from fspad_bench.lossless import certify
    from fspad_bench.models.load import load_target

    try:
        options = read_options(config.getoption("--fspad-option"))
        target = load_target("tiny")
        effort = getattr(certify, config.getoption("--fspad-effort").upper())
        every = [label for given in labels for label in decoder_labels(given)]
        return list(certify.decoder_steps(every, options, target, target, effort))
    except BenchError as error:
        raise pytest.UsageError(f"{error.message}\n{error.hint}") from error


class NotCertified(Exception):
    """The checks that do not hold."""


class Certification(pytest.Item):
    """One check of one decoder."""

    def __init__(self, *, step: Any, **options: Any) -> None:
        super().__init__(**options)
        self.step = step

    def runtest(self) -> None:
        bad = [check for check in self.step.run() if not check.holds]
        if bad:
            raise NotCertified(
                "\n".join(f"{c.name}: {c.verdict}: {c.figure} (bound: {c.bound})" for c in bad)
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo, style: str | None = None) -> Any:
        return (
            str(excinfo.value)
            if excinfo.errisinstance(NotCertified)
            else super().repr_failure(excinfo)
        )

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.name
