"""Fields of a line are what they are declared to be."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from by_hand import AUDIT, KEY, SAMPLE

from fspad_bench.benchmark.fields import check_fields, fits
from fspad_bench.benchmark.record import Audit, Key, Sample


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int),
        (1, float),
        (float("nan"), float),
        ("", str),
        ([], list[int]),
        ([1, 2.5], list[float]),
        ([[], [1, 2]], list[list[int]] | None),
        (None, int | None),
        ({"a": [1]}, dict[str, Any]),
        ({"a": 1}, dict[str, float]),
    ],
)
def test_values_that_fit(value, kind):
    assert fits(value, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1.0, int),
        (True, int),
        ("1", float),
        (None, str),
        ([1, "2"], list[int]),
        ([1], list[list[int]]),
        ([[1], ["2"]], list[list[int]] | None),
        ([True], list[int]),
        ("ab", list[int]),
        ({"a": "x"}, dict[str, float]),
        ([], dict[str, Any]),
        ("x", int | None),
    ],
)
def test_values_that_do_not(value, kind):
    assert not fits(value, kind)


def test_whole_lines():
    check_fields(Key, asdict(KEY))
    check_fields(Sample, asdict(replace(SAMPLE, peak_memory=None)))
    check_fields(Audit, asdict(AUDIT))
    with pytest.raises(ValueError, match="'turn' is '0'"):
        check_fields(Sample, asdict(SAMPLE) | {"turn": "0"})
