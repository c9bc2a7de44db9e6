"""Calibration curves are recovered from what the target chose, and always finite."""

from math import inf
from statistics import fmean

import pytest
import torch

from fspad_bench.drafts.sizing.calibration import Calibration, Curve, fit


@pytest.mark.parametrize(("shift", "slope"), [(0.0, 1.0), (-1.0, 0.6), (0.8, 1.4)])
def test_a_curve_is_recovered_from_what_was_accepted(shift, slope):
    generator = torch.Generator().manual_seed(1)
    q = torch.rand(20_000, 2, generator=generator) * 0.96 + 0.02
    chance = torch.sigmoid(shift + slope * torch.logit(q))
    right = torch.rand(chance.shape, generator=generator) < chance
    curve = fit(q.numpy(), right.numpy())
    assert curve.shift == pytest.approx(shift, abs=0.06)
    assert curve.slope == pytest.approx(slope, abs=0.06)
    assert curve.first == pytest.approx(float(right[:, 0].float().mean()))
    graded = Curve(shift, slope).grade(q.log().flatten().tolist())
    assert graded == pytest.approx(chance.flatten().tolist(), abs=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_a_far_overconfident_draft_gets_a_finite_curve(share):
    generator = torch.Generator().manual_seed(2)
    first = 0.9 + 0.09 * torch.rand(3000, 1, generator=generator)
    q = torch.cat([first, (1 - first) / 2], dim=1)
    first_right = torch.rand(3000, 1, generator=generator) < share
    right = torch.cat([first_right, torch.zeros(3000, 1, dtype=torch.bool)], 1)
    curve = fit(q.numpy(), right.numpy())
    assert abs(curve.shift) + abs(curve.slope) < 30
    assert fmean(curve.grade(q[:, 0].log().tolist())) == pytest.approx(share, abs=0.05)


def test_a_curve_of_always_or_never_accepted_children_is_finite():
    q = torch.full((50, 2), 0.5).numpy()
    for right in (q > 0, q > 1):
        curve = fit(q, right)
        assert abs(curve.shift) < 20
        assert all(0 < chance < 1 for chance in curve.grade([0.0, -1.0, -90.0, -inf]))


def test_calibrations_survive_their_file():
    calibration = Calibration((Curve(0.1, 0.9, 0.6, 0.8), Curve(0.2)), (Curve(),))
    assert Calibration.of(calibration.facts()) == calibration
    assert Calibration.of(None) == Calibration()
    assert calibration.curve(7, greedy=True) == calibration.greedy[-1]
