"""The settings of a request are checked where it is made."""

import math

import pytest

from fspad_bench.serving.engine import RANGES, Ask, depth_body
from fspad_bench.util.errors import BenchError


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
        {"temperature": 2, "top_p": 1e-6, "top_k": 10**9, "min_p": 1, "max_tokens": 1},
        {"presence": -2.0, "frequency": 2.0, "repetition": 0.5, "logprobs": 20},
    ],
)
def test_settings_in_range(settings):
    ask = Ask((3,), **{"max_tokens": 4} | settings)
    assert {name: getattr(ask, name) for name in settings} == settings


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True])
def test_what_is_no_finite_number_is_refused(name, value):
    with pytest.raises(BenchError, match=f"{name}={value} is out of range") as caught:
        Ask((3,), **{"max_tokens": 4} | {name: value})
    assert "number" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("temperature", -0.1, "give a finite number from 0"),
        ("top_p", 0.0, "give a finite number above 0 to 1"),
        ("top_p", 1.01, "give a finite number above 0 to 1"),
        ("min_p", -0.1, "give a finite number from 0 to 1"),
        ("min_p", 1.1, "give a finite number from 0 to 1"),
        ("top_k", -1, "give a whole number from 0"),
        ("top_k", 2.0, "give a whole number from 0"),
        ("max_tokens", 0, "give a whole number from 1"),
        ("max_tokens", 8.5, "give a whole number from 1"),
        ("repetition", 0.0, "give a finite number above 0"),
        ("logprobs", -1, "give a whole number from 0"),
    ],
)
def test_what_is_out_of_range_is_refused(name, value, hint):
    with pytest.raises(BenchError, match=f"{name}={value} is out of range") as caught:
        Ask((3,), **{"max_tokens": 4} | {name: value})
    assert caught.value.hint == hint


def test_a_depth_stands_in_place_of_a_whole_word():
    assert depth_body('{"NUM": N, "on": true}', 3) == {"NUM": 3, "on": True}


@pytest.mark.parametrize("template", ["", '{"depth": 3}', "N", "{N}", "[" * 99_999 + "N"])
def test_a_template_without_a_depth(template):
    with pytest.raises(BenchError, match="not a JSON object in which N"):
        depth_body(template, 3)
