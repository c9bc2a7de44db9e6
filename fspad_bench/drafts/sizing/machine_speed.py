"""The machine's current speed, relative to the minute in which its costs were measured.

Other tenants slow memory and compute independently, by up to a third within minutes. Small trees
are memory-bound, large ones compute-bound, so the size that pays drifts. The logarithm of (measured
/ expected) seconds of a forward is tracked as a Gaussian process over the logarithm of its nodes,
by a Kalman filter: each step informs all sizes, most those near its own, and what has not been seen
for long returns to the measured costs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.engine.target import LARGEST_TREE

COMMON = 0.2  # prior deviation of what all sizes share
OWN = 0.1  # prior deviation of one size's own
REACH = 0.5  # correlation length of sizes' own parts, in octaves
NOISE = 0.1  # deviation of one step's forward
DRAFT_NOISE = 0.2  # deviation of all else in a step
OUTLIER = 3.0  # deviations beyond which a step counts as if it lay there
KEPT = 0.998  # the weight of a step one step later
EVERY = 16  # steps per update: with caches full of weights even a filter's small products are dear

_OCTAVES = np.log2(SIZES)
_OWN = np.exp(-0.5 * ((_OCTAVES[:, None] - _OCTAVES) / REACH) ** 2)
_NONE = np.zeros((len(SIZES), 1))
PRIOR = COMMON**2 + OWN**2 * np.block([[_OWN, _NONE], [_NONE.T, np.ones((1, 1))]])
# the factor of each number of nodes from those at `SIZES`; the last row: all else in a step
WEIGHTS = np.zeros((LARGEST_TREE + 2, len(PRIOR)))
WEIGHTS[:-1, :-1] = np.array(
    [np.interp(range(LARGEST_TREE + 1), SIZES, size) for size in np.eye(len(SIZES))]
).T
WEIGHTS[-1, -1] = 1.0
OVERHEAD = len(WEIGHTS) - 1


class StepTime(NamedTuple):
    """A step of `nodes` and `levels` at a prefix length.

    Seconds of its forward, and of all else in it.
    """

    nodes: int
    levels: int
    prefix: int
    forward: float
    overhead: float


class CurrentCosts:
    """Costs at the machine's current speed.

    `observe` is called with each step. One serves all prompts of a run.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self._mean = np.zeros(len(PRIOR))
        self._covariance = PRIOR.copy()
        self._factors = np.ones(len(WEIGHTS))
        self._forwards: dict[int, list[float]] = {}  # of the last prefix length
        self._steps: list[StepTime] = []  # since the last update

    def all_forwards(self, prefix: int) -> list[float]:
        """Return the seconds of a forward of every number of nodes; see `Costs.all_forwards`."""
        if prefix not in self._forwards:
            seconds = self._factors[:-1] * self.costs.all_forwards(prefix)
            self._forwards = {prefix: seconds.tolist()}
        return self._forwards[prefix]

    def overhead_seconds(self, levels: int, prefix: int = NEAR) -> float:
        """Return the seconds of a step without its forward, as `Costs.overhead_seconds` does."""
        return float(self._factors[OVERHEAD]) * self.costs.overhead_seconds(levels, prefix)

    def observe(self, step: StepTime) -> None:
        """Take a step's times into account, with those of the last few."""
        self._steps.append(step)
        if len(self._steps) == EVERY:
            self._update()

    def _update(self) -> None:
        """Run one step of the filter over the observed steps."""
        steps = self._steps
        seconds = np.array([*(s.forward for s in steps), *(s.overhead for s in steps)])
        expected = np.array(
            [
                *(self.costs.forward_seconds(s.nodes, s.prefix) for s in steps),
                *(self.costs.overhead_seconds(s.levels, s.prefix) for s in steps),
            ]
        )
        measured = np.log(seconds / expected)
        weights = WEIGHTS[[*(s.nodes for s in steps), *[OVERHEAD] * EVERY]]
        self._steps = []
        kept = KEPT**EVERY
        self._mean *= kept
        self._covariance += (1 - kept**2) * (PRIOR - self._covariance)
        shared = self._covariance @ weights.T
        noise = np.repeat((NOISE**2, DRAFT_NOISE**2), EVERY)
        variance = weights @ shared + np.diag(noise)
        farthest = OUTLIER * np.sqrt(variance.diagonal())
        surprise = np.clip(measured - weights @ self._mean, -farthest, farthest)
        gain = np.linalg.solve(variance, shared.T).T
        self._mean += gain @ surprise
        self._covariance -= gain @ shared.T
        self._factors = np.exp(WEIGHTS @ self._mean)
        self._forwards.clear()
