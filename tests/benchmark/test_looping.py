"""Outputs that loop are found, counted, and left out of figures of their own."""

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample

from fspad_bench.benchmark.looping import LONGEST_PERIOD, TAIL, loops
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import rows

TEXT = list(range(100, 160))
LOOP = [*TEXT[:10], *[1, 2, 3] * 20]
FIGURES = ("tokens_per_step", "speedup", "speedup_end_to_end")


@pytest.mark.parametrize(
    ("tokens", "looping"),
    [
        ([7] * TAIL, True),
        ([7] * (TAIL - 1), False),
        ([*TEXT, *[7] * TAIL], True),
        ([*[7] * 60, 8], False),  # it ended
        ([1, 2, 3] * 10, True),
        ([*range(LONGEST_PERIOD)] * 2, True),
        ([*range(LONGEST_PERIOD + 1)] * 2, False),
        ([*range(LONGEST_PERIOD), *range(10)], True),
        (TEXT, False),
        ([], False),
    ],
)
def test_a_tail_that_repeats_is_a_loop(tokens, looping):
    assert loops(tokens) == looping


def generations(outputs, seconds):
    """Return the samples of vanilla and of a decoder for these outputs, by seconds of each."""
    return [
        sample(key, str(number), list(tokens), own, forwards=steps, committed=[len(tokens) - 1])
        for number, tokens in enumerate(outputs)
        for key, own, steps in ((VANILLA, 10.0, 60), (FAST, seconds[number], int(seconds[number])))
    ]


def test_figures_stand_with_and_without_outputs_that_loop():
    outputs = [TEXT, LOOP, TEXT[::-1]]
    row = row_of(rows(records(*generations(outputs, [8.0, 1.0, 5.0]))))
    others = row_of(rows(records(*generations([outputs[0], outputs[2]], [8.0, 5.0]))))
    assert (row["outputs"], row["looping"]) == (3, 1)
    assert (others["outputs"], others["looping"]) == (2, 0)
    for name in FIGURES:
        assert row[f"{name}_without_loops"] == pytest.approx(others[name])
        assert row[name] > 1.3 * row[f"{name}_without_loops"]
        assert others[f"{name}_without_loops"] == others[name]


def test_where_every_output_loops_no_other_figures_are_known():
    row = row_of(rows(records(*generations([LOOP, LOOP], [8.0, 1.0]))))
    assert row["looping"] == 2
    assert [row[f"{name}_without_loops"] for name in FIGURES] == [None] * 3


def test_a_pair_of_which_one_output_loops_is_left_out_whole():
    samples = generations([TEXT, TEXT], [8.0, 1.0])
    samples[3].tokens[-TAIL:] = [7] * TAIL
    row = row_of(rows(records(*samples)))
    assert row["looping"] == 1
    assert row["speedup_without_loops"] == pytest.approx(10 / 8)


def test_the_table_says_how_many_loop_and_who_gains_by_them():
    copies = [*generations([TEXT, LOOP], [9.0, 0.5])]
    table = rows(records(*copies))
    other = [
        row | {"decoder": "head", "speedup": 1.4, "speedup_without_loops": 1.3} for row in table
    ]
    text = render([*table, other[-1]], "text")
    assert "greedy · 1 of 2 outputs loop" in text
    assert "tokens/step, no loops" in text
    assert f"repeat, with a period of at most {LONGEST_PERIOD}" in text
    assert "fast on gsm8k@bundled, greedy: faster than head only by the outputs" in text
    assert "head: faster than fast" not in text


def test_a_table_without_loops_is_as_it_was():
    text = render(rows(records(*generations([TEXT], [9.0]))), "text")
    assert "loop" not in text
