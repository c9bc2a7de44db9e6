"""The error that a user meets, and its hints."""

import pytest

from fspad_bench.util.errors import BenchError, near


def test_a_bench_error_carries_both_lines():
    error = BenchError("what is wrong", "what to do")
    assert error.message == str(error) == "what is wrong"
    assert error.hint == "what to do"
    assert error.exit_code == 2
    assert BenchError("alone").hint == ""


@pytest.mark.parametrize("wrong", ["fspda", "fspad2", "pad", "fspad "])
def test_near_names_the_nearest_and_lists_all(wrong):
    assert (
        near(wrong, {"vanilla", "fspad", "eagle"})
        == "did you mean 'fspad'? known: eagle, fspad, vanilla"
    )


def test_near_only_lists_if_nothing_is_close():
    assert near("xylophone", ["b", "a"]) == "known: a, b"
    assert near("", ["b"]) == "known: b"


def test_near_takes_any_iterable_even_an_empty_one():
    assert near("b", (name for name in "ab")) == "did you mean 'b'? known: a, b"
    assert near("a", []) == "none are known"
