"""The prefill's guard on rows made by hand: what is noise, what is hidden work."""

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample

from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import rows


def table_of(pairs, **more):
    """Return the rows of (vanilla's, the decoder's) prefill seconds; a decode takes 1 s each."""
    samples = []
    for i, (vanilla, fast) in enumerate(pairs):
        samples.append(sample(VANILLA, str(i), 10, 1.0, prefill=vanilla))
        samples.append(sample(FAST, str(i), 10, 0.5, prefill=fast, **more))
    return rows(records(*samples))


@pytest.mark.parametrize(
    ("pairs", "hidden"),
    [
        ([(0.1, 1.0)] * 10, True),  # ten times as dear
        ([(0.1, 0.13)] * 10, True),  # 6% of the decode time, each time
        ([(0.1, 0.105)] * 40, False),  # 1% of the decode time is no matter
        ([(3.0, 3.05)] * 40, False),  # a long prompt: 2% of it
        ([(0.1, 0.2), (0.2, 0.1)] * 10, False),  # noise
        ([(0.1, 1.0), *[(0.1, 0.1)] * 11], False),  # one prefill that was disturbed
        ([(0.1, 1.0)] * 5, True),
        ([(0.1, 0.19)] * 5, False),  # too few to test, and not twice as dear
        ([(0.1, 1.0)] * 4, False),  # time is no evidence yet
    ],
)
def test_a_prefill_dearer_than_vanillas_beyond_noise_hides_work(pairs, hidden):
    table = table_of(pairs)
    row = row_of(table)
    names = ("speedup", "speedup_low", "speedup_high")
    if hidden:
        assert [row[name] for name in names] == [None] * 3
        assert "times as long as vanilla's" in row["hidden_work"]
        assert "no decode speedup is given" in render(table, "text")
    else:
        assert row["speedup"] == pytest.approx(2.0)
        assert row["hidden_work"] is None
    assert row["speedup_end_to_end"] > 0
    assert row_of(table, "vanilla")["speedup"] == 1.0


def test_more_than_one_forward_in_a_prefill_is_hidden_work_whatever_it_takes():
    row = row_of(table_of([(0.1, 0.1)], prefill_forwards=8))
    assert row["hidden_work"] == "7 full forwards ran before its decode clock started"
    assert row["speedup"] is None
    assert row_of(table_of([(0.1, 0.1)], prefill_forwards=1))["speedup"] == 2.0


def test_records_without_the_count_table_as_before():
    assert row_of(table_of([(0.1, 0.1)], prefill_forwards=0))["speedup"] == 2.0


@pytest.mark.parametrize("repeats", [1, 2])
def test_no_figure_of_the_decode_clock_is_given_where_work_was_hidden_from_it(repeats):
    def table_with(prefill_forwards):
        forwards = {VANILLA.hash: 1, FAST.hash: prefill_forwards}
        times = {"draft_seconds": 0.1, "score_seconds": 0.2}
        samples = []
        for number in range(repeats):
            place = {"repeat": number, "round_": str(number)}
            for key in (VANILLA, FAST):
                more = {**times, **place, "prefill_forwards": forwards[key.hash]}
                samples.append(sample(key, "a", 10, 0.5 + number, **more))
        return rows(records(*samples))

    names = ["tokens_per_second", "draft_share", "score_share"]
    names += ["tokens_per_second_cv", "speedup_cv"] if repeats > 1 else []
    known = row_of(table_with(1))
    hidden = table_with(8)
    assert None not in [known[name] for name in names]
    assert [row_of(hidden)[name] for name in names] == [None] * len(names)
    assert row_of(hidden)["time_to_first_token"] == pytest.approx(0.1)
    assert row_of(hidden, "vanilla")["tokens_per_second"] is not None
    line = next(line for line in render(hidden, "markdown").splitlines() if "| fast" in line)
    assert [cell.strip() for cell in line.split("|")][6:8] == ["-", "100 ms"]
