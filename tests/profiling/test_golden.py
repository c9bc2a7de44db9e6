"""Golden acceptance lengths: read, and replayed by the schedule that engines take."""

import pytest
from doubles import LinearForwards

from fspad_bench.profiling.cost_models import Overhead
from fspad_bench.profiling.golden import Curve, golden_speedup, read_golden, schedule, selected
from fspad_bench.util.errors import BenchError


def test_a_length_is_replayed_with_the_smallest_variance():
    assert schedule(3.78, 7) == pytest.approx([1, 1, 0.78, 0, 0, 0, 0])
    assert schedule(1.0, 3) == [0, 0, 0]
    assert schedule(4.0, 3) == [1, 1, 1]


def test_the_speedup_of_a_length_is_its_tokens_over_what_a_step_costs():
    speedup = golden_speedup(2.5, 3, LinearForwards(), Overhead(0.1, 0.2), prefix=500)
    assert speedup == pytest.approx(2.5 * (1.5 + 0.2) / (4.5 + 0.3 + 0.2))


def test_a_golden_file_is_read_by_model_and_mode(tmp_path):
    path = tmp_path / "golden.yaml"
    path.write_text(
        "_metadata: {draft-model: d}\nm3:\n  thinking_on:\n    1: 1.79\n    2: 2.39\n"
        "  thinking_off: {3: 2}\nq3: {thinking_on: {7: 3.67}}\n"
    )
    curves = read_golden(path)
    assert [(c.model, c.mode, c.lengths) for c in curves] == [
        ("m3", "thinking_on", {1: 1.79, 2: 2.39}),
        ("m3", "thinking_off", {3: 2}),
        ("q3", "thinking_on", {7: 3.67}),
    ]
    assert [curve.model for curve in selected(curves, "q3")] == ["q3"]
    with pytest.raises(BenchError, match="no curve of 'q4'"):
        selected(curves, "q4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "holds no golden acceptance lengths"),
        ("_metadata: {a: 1}", "holds no golden acceptance lengths"),
        ("m: 3", "m has no modes"),
        ("m: {on_: {}}", "is no curve"),
        ("m: {thinking: {x: 1.5}}", "'x' is no number of drafted tokens"),
        ("m: {thinking: {0: 1.0}}", "0 is no number of drafted tokens"),
        ("m: {thinking: {2: 3.5}}", "3.5 tokens per step with 2 drafted"),
        ("m: {thinking: {2: .nan}}", "nan tokens per step"),
        ("m: {thinking: {2: true}}", "True tokens per step"),
        ("m: [", "cannot read"),
    ],
)
def test_what_is_no_golden_file_is_refused(tmp_path, content, message):
    path = tmp_path / "golden.yaml"
    path.write_text(content)
    with pytest.raises(BenchError, match=message):
        read_golden(path)


def test_curves_of_one_model_and_mode_are_told_apart():
    assert Curve("m", "on", {1: 1.5}) != Curve("m", "on", {1: 1.5})
