"""What other code hands over becomes what JSON writes and reads."""

import json
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from fspad_bench.util.plain import plain, seconds, whole


class Odd:
    def __str__(self):
        return "odd"

    def __index__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("ä", "ä"),
        ("a\ud83d", "a?"),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (torch.tensor(7), 7),
        (torch.tensor(0.5), 0.5),
        (np.array([1, 2]), "[1 2]"),
        (Decimal("1.5"), 1.5),
        (Path("a/b"), "a/b"),
        ((1, [np.int8(2)]), [1, [2]]),
        ({3, 1}, [1, 3]),
        ({1: {"x": np.float64(2.0)}, (1, 2): None}, {"1": {"x": 2.0}, "(1, 2)": None}),
        (Odd(), "odd"),
    ],
)
def test_values_are_plain(value, expected):
    result = plain(value)
    assert result == expected
    assert type(result) is type(expected)
    assert json.loads(json.dumps(result)) == result


class Silent:
    """An object without a text."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float32("inf"), "inf"),
        (torch.tensor(math.nan), "nan"),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), "-0x8000000000000000"),
        pytest.param(10**5000, hex(10**5000), id="of 5001 digits"),
        ({10**5000: 1}, {hex(10**5000): 1}),
        (object(), "<object object>"),
        (Silent(), "<Silent>"),
        ([Silent(), {Silent(): 1}], ["<Silent>", {"<Silent>": 1}]),
    ],
)
def test_what_json_does_not_hold_is_text(value, expected):
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_what_holds_itself_ends():
    loop = []
    loop.append(loop)
    json.dumps(plain(loop))


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_every_library(value):
    assert type(whole(value, "tokens")) is int


@pytest.mark.parametrize(
    "value",
    [1.0, "3", None, -1, True, np.float64(1), np.array([1, 2]), math.nan, [3], Silent()],
)
def test_other_values_are_no_whole_numbers(value):
    with pytest.raises((TypeError, ValueError), match="tokens holds"):
        whole(value, "tokens")


def test_a_number_of_too_many_digits_is_no_whole_number():
    with pytest.raises(ValueError, match="tokens holds 0x31e2"):
        whole(10**5000, "tokens")


def test_times_are_finite_and_not_negative():
    for value in (0, 1.5, np.float32(1.5), torch.tensor(1.5)):
        assert type(seconds(value, "decode_seconds")) is float
    for value in (
        math.nan,
        math.inf,
        -0.1,
        "1.5",
        None,
        True,
        [1.0],
        np.array([1.0, 2.0]),
        10**5000,
    ):
        with pytest.raises((TypeError, ValueError), match="decode_seconds is"):
            seconds(value, "decode_seconds")
