"""How long work shows itself: a bar on a terminal, a plain line now and then in a log. Always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

LOG_EVERY = 30.0


class Progress:
    """`with Progress("features", 100) as p: ... p.advance(note="loss 1.2")`"""

    def __init__(self, title: str, total: int, *, start: int = 0, quiet: bool = False) -> None:
        self.title = title
        self.total = total
        self.count = start
        self.first = start
        self.terminal = sys.stderr.isatty()
        self.quiet = quiet
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> Progress:
        self._show("")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show("" if kind is None else "interrupted")
        if self.terminal and not self.quiet:
            print(file=sys.stderr)

    def advance(self, step: int = 1, note: str = "") -> None:
        self.count += step
        if time.monotonic() - self.shown > (0.2 if self.terminal else LOG_EVERY):
            self._show(note)

    def _show(self, note: str) -> None:
        self.shown = time.monotonic()
        if self.quiet:
            return
        done = self.count - self.first
        left = max(0, self.total - self.count) * (self.shown - self.began) / done if done else 0
        text = f"{self.title} {self.count}/{self.total}"
        text += f", {_clock(left)} left" if left else ""
        text += f"  {note}" if note else ""
        print(
            f"\r\x1b[K{text}" if self.terminal else text,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
