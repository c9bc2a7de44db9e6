"""Cheats against the guards: each is told in words, and honest decoders are not accused."""

import gc
import os
import sys

import pytest
import torch
from cheats import ME, Reader, Thief, stopping
from runs import LOOKUP, interrupt, plan_of, row_of, run, unfinished

from fspad_bench.benchmark import runner
from fspad_bench.benchmark.guards import state, watch
from fspad_bench.benchmark.guards.machine import MachineGuard
from fspad_bench.benchmark.record import Records, Sample
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import failed, rows
from fspad_bench.models.load import load_target
from fspad_bench.util.errors import BenchError

pytestmark = pytest.mark.usefixtures("one_target")

ASKED = state.ASKED


@pytest.fixture(autouse=True)
def prompts_are_asked_again(one_target, monkeypatch):
    """As many as in a run of a user's."""
    monkeypatch.setattr(state, "ASKED", ASKED)


@pytest.fixture
def own_target(monkeypatch):
    """Give the run a target of its own, which a cheat may spoil."""
    target = load_target("tiny")
    monkeypatch.setattr(runner, "load_target", lambda name, *, device, dtype: target)
    return target


def cheat(name, data, output, **changes):
    """Run one cheat. Returns the records, its row and the table."""
    label = f"{ME}:{name}"
    _, records = run(plan_of(data, label, **changes), output)
    return records, row_of(records, label), render(rows(records), "text")


def guards_of(row):
    return [finding["guard"] for finding in row["findings"]]


# D1: the prefill


def test_forwards_count_wherever_they_run(data, tmp_path):
    _, row, table = cheat("InThePrefill", data, tmp_path / "out", max_new_tokens=8)
    assert row["verdict"] == "exact"
    assert row["tokens_per_step"] < 1  # it decodes everything, and then verifies it
    assert row["speedup"] is row["speedup_low"] is None
    assert row["speedup_end_to_end"] < 1.5
    assert "full forwards ran before its decode clock started: no decode speedup" in table


def test_a_dear_prefill_takes_the_speedup_away(data, tmp_path):
    options = {f"{ME}:InThePrefill": {"counted": "false"}}
    _, row, table = cheat("InThePrefill", data, tmp_path / "out", max_new_tokens=6, options=options)
    assert row["verdict"] == "exact"
    assert row["tokens_per_step"] == 5  # no counter has seen the forwards
    assert row["speedup"] is None
    assert "times as long as vanilla's: no decode speedup is given" in table


# D2: the target


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("Rounded", "its weights (lm_head.weight)"),
        ("Shallow", "its layers"),
        ("Patched", "fspad_bench.engine.target.TransformersTarget.verifier"),
    ],
)
def test_a_constructor_that_changes_the_target_ends_the_run(
    name, changed, data, tmp_path, own_target, monkeypatch
):
    monkeypatch.setattr(type(own_target), "verifier", type(own_target).verifier)  # to be restored
    with pytest.raises(BenchError) as caught:
        cheat(name, data, tmp_path / "out")
    assert f"changed the target for every decoder while it was built: {changed}" in str(
        caught.value.message
    )
    assert not (tmp_path / "out").exists()


def test_a_target_that_changes_later_leaves_no_row_believed(data, tmp_path, own_target):
    records, row, table = cheat("Late", data, tmp_path / "out")
    assert {r["verdict"] for r in rows(records)} == {"unverified"}
    assert guards_of(row) == guards_of(row_of(records, "vanilla")) == ["target"]
    assert "the target was changed for every decoder: its weights (lm_head.weight)" in table
    assert failed(rows(records))


# D3: a foreign engine's word


def test_a_foreign_engines_claims_are_no_figures(data, tmp_path):
    _, row, table = cheat("Boaster", data, tmp_path / "out", max_new_tokens=21)
    assert row["verdict"] == "exact"
    assert row["speedup"] is row["tokens_per_step"] is row["tokens_per_second"] is None
    assert row["speedup_end_to_end"] < 2
    assert row["claimed_tokens_per_step"] == 10
    assert row["claimed_speedup"] > 3
    assert "it claims 10.00 tokens/step and a decode speedup of" in table


# D4: the answers of others


def test_no_answer_lies_about_as_an_object(data, tmp_path, monkeypatch):
    left = [thing for thing in gc.get_objects() if type(thing) is Sample]
    monkeypatch.setattr(Thief, "left", left)
    monkeypatch.setattr(Thief, "stolen", 0)
    _, row, _ = cheat("Thief", data, tmp_path / "out")
    assert (row["verdict"], Thief.stolen, row["tokens_per_step"]) == ("exact", 0, 1.0)


def test_files_that_are_not_declared_are_named(data, tmp_path, monkeypatch):
    secret = tmp_path / "answers.json"
    secret.write_text("[]")
    monkeypatch.setattr(Reader, "path", str(secret))
    records, row, table = cheat("Reader", data, tmp_path / "out")
    assert guards_of(row) == ["files"]
    assert f"it opened files that it does not declare: {secret}" in table
    assert not failed(rows(records))


