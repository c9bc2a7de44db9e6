"""Confidence calibration: draft probabilities are over- or under-confident, differently at each
depth.

For each depth a logistic curve from a child's probability q to the share of such children that the
target accepts, fitted on held-out conversations once the network is trained: for greedy targets,
and for sampled ones, where q is the probability under the draft's logits plus the target's noise.
It decides how large a tree is worth its forward, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, log, log1p, tanh
from typing import Any

import numpy as np

STEPS = 30
RIDGE = 1e-3
EDGE = 1e-6
LEAST = log(EDGE)
MOST = log(1 - EDGE)
MOST_STEEP = 1e6  # of a shift or a slope: a fit gives a few units


@dataclass(frozen=True)
class Curve:
    """P(child is accepted) = sigmoid(shift + slope * logit(q)).

    `first` and `any`: the mean chance that a node's first child is accepted, and that any of its
    children is.
    """

    shift: float = 0.0
    slope: float = 1.0
    first: float = 0.5
    any: float = 0.75

    def grade(self, log_q: Sequence[float]) -> list[float]:
        """Return the calibrated probabilities of children with log-probabilities `log_q`: a few
        numbers, on the host.

        They are never exactly 0 or 1, so that every path is less likely than its parent's.
        """
        shift = self.shift
        slope = self.slope
        return [
            EDGE + (0.5 - EDGE) * (1 + tanh((shift + slope * (value - log1p(-exp(value)))) / 2))
            for value in [
                LEAST if value < LEAST else MOST if value > MOST else value for value in log_q
            ]
        ]

    def shares(self, top_k: int) -> list[float]:
        """Return the mean chances of `top_k` children, the likeliest first.

        The others share `any - first` equally.
        """
        return [self.first] + [(self.any - self.first) / max(1, top_k - 1)] * (top_k - 1)


@dataclass(frozen=True)
class Calibration:
    """One curve a depth; deeper levels share the last."""

    greedy: tuple[Curve, ...] = (Curve(),)
    sampled: tuple[Curve, ...] = (Curve(),)

    def curve(self, level: int, *, greedy: bool) -> Curve:
        curves = self.greedy if greedy else self.sampled
        return curves[min(level, len(curves) - 1)]

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any] | None) -> Calibration:
        """Return what a head's file states; identity curves where it states nothing.

        Raises ValueError or TypeError for what are no curves.
        """
        if facts is None or facts == {}:
            return cls()
        if not isinstance(facts, dict):
            raise ValueError(f"its calibration is {facts!r:.60}, not curves by name")
        return cls(**{name: _curves(name, curves) for name, curves in facts.items()})


def _curves(name: str, curves: Any) -> tuple[Curve, ...]:
    """Return the curves of a file. Raises ValueError or TypeError where they are none."""
    if not isinstance(curves, list | tuple) or not curves:
        raise ValueError(f"its calibration's {name} is {curves!r:.60}, not a list of curves")
    read = tuple(Curve(**curve) for curve in curves)
    for curve in read:
        for field, value in asdict(curve).items():
            if type(value) not in (int, float) or not abs(value) <= MOST_STEEP:
                raise ValueError(f"its calibration's {field} is {value!r:.60}, not a number")
        if not 0 <= curve.first <= curve.any <= 1:
            raise ValueError(f"its calibration's chances are {curve.first}, {curve.any}")
    return read


def fit(q: np.ndarray, right: np.ndarray) -> Curve:
    """Fit the curve of rows of children.

    Q `[N, K]`, likeliest first, and which of them the target chose `[N, K]`.
    """
    clipped = np.clip(q, EDGE, 1 - EDGE).astype(np.float64)
    x = np.stack([np.ones(clipped.size), np.log(clipped / (1 - clipped)).ravel()], axis=1)
    y = right.ravel().astype(np.float64)
    w = np.array([0.0, 1.0])

    def loss(w: np.ndarray) -> float:
        return float(
            np.mean(np.logaddexp(0, x @ w) - y * (x @ w)) + RIDGE / 2 * np.sum((w - [0, 1]) ** 2)
        )

    for _ in range(STEPS):  # Newton's method with step halving, and a weak pull to the identity
        p = 0.5 * (1 + np.tanh(x @ w / 2))
        gradient = x.T @ (p - y) / len(y) + RIDGE * (w - [0, 1])
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(y) + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(w - step) > loss(w) and np.abs(step).max() > EDGE:
            step = step / 2
        w = w - step
    return Curve(float(w[0]), float(w[1]), float(right[:, 0].mean()), float(right.any(1).mean()))
