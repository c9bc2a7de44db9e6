"""Two traces part at the first operation with other bits; the difference has a size."""

import torch

from fspad_bench.lossless.invariance.trace import (
    LOGITS,
    Operation,
    bits,
    changed_choices,
    first_difference,
    largest_ulps,
    stacked,
)

FIRST, SECOND = Operation("norm", 0), Operation("q_proj", 0)


def test_the_first_operation_in_order_is_named_with_its_row_and_size():
    alone = {FIRST: torch.ones(3, 2), SECOND: torch.ones(3, 2)}
    together = {FIRST: torch.ones(2, 2), SECOND: torch.ones(2, 2)}
    together[SECOND][1, 0] = 1.5
    difference = first_difference(alone, together)
    assert difference == (SECOND, 1, 2.0**22, 0.5)


def test_the_same_bits_are_no_difference():
    trace = {FIRST: torch.tensor([[1.0, torch.nan]])}
    assert first_difference(trace, {FIRST: trace[FIRST].clone()}) is None


def test_a_zero_of_another_sign_has_other_bits_and_no_distance():
    difference = first_difference({FIRST: torch.zeros(1, 2)}, {FIRST: -torch.zeros(1, 2)})
    assert difference == (FIRST, 0, 0.0, 0.0)


def test_a_nan_is_infinitely_far_from_a_number():
    together = {FIRST: torch.tensor([[torch.nan]])}
    difference = first_difference({FIRST: torch.ones(1, 1)}, together)
    assert difference == (FIRST, 0, float("inf"), float("inf"))


def test_an_operation_that_one_row_does_without_is_passed_over():
    assert first_difference({SECOND: torch.ones(1, 1)}, {FIRST: torch.ones(1, 1)}) is None


def test_ulps_count_representable_values_across_zero():
    for dtype, step in ((torch.bfloat16, 2**-7), (torch.float64, 2**-52)):
        ones = torch.ones(1, 1, dtype=dtype)
        assert largest_ulps(ones, ones + 3 * step) == 3
    tiny = torch.tensor([[1]], dtype=torch.int16).view(torch.bfloat16)
    assert largest_ulps(tiny, -tiny) == 2
    assert largest_ulps(torch.tensor([[3]]), torch.tensor([[7]])) == 4


def test_bits_are_those_of_any_shape_of_rows():
    assert bits(torch.ones(2, 3, 4, dtype=torch.float16)).shape == (2, 12)


def test_traces_are_stacked_row_by_row():
    rows = stacked([{FIRST: torch.zeros(1, 2)}, {FIRST: torch.ones(1, 2)}])[FIRST]
    assert rows.tolist() == [[0, 0], [1, 1]]


def test_rows_whose_likeliest_token_changed_are_counted():
    alone = {Operation(LOGITS): torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])}
    together = {Operation(LOGITS): torch.tensor([[1.0, 0.5], [1.5, 1.0]])}
    assert changed_choices(alone, together) == 1
    assert changed_choices({}, {FIRST: torch.ones(1, 1)}) is None
