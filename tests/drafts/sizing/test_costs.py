"""The costs of a step are measured once and then known."""

import json
from dataclasses import asdict

import pytest
import torch
from doubles import random_model

from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, TINY, Costs
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util import machine
from fspad_bench.util.errors import BenchError
from fspad_bench.util.machine import NOISY, Load, cores


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(Load, "others", lambda self: 0.0)
    monkeypatch.setattr(costs, "_measured", {})
    model = random_model("llama", max_position_embeddings=1024)
    return TransformersTarget(model, tiny_tokenizer(), "other", "abc")


@pytest.fixture
def timed(monkeypatch):
    """Let a forward cost a second, whatever is measured otherwise."""
    monkeypatch.setattr(
        costs, "_monotone", lambda target, prefixes: [1.0] * len(SIZES) * len(prefixes)
    )


def constant(overhead, per_level):
    """Return the measurement of a draft that costs the same at any prefix length."""
    return lambda prefixes: [(overhead, per_level)] * len(prefixes)


def keys_in(folder):
    files = (folder / "costs").glob("*.json")
    return [json.loads(path.read_text())["key"] for path in files]


def forget():
    """Forget what this process measured, as another process would start."""
    costs._measured.clear()


def test_costs_are_measured_once_and_again_on_demand(target, tmp_path, monkeypatch):
    far = target.max_length - LARGEST_TREE
    drafts = {NEAR: (0.5, 0.25), far: (0.5 + (far - NEAR) * 1e-3, 0.2)}
    first = costs.measure(target, {"head": "x"}, lambda prefixes: [drafts[n] for n in prefixes])
    assert len(first.forward) == len(SIZES)
    assert min(first.forward) > 0
    assert (first.overhead, first.per_level) == (0.5, 0.25)
    assert first.draft_per_token == (pytest.approx(1e-3), 0.0)
    keys = [(key["target"], key["prefixes"], key.get("head")) for key in keys_in(tmp_path)]
    assert sorted(keys, key=str) == [("abc", [NEAR, far], head) for head in ("x", None)]
    assert costs.measure(target, {"head": "x"}, pytest.fail) == first
    forget()
    assert costs.measure(target, {"head": "x"}, pytest.fail) == first
    forget()
    monkeypatch.setenv("FSPAD_BENCH_COSTS", "new")
    assert costs.measure(target, {"head": "x"}, constant(0.75, 0.5)).overhead == 0.75
    assert costs.measure(target, {"head": "x"}, pytest.fail).overhead == 0.75


def test_a_shape_for_all_steps_is_not_measured_at_long_prefixes(target, timed, tmp_path):
    costs.measure(target, {}, constant(0.5, 0.25), with_far=False)
    assert [key["prefixes"] for key in keys_in(tmp_path)] == [[NEAR]] * 2


def test_costs_of_other_compiled_code_are_not_taken(target, timed, monkeypatch):
    costs.measure(target, {}, constant(0.5, 0.25))
    monkeypatch.setattr(TransformersTarget, "signature", "other")
    assert costs.measure(target, {}, constant(0.25, 0.25)).overhead == 0.25


def test_costs_measured_while_other_work_goes_on_are_not_kept(target, timed, monkeypatch, capsys):
    with monkeypatch.context() as busy:
        busy.setattr(Load, "others", lambda self: 1.01 * NOISY * cores())
        costs.measure(target, {}, constant(0.5, 0.25))
        # this process goes on with them
        assert costs.measure(target, {}, pytest.fail).overhead == 0.5
    forget()
    assert "not kept" in capsys.readouterr().err
    assert costs.measure(target, {}, constant(0.25, 0.25)).overhead == 0.25
    assert "not kept" not in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_no_error(target, timed, tmp_path, capsys):
    (tmp_path / "costs").write_text("a file in the place of the folder")
    assert costs.measure(target, {}, constant(0.5, 0.25)).overhead == 0.5
    assert "FSPAD_BENCH_CACHE" in capsys.readouterr().err


def test_another_draft_has_costs_of_its_own(target):
    first = costs.measure(target, {"head": "x"}, constant(0.5, 0.25))
    second = costs.measure(target, {"head": "y"}, constant(0.75, 0.25))
    assert (first.overhead, second.overhead) == (0.5, 0.75)
    assert first.forward == second.forward  # measured once


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (costs, "source_hash", lambda: "edited"),
        (torch, "get_num_threads", lambda: 64),
        (torch, "__version__", "later"),
        (machine, "describe", lambda gpu="": "a processor with other instructions"),
        ("target", "identity", "other"),
        ("target", "files_sha256", "edited"),
        ("target", "dtype", torch.bfloat16),
        ("target", "forward_name", "stock"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_costs_are_of_all_that_they_depend_on(target, timed, monkeypatch, where, name, value):
    costs.measure(target, {}, constant(0.5, 0.25), with_far=False)
    monkeypatch.setattr(target if where == "target" else where, name, value)
    assert costs.measure(target, {}, constant(0.25, 0.25), with_far=False).overhead == 0.25


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"seconds": null}',
        '{"seconds": []}',
        '{"seconds": [0.5]}',
        '{"seconds": [0.5, 0.25, 0.1]}',
        '{"seconds": [0.5, NaN]}',
        '{"seconds": [0.5, Infinity]}',
        '{"seconds": [-0.5, 0.25]}',
        '{"seconds": [0, 0]}',
        '{"seconds": ["a", "b"]}',
        '{"seconds": [0.5, 1e400]}',
        '{"seconds": [0.5, 3601]}',
        '{"seconds": [0.5, 1' + 400 * "0" + "]}",
        '{"seconds": [true, 0.5]}',
        '{"seconds": {"0": 1, "1": 2}}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:30],
)
def test_damaged_costs_are_measured_anew(target, timed, tmp_path, content):
    first = costs.measure(target, {}, constant(0.5, 0.25), with_far=False)
    for path in (tmp_path / "costs").glob("*.json"):
        path.write_text(content)
    forget()
    assert costs.measure(target, {}, constant(0.5, 0.25), with_far=False) == first
    assert len(keys_in(tmp_path)) == 2  # whole again


