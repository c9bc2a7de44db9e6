"""The error that a user meets, and its hints."""

import pytest

from fspad_bench.errors import BenchError, near


def test_a_bench_error_carries_both_lines():
    error = BenchError("what is wrong", "what to do")
    assert (error.message, error.hint, str(error)) == (
        "what is wrong",
        "what to do",
        "what is wrong",
    )
    assert BenchError("alone").hint == ""


@pytest.mark.parametrize("wrong", ["fspda", "fspad2", "pad", "fspad "])
def test_near_names_the_nearest_and_lists_all(wrong):
    assert (
        near(wrong, {"vanilla", "fspad", "eagle"})
        == "did you mean 'fspad'? known: eagle, fspad, vanilla"
    )


def test_near_only_lists_where_nothing_is_close():
    assert near("xylophone", ["b", "a"]) == "known: a, b"
    assert near("", ["b"]) == "known: b"


def test_near_takes_any_iterable_and_none_at_all():
    assert near("b", (name for name in "ab")) == "did you mean 'b'? known: a, b"
    assert near("a", []) == "none are known"
