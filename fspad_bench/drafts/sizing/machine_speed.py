"""How fast the machine is now, beside the minute in which its costs were measured.

Whoever else runs on it slows its memory and its cores by a third within minutes, and each for itself: small trees wait
for the weights, large ones for sums, so which size pays changes with them. The logarithm of what forwards take over
what they cost then is followed as a Gaussian process over the logarithm of their nodes: each tells of all sizes, most
of those near its own, and what was long not seen goes back to what was measured.
"""

from __future__ import annotations

import numpy as np

from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.engine.target import LARGEST_TREE

# deviations of what all share and of what is a size's own, its reach in octaves
COMMON = 0.2
OWN = 0.1
REACH = 0.5
# deviations of one round's forward, and of all else in it
NOISE = 0.1
DRAFT_NOISE = 0.2
OUTLIER = 3.0  # deviations beyond which a round counts as if it lay there
KEPT = 0.998  # what is left of a round one round later
EVERY = 16  # rounds heard together: caches full of weights make even a filter's small products dear

_OCTAVES = np.log2(SIZES)
_OWN = np.exp(-0.5 * ((_OCTAVES[:, None] - _OCTAVES) / REACH) ** 2)
BEFORE = COMMON**2 + OWN**2 * np.block(
    [[_OWN, np.zeros((len(SIZES), 1))], [np.zeros(len(SIZES)), np.ones(1)]]
)
PLACES = np.zeros(
    (LARGEST_TREE + 2, len(BEFORE))
)  # how the factor of each number of nodes is made of those at `SIZES`
PLACES[:-1, :-1] = np.array(
    [np.interp(range(LARGEST_TREE + 1), SIZES, size) for size in np.eye(len(SIZES))]
).T
PLACES[-1, -1] = 1.0  # last, all else in a round
ELSE = len(PLACES) - 1


class Paced:
    """Costs at the machine's pace of now; `saw` is told each round. It says nothing of a text: one serves all."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self._mean = np.zeros(len(BEFORE))
        self._spread = BEFORE.copy()
        self._factors = np.ones(len(PLACES))
        self._forwards: dict[int, list[float]] = {}  # as they were last asked for
        self._seen: list[
            tuple[int, int, int, float, float]
        ] = []  # what `saw` was told since it last followed

    def forwards(self, tokens: int) -> list[float]:
        """Seconds of a forward of every number of nodes behind so many tokens, as `Costs.forwards`."""
        if tokens not in self._forwards:
            self._forwards = {tokens: (self._factors[:-1] * self.costs.forwards(tokens)).tolist()}
        return self._forwards[tokens]

    def beside(self, levels: int, tokens: int = NEAR) -> float:
        """Seconds of a round with so many drafted levels beside its forward, as `Costs.beside`."""
        return float(self._factors[ELSE]) * self.costs.beside(levels, tokens)

    def saw(self, nodes: int, levels: int, tokens: int, forward: float, beside: float) -> None:
        """A round: its forward took so many seconds, all else in it, drafting above all, `beside`."""
        self._seen.append((nodes, levels, tokens, forward, beside))
        if len(self._seen) == EVERY:
            self._follow()

    def _follow(self) -> None:
        """A Kalman filter's step by all that was seen."""
        nodes, levels, tokens, *seconds = zip(*self._seen, strict=True)
        self._seen.clear()
        expected = (
            [*map(self.costs.forward, nodes, tokens)],
            [*map(self.costs.beside, levels, tokens)],
        )
        found = np.log(np.array(seconds) / expected).ravel()
        kept = KEPT**EVERY
        self._mean *= kept
        self._spread += (1 - kept**2) * (BEFORE - self._spread)
        made = PLACES[[*nodes, *[ELSE] * EVERY]]
        shared = self._spread @ made.T
        variance = made @ shared + np.diag(np.repeat((NOISE**2, DRAFT_NOISE**2), EVERY))
        farthest = OUTLIER * np.sqrt(variance.diagonal())
        surprise = np.clip(found - made @ self._mean, -farthest, farthest)
        gain = np.linalg.solve(variance, shared.T).T
        self._mean += gain @ surprise
        self._spread -= gain @ shared.T
        self._factors = np.exp(PLACES @ self._mean)
        self._forwards.clear()
