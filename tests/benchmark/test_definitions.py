"""Tokens per step, acceptance and speed under each definition of the field."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.definitions import definitions
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.speeds import NO_INTERVAL, tokens_per_step
from fspad_bench.benchmark.times import decoded

PAGE = Path(__file__).parents[2] / "docs" / "definitions.md"
STEPS = {  # the page's example
    "A": {"committed": [4, 2, 1], "drafted": [3, 3, 3], "forwards": 3},
    "B": {"committed": [1, 1], "drafted": [3, 0], "forwards": 2},
}


def example():
    """Return the records of the page's example."""
    times = {"A": (8, 0.2, 0.7, 0.35), "B": (3, 0.1, 0.2, 0.2)}
    samples = []
    for name, (tokens, prefill, vanilla, fast) in times.items():
        more = {"prefill": prefill, "category": f"category {name}"}
        samples.append(sample(VANILLA, name, tokens, vanilla, **more))
        samples.append(sample(FAST, name, tokens, fast, **more, **STEPS[name]))
    return records(*samples)


def worked():
    """Return (field, sum, value) of each line of the page's example."""
    example = PAGE.read_text(encoding="utf-8").partition("## An example by hand")[2]
    return re.findall(r"^\| `(\w+)` \| ([\d+/(). ]+) \| ([\d.]+) \|$", example, re.MULTILINE)


def test_the_example_of_the_page_is_true():
    row = row_of(rows(example()))
    assert len(worked()) == 11
    for name, by_hand, value in worked():
        assert row[name] == pytest.approx(eval(by_hand)), name
        assert f"{row[name]:.2f}" == value


def test_every_field_of_the_page_is_in_a_row_and_none_is_left_out():
    fields = set(re.findall(r"^\| `(\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    row = row_of(rows(example()))
    assert fields <= row.keys()
    assert set(definitions([], NO_INTERVAL)) <= fields
    for name in fields - {"tokens_per_second"}:
        assert {f"{name}_low", f"{name}_high"} <= row.keys()


def figures(*samples):
    return definitions(samples, tokens_per_step(samples))


def fast(name, committed, drafted=None, **more):
    """Return a generation of these steps."""
    drafted = [3] * len(committed) if drafted is None else drafted
    steps = {"committed": committed, "drafted": drafted, "forwards": len(committed)}
    return sample(FAST, name, 1 + sum(committed), 1.0, **steps | more)


def test_every_figure_has_an_interval_in_which_prompts_are_drawn_whole():
    """The two turns of a prompt are opposite, so that prompts do not differ: no width."""
    turns = [
        fast(str(i), committed, turn=turn, category="ab"[i % 2])
        for i in range(8)
        for turn, committed in enumerate([[4, 4, 1], [1, 1, 1]])
    ]
    for name, interval in figures(*turns).items():
        assert interval.low == pytest.approx(interval.value), name
        assert interval.high == pytest.approx(interval.value), name


def test_no_interval_reaches_what_no_figure_can_be():
    """One prompt of five accepts, and hardly anything is committed beside it."""
    samples = [
        sample(
            FAST, f"{i}", 10, 1.0, committed=[2 if not i else 1] * 4, drafted=[1] * 4, forwards=4
        )
        for i in range(5)
    ]
    table = definitions(samples, tokens_per_step(samples))
    assert tokens_per_step(samples).low == 1.0
    assert table["accepted_per_step"].low == 0.0
    assert table["acceptance_rate"] == pytest.approx((0.2, 0.0, table["acceptance_rate"].high))
    assert table["acceptance_rate"].high <= 1


def test_categories_weigh_the_same():
    samples = [fast(str(i), [2], category="often") for i in range(9)]
    samples.append(fast("9", [4], category="rare"))
    found = figures(*samples)
    assert found["tokens_per_step_requests"].value == pytest.approx(2.2)
    assert found["tokens_per_step_categories"].value == pytest.approx(3.0)


@pytest.mark.parametrize("categories", [("", "a"), ("a", "a"), ("", "")])
def test_without_several_categories_there_is_no_mean_of_them(categories):
    samples = [fast(str(i), [2], category=name) for i, name in enumerate(categories)]
    assert figures(*samples)["tokens_per_step_categories"] is NO_INTERVAL


def test_what_is_not_known_is_no_figure():
    """A foreign engine tells no steps, vanilla drafts nothing, an answer of one step has no other
    than its last.
    """
    foreign = sample(FAST, "a", 8, 1.0)
    assert all(value != value for value, _, _ in figures(foreign).values())
    vanilla = fast("a", [1, 1], drafted=[0, 0])
    found = figures(vanilla)
    assert found["acceptance_rate"] is found["tokens_per_drafting_step"] is NO_INTERVAL
    assert found["accepted_per_step"].value == 0
    assert figures(fast("a", [3]))["tokens_per_step_without_last"] is NO_INTERVAL


def test_steps_that_share_a_forward_are_one_step():
    shared = replace(fast("a", [2, 2, 1]), forwards=2)
    assert figures(shared)["tokens_per_step_without_last"].value == 2
    assert tokens_per_step([shared]).value == 2.5


def test_decode_speeds_count_decoded_tokens():
    """A tie that changes the length shows the prefill's token."""
    samples = [sample(VANILLA, "a", 10, 0.9), sample(FAST, "a", 4, 0.2)]
    row = row_of(rows(records(*samples)))
    assert decoded(samples[0]) == 9
    assert row["speedup"] == pytest.approx((0.9 / 9) / (0.2 / 3))
    assert row["speedup_end_to_end"] == pytest.approx((1.0 / 10) / (0.3 / 4))
    assert row["tokens_per_second"] == pytest.approx(3 / 0.2)


def test_spec_benchs_speedup_has_an_interval():
    samples = [sample(VANILLA, str(i), 10, 1.0) for i in range(8)]
    samples += [sample(FAST, str(i), 10, 0.4 + 0.05 * i) for i in range(8)]
    row = row_of(rows(records(*samples)))
    low, value, high = (row[f"speedup_spec_bench{end}"] for end in ("_low", "", "_high"))
    assert 1 < low < value < high < 2.5


def test_categories_are_those_of_the_data(tmp_path):
    card = tasks.load_card("mt_bench")
    bundled = tasks.load(card, "bundled", 1).questions[0]
    assert bundled.category == "writing"
    path = tmp_path / "question.jsonl"
    row = {"question_id": 81, "category": "roleplay", "turns": ["One?", "Two?"]}
    path.write_text(json.dumps(row) + "\n")
    (of_spec_bench,) = tasks.load(card, f"spec-bench={path}", None).questions
    assert of_spec_bench.category == "roleplay"
    path.write_text(json.dumps({"turns": ["One?"], "category": 3}) + "\n")
    (other,) = tasks.load(card, str(path), None).questions
    assert other.category == ""
