"""Make Triton's interpreter several times as fast, at equal results.

- It puts its own functions in the place of the language's at every launch, and again at every call
  of a device function. Once per launch is enough.
- It computes for every sum and product of integers whether it overflows, and drops the answer
  unless it debugs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any


def hasten() -> None:
    """Change the interpreter of this process; do nothing where a release of Triton has another."""
    try:
        from triton import language
        from triton.runtime import interpreter

        patch_language = interpreter._patch_lang
        builder = interpreter.interpreter_builder
        options = replace(builder.options, sanitize_overflow=builder.options.debug)
    except (ImportError, AttributeError, TypeError):
        return
    builder.options = options
    patched = set()  # the modules in whose place functions were put since the launch began

    @functools.cache
    def modules_of(function: Callable[..., Any]) -> frozenset[str]:
        own = function.__globals__.values()
        return frozenset(m.__name__ for m in (language, language.core) if any(m is x for x in own))

    def patch(function: Callable[..., Any]) -> Any:
        modules = modules_of(function)
        if modules <= patched:
            return interpreter._LangPatchScope()
        scope = patch_language(function)
        if not patched:  # the launch itself, which restores what was there before
            restore = scope.restore

            def end() -> None:
                patched.clear()
                restore()

            scope.restore = end
        patched.update(modules)
        return scope

    interpreter._patch_lang = patch
