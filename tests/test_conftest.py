"""The default run takes a sample of wide grids, the first case of each test in it; no test draws
something else from time to time.
"""

import random

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
    lines = (pytestconfig.rootpath / "tox.ini").read_text().splitlines()
    envs = next(line for line in lines if line.startswith("env_list"))
    assert {"py", "wide"} <= set(envs.partition("=")[2].replace(",", " ").split())
    left_out = "wide and not real and not nightly and not gpu"
    assert any(f'-m "{left_out}"' in line for line in lines)
    assert f"not {left_out}" in pytestconfig.getini("addopts")


@pytest.mark.parametrize("time", range(2))
def test_every_test_draws_the_same(time):
    drawn = [random.random(), float(np.random.random()), float(torch.rand(()))]
    assert drawn == pytest.approx([0.8444218515250481, 0.5488135039273248, 0.49625658988952637])
