"""Whether a drafter is asked again."""

import pytest

from fspad_bench.drafts.asking import FADING, LOOKING, Habit


def test_one_that_was_never_asked_is_due_whatever_it_costs():
    assert Habit().is_due(1e9)


def test_looking_takes_a_small_share_of_the_time():
    habit = Habit()
    habit.note([0.1])
    assert habit.is_due(0.0)
    asked = 0
    for _ in range(1000):
        if habit.is_due(0.5):
            habit.note([0.1])
            habit.wait(1.0, asked=True)
            asked += 1
        else:
            habit.wait(1.0, asked=False)
    assert asked * 0.5 == pytest.approx(1000 * LOOKING, rel=0.05)


def test_what_is_usual_is_the_mean_of_the_first_and_then_fades():
    habit = Habit()
    habit.note([0.2, 0.8])
    assert habit.usual == [0.8, 0.2]
    habit.note([])
    assert habit.latest == []
    assert habit.usual == pytest.approx([0.4, 0.1])
    habit.note([0.5, 1.0, 0.5])
    assert habit.latest == [1.0, 0.5, 0.5]
    assert habit.usual == pytest.approx([1.8 / 3, 0.7 / 3, 0.5 / 3])
    for _ in range(20):
        habit.note([0.3])
    assert habit.usual[0] == pytest.approx(0.3, abs=0.05)
    before = habit.usual[0]
    habit.note([1.0])
    assert habit.usual[0] == pytest.approx(FADING * before + 1 - FADING)