def test_declared_files_are_not_named(data, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("")
    options = {f"{ME}:Declared": {"notes": str(notes)}}
    _, row, _ = cheat("Declared", data, tmp_path / "out", options=options)
    assert row["findings"] == []


# D5: state across prompts


def test_undeclared_state_is_told(data, tmp_path):
    _, row, table = cheat("Remembering", data, tmp_path / "out")
    assert guards_of(row) == ["state"]
    assert "prompts asked again got other drafts than before" in table


# D6: a rule that knows when it is watched


def test_outputs_that_were_timed_refute_a_wrong_rule(data, tmp_path):
    records, row, table = cheat(
        "Watched", data, tmp_path / "out", max_new_tokens=25, temperatures=[1.0]
    )
    assert row["verdict"] == "lossy"
    assert row["pit_p"] < 1e-6
    assert row["pit_tokens"] == row["tokens"]
    assert "shifts of" in table
    assert failed(rows(records))


# D7: the machine


def test_settings_are_restored_after_each_turn(data, tmp_path):
    threads = torch.get_num_threads()
    _, row, table = cheat("Disturbing", data, tmp_path / "out")
    assert torch.get_num_threads() == threads
    assert guards_of(row) == ["machine"]
    assert f"it left torch's CPU threads ({threads} to 3) changed" in table


def disturb(name):
    """Change one setting, as a decoder may."""
    match name:
        case "torch's default device":
            torch.set_default_device("meta")
        case "torch's default dtype":
            torch.set_default_dtype(torch.float16)
        case "torch's autocast":
            torch.set_autocast_enabled("cpu", True)
        case "garbage collection's thresholds":
            gc.set_threshold(1, 1, 1)
        case "Python's profiler":
            sys.setprofile(lambda *_: None)
        case "Python's recursion limit":
            sys.setrecursionlimit(sys.getrecursionlimit() + 7)
        case "the working directory":
            os.chdir("/")
        case "sys.stdout":
            sys.stdout = None


@pytest.mark.parametrize(
    "name",
    [
        "torch's default device",
        "torch's default dtype",
        "torch's autocast",
        "garbage collection's thresholds",
        "Python's profiler",
        "Python's recursion limit",
        "the working directory",
        "sys.stdout",
    ],
)
def test_each_setting_is_put_back_and_told(name):
    guard = MachineGuard()
    before = dict(guard.known)
    disturb(name)
    (told,) = guard.restore()
    assert told.startswith(f"{name} (")
    assert MachineGuard().known == before
    assert guard.restore() == []


def test_settings_that_an_import_changes_are_put_back(data, tmp_path, capsys, monkeypatch):
    source = "import torch\nfrom fspad_bench.decoders.vanilla import Vanilla as Mine\n"
    (tmp_path / "at_import.py").write_text(source + "torch.set_default_dtype(torch.float16)\n")
    monkeypatch.syspath_prepend(tmp_path)
    _, records = run(plan_of(data, "at_import:Mine"), tmp_path / "out")
    assert torch.get_default_dtype() == torch.float32
    assert "a decoder's import changed torch's default dtype" in capsys.readouterr().err
    assert row_of(records, "at_import:Mine")["findings"] == []


def test_a_thread_that_works_in_others_turns_is_other_load(data, tmp_path):
    with stopping():
        records, row, table = cheat("Busy", data, tmp_path / "out")
    assert "threads" in guards_of(row)
    assert "cores in the turns of others" in table
    assert row_of(records, "vanilla")["noisy"]


# honest decoders


def test_honest_decoders_are_not_accused(data, tmp_path, heads):
    options = {"fspad": {"head": str(heads["fspad"]), "nodes": "6", "tree": "fixed"}}
    _, records = run(plan_of(data, LOOKUP, "fspad", options=options), tmp_path / "out")
    assert [row["findings"] for row in rows(records)] == [[], [], []]
    assert [row["hidden_work"] for row in rows(records)] == [None] * 3
    assert {s.prefill_forwards for s in records.samples} == {1}


# an interrupted run


def test_what_an_interrupted_run_knows_is_recorded(data, tmp_path, own_target, monkeypatch):
    """The resumed run could not know it: its target is another one."""
    measure = runner.Runner._measure
    measured = []

    def stop_at_the_second(self, unit):
        if measured:
            raise KeyboardInterrupt
        measured.append(unit)
        measure(self, unit)

    label = f"{ME}:Late"
    plan = plan_of(data, label)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner.Runner, "_measure", stop_at_the_second)
        run(plan, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    row = row_of(Records.read(path), label)
    assert measured
    assert guards_of(row) == ["target"]
    assert row["verdict"] == "unverified"


def test_what_a_killed_process_knew_is_recorded(data, tmp_path, own_target, monkeypatch):
    """Without looking back: the target is looked at between prompts, files after each."""
    secret = tmp_path / "answers.json"
    secret.write_text("[]")
    monkeypatch.setattr(Reader, "path", str(secret))
    monkeypatch.setattr(watch, "SHARE", 1e9)
    monkeypatch.setattr(watch.Watch, "look_back", lambda *_: None)
    monkeypatch.setattr(watch.Watch, "finish", interrupt)
    labels = [f"{ME}:Late", f"{ME}:Reader"]
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(data, *labels), tmp_path / "out")
    records = Records.read(*(tmp_path / "out").glob("*.jsonl"))
    assert guards_of(row_of(records, labels[0])) == ["target"]
    assert guards_of(row_of(records, labels[1])) == ["target", "files"]


def test_a_resumed_run_tells_a_finding_once(data, tmp_path, monkeypatch):
    plan = plan_of(data, f"{ME}:Disturbing")
    unfinished(plan, tmp_path / "out", monkeypatch)
    path, records = run(plan, tmp_path / "out")
    assert guards_of(row_of(records, f"{ME}:Disturbing")) == ["machine"]
    assert path.read_text().count('"kind": "finding"') == 1


def test_a_run_killed_before_its_guards_asked_again_is_asked_when_it_is_resumed(
    data, tmp_path, monkeypatch
):
    plan = plan_of(data, f"{ME}:Remembering")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(watch.Watch, "finish", interrupt)
        run(plan, tmp_path / "out")
    _, records = run(plan, tmp_path / "out")
    assert guards_of(row_of(records, f"{ME}:Remembering")) == ["state"]
