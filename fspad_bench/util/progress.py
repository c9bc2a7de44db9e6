"""Show the progress of long work on stderr: a bar on a terminal, plain lines in a log.

    with Progress("features", 100) as progress:
        progress.advance(note="loss 1.2")

- A bar is redrawn at most every 0.2 s; a log, and a terminal that cannot redraw a line, get a line
  at the start, every 30 s, and at the end.
- `start` counts the work of an earlier run; it is left out of the rate and of the time left.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any

from tqdm import tqdm

from fspad_bench.util.terminal import visible

REDRAW_EVERY = 0.2
LOG_EVERY = 30.0


class Bar(tqdm):
    """tqdm's bar without its monitor thread, which would run beside what is measured."""

    monitor_interval = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(mininterval=REDRAW_EVERY, dynamic_ncols=True, **options)


class LogLines(tqdm):
    """tqdm's counting and timing, shown as whole lines."""

    monitor_interval = 0

    def __init__(self, **options: Any) -> None:
        line = "{desc} {n}/{total} [{elapsed}<{remaining}{postfix}]"
        super().__init__(mininterval=LOG_EVERY, bar_format=line, leave=False, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        is_clearing = msg == ""  # on closing; written lines stay
        if not is_clearing:
            with suppress(OSError):  # a log that is full or closed does not end the work
                print(self, file=self.fp, flush=True)
        return not is_clearing


class Progress:
    """A context manager that counts work done; `quiet` shows nothing."""

    def __init__(self, title: str, total: int, *, start: int = 0, quiet: bool = False) -> None:
        self.title = title
        self.total = total
        self.start = start
        self.quiet = quiet

    def __enter__(self) -> Progress:
        display = Bar if _redraws() else LogLines
        self.bar = display(
            desc=visible(self.title),
            total=self.total,
            initial=self.start,
            disable=self.quiet,
            file=sys.stderr,
            miniters=0,  # a note without a step is shown, too
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.set_postfix_str("" if kind is None else "interrupted", refresh=False)
        self.bar.refresh()
        self.bar.close()

    def advance(self, step: int = 1, note: str = "") -> None:
        """Count `step` more units as done and show `note` beside the count."""
        self.bar.set_postfix_str(visible(note), refresh=False)
        self.bar.update(step)


def _redraws() -> bool:
    """Whether stderr is a terminal that redraws a line: a dumb one appends."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
