"""Templates of task cards, rendered in a sandbox: a card may come from a stranger.

- The sandbox is jinja2's immutable one, which transformers uses for chat templates too. A template
  reads the fields of a document; it neither changes them nor reaches Python's internals.
- An access that the sandbox forbids is an error at once, not an undefined value.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2
from jinja2.environment import TemplateExpression
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from fspad_bench.util.errors import BenchError


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with an error in place of an undefined value for a forbidden attribute."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        kind = type(obj).__name__
        raise SecurityError(f"access to attribute '{attribute}' of '{kind}' is forbidden")


def render(template: str, doc: dict[str, Any], where: str) -> str:
    """Return the text of a template for a document. Raises BenchError beginning with `where`."""
    try:
        return _template(template).render(doc)
    except Exception as error:  # whatever a stranger's template comes to
        raise BenchError(
            f"{where}: {_reason(error)}", f"the task's prompt is {template!r}"
        ) from error


def evaluate(expression: str, doc: dict[str, Any], where: str) -> Any:
    """Return the value of an expression, which may be a list.

    Raises BenchError where it has none.
    """
    try:
        value = _expression(expression)(doc)
    except jinja2.UndefinedError:  # a field of a field that is missing
        value = None
    except Exception as error:  # whatever a stranger's template comes to
        raise BenchError(
            f"{where}: {_reason(error)}", f"the task's answer is {expression!r}"
        ) from error
    if value is None:
        raise BenchError(
            f"{where}: the field of the answer ({expression}) is missing",
            "add it, or give `turns` and score nothing",
        )
    return value


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@cache
def _template(text: str) -> jinja2.Template:
    return Sandbox(undefined=jinja2.StrictUndefined).from_string(text)


@cache
def _expression(text: str) -> TemplateExpression:
    return Sandbox().compile_expression(text)
