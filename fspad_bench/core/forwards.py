"""How many forwards of the target a generation took."""

from __future__ import annotations

from fspad_bench.core.protocols import Target


class Forwards:
    """Counts the full forwards of one generation, wherever they run.

    A decoder that scores tokens while the prompt is being prefilled has made those forwards all the
    same.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.start = target.forwards
        self.prefill = 0

    def prefilled(self) -> None:
        """Note that the prefill is done: the decode clock starts."""
        self.prefill = self.target.forwards - self.start

    @property
    def decoding(self) -> int:
        """All forwards so far but for the one that a prefill takes."""
        return self.target.forwards - self.start - min(self.prefill, 1)
