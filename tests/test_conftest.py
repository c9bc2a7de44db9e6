"""The default run takes a sample of wide grids, the first case of each test in it; no test draws
something else from time to time.
"""

import random
from configparser import ConfigParser

import numpy as np
import pytest
import torch


class Case:
    """What pytest collects, as far as the sample looks at it."""

    def __init__(self, nodeid, *markers):
        self.nodeid = nodeid
        self.markers = {marker.name: marker for marker in markers}

    def get_closest_marker(self, name):
        return self.markers.get(name)

    def add_marker(self, name):
        self.markers[name] = None


@pytest.fixture
def mark_wide(request):
    plugins = request.config.pluginmanager.get_plugins()
    return next(p.mark_wide for p in plugins if hasattr(p, "mark_wide"))


def wide(cases):
    return [case.nodeid for case in cases if "wide" in case.markers]


def test_every_nth_case_of_each_test_is_taken(mark_wide):
    third = pytest.mark.sampled(3).mark
    cases = [Case(f"{test}[{n}]", third) for n in range(5) for test in ("a.py::f", "a.py::g")]
    mark_wide(cases)
    assert wide(cases) == [f"a.py::{name}[{n}]" for n in (1, 2, 4) for name in "fg"]


def test_tests_without_a_sample_are_left_alone(mark_wide):
    cases = [Case("a.py::f[0]"), Case("a.py::f[1]"), Case("a.py::g")]
    mark_wide(cases)
    assert wide(cases) == []


def test_the_environments_leave_no_case_out(pytestconfig):
    tox = ConfigParser(interpolation=None)
    tox.read(pytestconfig.rootpath / "tox.ini")
    elsewhere = "not real and not nightly and not gpu"
    assert tox["tox"]["env_list"] == "all"
    assert f'-m "{elsewhere}"' in tox["testenv:all"]["commands"]
    assert f'-m "wide and {elsewhere}"' in tox["testenv:wide"]["commands"]
    assert f"not wide and {elsewhere}" in pytestconfig.getini("addopts")


@pytest.mark.parametrize("time", range(2))
def test_every_test_draws_the_same(time):
    drawn = [random.random(), float(np.random.random()), float(torch.rand(()))]
    assert drawn == pytest.approx([0.8444218515250481, 0.5488135039273248, 0.49625658988952637])