@pytest.mark.parametrize("values", [[0.5, -1.0], [0.5, 4000.0], ["0.5", "0.5"], [0, 0], [0.5]])
def test_damaged_values_under_the_right_key_are_measured_anew(target, timed, tmp_path, values):
    costs.measure(target, {}, constant(0.5, 0.25), with_far=False)
    for path in (tmp_path / "costs").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": values}))
    forget()
    assert costs.measure(target, {}, constant(0.75, 0.25), with_far=False).overhead == 0.75


def test_costs_of_another_key_are_measured_anew(target, timed, tmp_path):
    costs.measure(target, {"head": "x"}, constant(0.5, 0.25), with_far=False)
    costs.measure(target, {"head": "y"}, constant(0.75, 0.25), with_far=False)
    paths = {
        json.loads(p.read_text())["key"].get("head"): p for p in (tmp_path / "costs").iterdir()
    }
    paths["x"].write_bytes(paths["y"].read_bytes())
    forget()
    measured = costs.measure(target, {"head": "x"}, constant(0.5, 0.25), with_far=False)
    assert measured.overhead == 0.5


@pytest.mark.parametrize("place", ["a folder", "a link to itself"])
def test_costs_whose_place_is_taken_are_measured_in_each_process(
    target, timed, tmp_path, place, capsys
):
    first = costs.measure(target, {}, constant(0.5, 0.25), with_far=False)
    for path in (tmp_path / "costs").glob("*.json"):
        path.unlink()
        if place == "a folder":
            path.mkdir()
        else:
            path.symlink_to(path)
    forget()
    assert costs.measure(target, {}, constant(0.5, 0.25), with_far=False).overhead == 0.5
    told = "not kept for the next run" in capsys.readouterr().err
    assert told == (place == "a folder")  # a link is replaced by a file
    assert first.overhead == 0.5


def test_tests_do_not_depend_on_the_machine(tiny):
    assert costs.is_tiny(tiny)
    assert costs.measure(tiny, {}, pytest.fail) == TINY


def test_another_target_of_that_name_has_costs_of_its_own(target):
    target.name = "tiny"
    assert not costs.is_tiny(target)


def test_larger_trees_cost_in_proportion_beyond_the_largest_measured():
    linear = Costs(tuple(float(n) for n in SIZES), 0, 0)
    assert linear.forward_seconds(128) == pytest.approx(128)


def test_no_forward_costs_more_than_a_larger_one(target, monkeypatch):
    clock = {n: float(n) for n in SIZES} | {4: 40.0, 6: 30.0}
    monkeypatch.setattr(
        costs,
        "forward_seconds",
        lambda target, cases: [clock[n] + prefix / 1e9 for n, prefix in cases],
    )
    forward = costs.measure(target, {}, constant(0.5, 0.25)).forward
    assert list(forward) == sorted(forward)
    assert forward[SIZES.index(4)] == forward[SIZES.index(6)] == 8.0 + NEAR / 1e9


def test_a_context_too_short_to_tell_a_slope_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(costs, "_measured", {})
    model = random_model("llama", max_position_embeddings=costs.NEAR + LARGEST_TREE + 1)
    target = TransformersTarget(model, tiny_tokenizer(), "other", "abc")
    measured = costs.measure(target, {}, constant(0.5, 0.25))
    assert {*measured.forward_per_token, *measured.draft_per_token} == {0.0}


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [1.0],
        {},
        asdict(TINY) | {"forward": [1.0]},
        asdict(TINY) | {"forward": ["1.0"] * len(SIZES)},
        asdict(TINY) | {"overhead": None},
        asdict(TINY) | {"per_level": float("nan")},
        asdict(TINY) | {"draft_per_token": 5},
        asdict(TINY) | {"overhead": 10**400},
        asdict(TINY) | {"per_level": -0.1},
        asdict(TINY) | {"forward": [0.0] * len(SIZES)},
        asdict(TINY) | {"overhead": True},
        asdict(TINY) | {"more": 1.0},
    ],
)
def test_recorded_costs_that_are_none_are_one_clear_error(facts):
    assert Costs.of(json.loads(json.dumps(asdict(TINY)))) == TINY
    with pytest.raises(BenchError, match="the recorded costs of trees are damaged: "):
        Costs.of(facts)
