"""Trainings save often here, and drawing the curve would take longer than the rest."""

import pytest

from fspad_bench.training import curve


@pytest.fixture(autouse=True)
def curve_is_not_drawn(monkeypatch):
    monkeypatch.setattr(curve, "draw", lambda table, picture: None)
