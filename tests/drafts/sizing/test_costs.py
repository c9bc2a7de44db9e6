"""What a round costs is measured once and then known."""

import json
from time import sleep

import pytest
from doubles import random_model

from fspad_bench.core.loop import Context
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, TINY, Costs
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util.machine import NOISY, Load, cores


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(Load, "others", lambda self: 0.0)
    monkeypatch.setattr(costs, "_measured", {})
    return TransformersTarget(
        random_model("llama", max_position_embeddings=1024), tiny_tokenizer(), "other", "abc"
    )


def always(first, level):
    """A draft that costs the same behind any prefix."""
    return lambda prefixes: [(first, level)] * len(prefixes)


def kept(folder):
    return [json.loads(path.read_text())["key"] for path in (folder / "costs").glob("*.json")]


def test_costs_are_measured_once_and_again_on_demand(target, tmp_path, monkeypatch):
    far = target.max_length - LARGEST_TREE
    drafts = {NEAR: (0.5, 0.25), far: (0.5 + (far - NEAR) * 1e-3, 0.2)}
    first = costs.of(target, {"head": "x"}, lambda prefixes: [drafts[n] for n in prefixes])
    assert len(first.verify) == len(SIZES)
    assert min(first.verify) > 0
    assert (first.first, first.level) == (0.5, 0.25)
    assert first.draft_longer == (pytest.approx(1e-3), 0.0)
    told = [(key["target"], key["prefixes"], key.get("head")) for key in kept(tmp_path)]
    assert sorted(told, key=str) == [("abc", [NEAR, far], head) for head in ("x", None)]
    assert costs.of(target, {"head": "x"}, pytest.fail) == first
    costs._measured.clear()  # as another process would begin
    assert costs.of(target, {"head": "x"}, pytest.fail) == first
    costs._measured.clear()
    monkeypatch.setenv("FSPAD_BENCH_COSTS", "new")
    assert costs.of(target, {"head": "x"}, always(0.75, 0.5)).first == 0.75
    assert costs.of(target, {"head": "x"}, pytest.fail).first == 0.75


def test_a_shape_for_all_rounds_is_not_asked_what_it_costs_behind_long_prompts(target, tmp_path):
    costs.of(target, {}, always(0.5, 0.25), everywhere=False)
    assert [key["prefixes"] for key in kept(tmp_path)] == [[NEAR]] * 2


def test_what_other_code_cost_is_not_known_of_this(target, monkeypatch):
    costs.of(target, {}, always(0.5, 0.25))
    monkeypatch.setattr(type(target.lean.parts), "signature", "other", raising=False)
    assert costs.of(target, {}, always(0.25, 0.25)).first == 0.25


def test_what_was_measured_beside_other_work_is_not_kept(target, monkeypatch, capsys):
    with monkeypatch.context() as busy:
        busy.setattr(Load, "others", lambda self: 1.01 * NOISY * cores())
        costs.of(target, {}, always(0.5, 0.25))
        assert costs.of(target, {}, pytest.fail).first == 0.5  # but for this process
    costs._measured.clear()
    assert "not kept" in capsys.readouterr().err
    assert costs.of(target, {}, always(0.25, 0.25)).first == 0.25
    assert "not kept" not in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_costs_the_next_run_time(target, tmp_path, capsys):
    (tmp_path / "costs").write_text("in the way of the folder")
    assert costs.of(target, {}, always(0.5, 0.25)).first == 0.5
    assert "FSPAD_BENCH_CACHE" in capsys.readouterr().err


def test_another_draft_has_costs_of_its_own(target, tmp_path):
    first = costs.of(target, {"head": "x"}, always(0.5, 0.25))
    second = costs.of(target, {"head": "y"}, always(0.75, 0.25))
    assert (first.first, second.first) == (0.5, 0.75)
    assert first.verify == second.verify  # measured once


def test_another_release_measures_anew(target, tmp_path, monkeypatch):
    costs.of(target, {}, always(0.5, 0.25))
    monkeypatch.setattr(costs, "__version__", "later")
    assert costs.of(target, {}, always(0.25, 0.25)).first == 0.25


def test_tests_do_not_depend_on_the_machine(tiny):
    assert costs.of(tiny, {}, pytest.fail) == TINY


def test_larger_trees_cost_in_proportion_beyond_the_largest_measured():
    made = Costs(tuple(float(n) for n in SIZES), 0, 0)
    assert made.forward(128) == pytest.approx(128)


def test_a_round_is_timed_beside_its_forward_and_leaves_the_cache_as_it_was(target):
    steps = []
    scores = target.prefill([1, 2, 3], 64)
    context = Context([1, 2, 3, int(scores.logits[-1].argmax())], 3, Sampler())
    length, score = target.length, target.score

    def scored(tree):
        steps.append("forward")
        sleep(0.03)
        return score(tree)

    target.score = scored
    turn = context, lambda: Tree.chain(context.tokens[-1], [5, 6])
    seconds = costs.beside_forward(target, [turn] * 2, match)
    assert 0 < min(seconds) <= max(seconds) < 0.03
    assert len(steps) == 2 * (costs.WARM + costs.TURNS)
    assert (target.length, target.pending) == (length, 0)


def test_every_forward_that_is_timed_stands_behind_its_prefix(target):
    lengths, score = [], target.score
    target.score = lambda tree: lengths.append((target.length, len(tree))) or score(tree)
    assert len(costs.forward_seconds(target, [(1, 20), (3, 40), (3, 20)])) == 3
    assert lengths == [(20, 1), (40, 3), (20, 3)] * (costs.WARM + costs.TURNS)


def test_no_forward_costs_more_than_a_larger_one(target, monkeypatch):
    clock = {n: float(n) for n in SIZES} | {4: 40.0, 6: 30.0}
    monkeypatch.setattr(
        costs,
        "forward_seconds",
        lambda target, cases: [clock[n] + tokens / 1e9 for n, tokens in cases],
    )
    found = costs.of(target, {}, always(0.5, 0.25)).verify
    assert list(found) == sorted(found)
    assert found[SIZES.index(4)] == found[SIZES.index(6)] == 8.0 + NEAR / 1e9


def test_those_that_take_turns_lose_one_each_to_a_busy_moment(tiny):
    log = []
    runs = [lambda: log.append("a"), lambda: log.append("b")]
    assert len(costs.best_of(runs, tiny)) == 2
    assert log == ["a", "b"] * (costs.WARM + costs.TURNS)


def test_the_quickest_turn_counts_but_no_warm_up():
    seconds = iter([0.1, 9.0, 0.1, 9.0, *[3.0, 5.0] * (costs.TURNS - 1), 2.0, 4.0])
    assert costs._quickest(lambda run: next(seconds), ["a", "b"]) == [2.0, 4.0]


def test_a_context_too_short_to_tell_a_slope_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(costs, "_measured", {})
    model = random_model("llama", max_position_embeddings=costs.NEAR + LARGEST_TREE + 1)
    target = TransformersTarget(model, tiny_tokenizer(), "other", "abc")
    found = costs.of(target, {}, always(0.5, 0.25))
    assert {*found.longer, *found.draft_longer} == {0.0}


def test_a_slow_target_is_measured_less_often(tiny, monkeypatch):
    monkeypatch.setattr(costs, "PATIENCE", 0.05)
    log = []

    def slow():
        log.append(sleep(0.03))

    (seconds,) = costs.best_of([slow], tiny)
    assert len(log) == costs.WARM + 2
    assert seconds >= 0.03
