"""Bad input of a run, and failures within it."""

import sys
import weakref
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from runs import LOOKUP, ME, plan_of, row_of, run, unfinished, write

from fspad_bench.benchmark import evidence
from fspad_bench.benchmark.guards import prefill
from fspad_bench.benchmark.guards.state import StateGuard
from fspad_bench.benchmark.rows import failed, rows
from fspad_bench.benchmark.runner import Runner
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.session import Session
from fspad_bench.util.errors import BenchError

pytestmark = pytest.mark.usefixtures("one_target")

WARM_UPS = 4  # two prompts, two decoders, one temperature


# bad input


@pytest.mark.parametrize(
    ("decoders", "changes", "message", "hint"),
    [
        ([LOOKUP, f"{LOOKUP}=vanilla"], {}, f"two decoders are called '{LOOKUP}'", "other=DECODER"),
        (["fspda"], {}, "unknown decoder 'fspda'", "did you mean 'fspad'?"),
        (["fspad@papper"], {}, "fspad has no preset 'papper'", "did you mean 'paper'?"),
        ([f"{ME}:Headed@paper"], {}, f"{ME}:Headed has no preset 'paper'", "none are known"),
        (
            [LOOKUP],
            {"options": {LOOKUP: {"lenght": "3"}}},
            "no option 'lenght'",
            "did you mean 'length'?",
        ),
        ([LOOKUP], {"options": {LOOKUP: {"length": "x"}}}, "length=x is not an integer", "number"),
        (
            [LOOKUP],
            {"options": {"prompt_lokup": {"length": "3"}}},
            "prompt_lokup",
            "did you mean 'prompt_lookup'?",
        ),
        (
            [LOOKUP],
            {"options": {"eagle": {"depth": "3"}}},
            "this run has no decoder 'eagle'",
            "known:",
        ),
        ([LOOKUP], {"options": {LOOKUP: {"length": "0"}}}, "1 <= length", "defaults"),
        ([LOOKUP], {"options": {LOOKUP: {"length": "200"}}}, "length < 128", "defaults"),
        ([LOOKUP], {"options": {LOOKUP: {"ngram": "1000000000"}}}, "ngram <= 64", "defaults"),
        (["fspad"], {"options": {"fspad": {"head": "~nosuchuser/x"}}}, "~nosuchuser/x", "train"),
        ([], {"tasks": ["~nosuchuser/x.yaml"]}, "cannot read ~nosuchuser/x.yaml", ""),
        ([], {"data": "~nosuchuser/x.jsonl"}, "no such data file: ~nosuchuser", "path"),
        ([f"{ME}:Useless"], {}, "is not a decoder", "propose"),
        ([f"{ME}:Gone"], {}, f"cannot load '{ME}:Gone'", "name"),
        ([], {"tasks": ["gsmk8"]}, "unknown task 'gsmk8'", "did you mean 'gsm8k'?"),
        ([], {"temperatures": [0.0, -1.0]}, "temperature -1.0", "0"),
        ([], {"temperatures": [float("nan")]}, "temperature nan", "0"),
        ([], {"top_p": 0.0}, "top-p 0.0", "above 0"),
        ([], {"top_p": 1.5}, "top-p 1.5", "at most"),
        ([], {"top_k": -1}, "top-k -1", "0 for no cut"),
        ([], {"min_p": 1.5}, "min-p 1.5", "from 0 to 1"),
        ([], {"repetition_penalty": 0.0}, "repetition-penalty 0.0", "1e-06 to 1e+06"),
        ([], {"presence_penalty": float("nan")}, "presence-penalty nan", "-1e+06 to 1e+06"),
        ([f"{ME}:Foreign"], {"presence_penalty": 1.0}, "an engine of its own", "leave it out"),
        ([f"{ME}:Foreign"], {"min_p": 0.1}, "takes no penalties and no min-p", "leave it out"),
        ([], {"data": "gone.jsonl"}, "no such data file", "path"),
        ([], {"max_new_tokens": 8192}, "no prompt fits", "--max-new-tokens"),
    ],
)
def test_every_mistake_shows_before_anything_is_written(
    data, tmp_path, calls, decoders, changes, message, hint
):
    output = tmp_path / "out"
    with pytest.raises(BenchError) as caught:
        Runner(plan_of(data, *decoders, **changes), output).run()
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert not output.exists()
    assert not calls


def test_an_answer_that_cannot_be_scored_shows_before_anything_is_written(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "q", "answer": "I do not know"}\n')
    with pytest.raises(BenchError, match="I do not know"):
        Runner(plan_of(path), tmp_path / "out")


# failures


@pytest.mark.parametrize("always", ["false", "true"])
def test_a_decoder_that_raises_leaves_the_others_alone(data, tmp_path, capsys, monkeypatch, always):
    monkeypatch.setattr(prefill, "FEWEST", 99)  # so that no busy machine takes a speedup away
    label = f"{ME}:Raises"
    _, records = run(
        plan_of(data, label, LOOKUP, options={label: {"always": always}}), tmp_path / "out"
    )
    table = rows(records)
    broken = row_of(records, label)
    assert broken["errors"] == (5 if always == "true" else 1)
    assert broken["verdict"] == ("unverified" if always == "true" else "exact")
    assert failed(table)
    for decoder in ("vanilla", LOOKUP):
        row = row_of(records, decoder)
        assert (row["verdict"], row["samples"], row["errors"]) == ("exact", 5, 0)
        assert row["speedup"] is not None
    assert {s.error for s in records.samples} == {"", "ZeroDivisionError: nine"}
    err = capsys.readouterr().err
    assert err.count("Traceback") == 1
    assert err.count(f"{label}: ") == broken["errors"]
    assert err.count("ZeroDivisionError: nine (as above)") == broken["errors"] - 1
    assert records.complete


def unallocatable():
    torch.empty(1 << 60, dtype=torch.uint8)  # a CPU's allocator raises a plain RuntimeError


def no_memory():
    raise MemoryError


def no_device_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 byte")


class Full(Vanilla):
    """A decoder that runs out of memory on prompts with the character '9'."""

    where = "propose"
    fail = staticmethod(no_memory)
    held: ClassVar[list] = []

    def _go(self, context, where):
        room = torch.empty(10)
        self.held.append(weakref.ref(room))
        if where == self.where and 25 in context.tokens[: context.prompt_length]:
            self.cycle = lambda: room
            self.fail()

    def begin(self, context, scores):
        self._go(context, "begin")

    def propose(self, context, budget):
        self._go(context, "propose")
        return super().propose(context, budget)

    def observe(self, step):
        self.cycle = None
        self._go(step.context, "observe")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("where", "fail", "kind"),
    [
        ("begin", no_memory, "MemoryError"),
        ("propose", unallocatable, "RuntimeError: "),
        ("observe", no_device_memory, "OutOfMemoryError: CUDA out of memory. Tried"),
    ],
)
def test_a_decoder_that_runs_out_of_memory_leaves_the_others_alone(
    tmp_path, monkeypatch, where, fail, kind
):
    monkeypatch.setitem(sys.modules, "failing", SimpleNamespace(Full=Full))
    monkeypatch.setattr(Full, "where", where)
    monkeypatch.setattr(Full, "fail", staticmethod(fail))
    label = "failing:Full"
    plan = plan_of(write(tmp_path, ["One?", "9?", "Three?"]), label, LOOKUP)
    _, records = run(plan, tmp_path / "out")
    (error,) = {sample.error for sample in records.samples if sample.error}
    assert error.startswith(f"out of memory: {kind}")
    row = row_of(records, label)
    assert (row["errors"], row["samples"], row["verdict"]) == (1, 2, "exact")
    for decoder in ("vanilla", LOOKUP):
        row = row_of(records, decoder)
        assert (row["errors"], row["samples"], row["verdict"]) == (0, 3, "exact")
    assert not any(reference() is not None for reference in Full.held)


def test_the_target_running_out_of_memory_is_the_error_of_that_generation(tmp_path, monkeypatch):
    """Vanilla's first turn fails: what follows it has no context, and the next question does."""
    real = Session.prefill

    def prefill(self, tokens):
        if 25 in tokens:
            unallocatable()
        return real(self, tokens)

    monkeypatch.setattr(Session, "prefill", prefill)
    _, records = run(plan_of(write(tmp_path, ["9?", "Two?"]), LOOKUP), tmp_path / "out")
    assert {s.error[:29] for s in records.samples if s.sample == "q0"} == {
        "out of memory: RuntimeError: "
    }
    assert [s.error for s in records.samples if s.sample == "q1"] == ["", ""]


def test_evidence_that_no_memory_is_left_for_ends_no_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "distributions", lambda *_: no_memory())
    label = f"{ME}:Own"
    plan = plan_of(data, label, LOOKUP, temperatures=[1.0], limit=2)
    path, records = run(plan, tmp_path / "out")
    assert records.complete
    assert row_of(records, label)["findings"] == [
        {
            "guard": "audit",
            "text": "the distribution of this output could not be tested: "
            "out of memory: MemoryError",
        }
    ]
    assert row_of(records, LOOKUP)["findings"] == []
    assert path.read_text().count('"kind": "finding"') == 1


def test_no_memory_for_asking_again_is_no_state(data, tmp_path, monkeypatch):
    monkeypatch.setattr(StateGuard, "_again", after_oom(StateGuard._again))
    _, records = run(plan_of(data, LOOKUP), tmp_path / "out")
    assert row_of(records, LOOKUP)["findings"] == []


def after_oom(again):
    def asked(self, decoder, question):
        broken = SimpleNamespace(generate=lambda *_: no_memory())
        return again(self, broken, question)

    return asked


def test_a_failure_is_not_repeated(data, tmp_path, calls, monkeypatch):
    plan = plan_of(data, f"{ME}:Raises")
    unfinished(plan, tmp_path / "out", monkeypatch)
    calls.clear()
    _, records = run(plan, tmp_path / "out")
    assert not calls
    assert row_of(records, f"{ME}:Raises")["errors"] == 1


def test_a_prompt_that_is_too_long_is_an_error_of_its_sample(tmp_path):
    data = write(tmp_path, ["Short?", "Long? " * 1500, "Short again?"])
    _, records = run(plan_of(data, LOOKUP), tmp_path / "out")
    for decoder in ("vanilla", LOOKUP):
        row = row_of(records, decoder)
        assert (row["errors"], row["samples"], row["verdict"]) == (1, 2, "exact")
    (error,) = {s.error for s in records.samples if s.error}
    assert "exceed the context of 8192" in error
    assert failed(rows(records))


def test_a_second_turn_that_is_too_long_is_an_error_of_that_turn(tmp_path):
    data = write(tmp_path, ["unused"], turns=["First?", "Long? " * 1500])
    _, records = run(plan_of(data, LOOKUP), tmp_path / "out")
    assert [(s.turn, bool(s.error)) for s in records.samples] == [(0, False)] * 2 + [(1, True)] * 2


def test_a_task_without_a_prompt_that_fits_is_bad_input(tmp_path, calls):
    data = write(tmp_path, ["Long? " * 1500, "Longer? " * 1500])
    with pytest.raises(
        BenchError, match="no prompt fits: with its new tokens the shortest takes 90"
    ) as caught:
        run(plan_of(data, LOOKUP), tmp_path / "out")
    assert "8192" in caught.value.message
    assert not (tmp_path / "out").exists()
    assert not calls


def test_turns_after_a_failure_of_vanilla_are_errors(tmp_path, monkeypatch, calls):
    """They have no context; they are not asked on top of an empty answer."""
    data = write(tmp_path, ["unused"], turns=["First?", "Second?", "Third?"])
    real = Vanilla.begin

    def begin(self, context, scores):
        if len(calls) > WARM_UPS:
            raise MemoryError("no room")
        real(self, context, scores)

    monkeypatch.setattr(Vanilla, "begin", begin)
    plan = plan_of(data, LOOKUP)
    _, records = run(plan, tmp_path / "out")
    assert len(calls) == WARM_UPS + 2
    errors = {(records.keys[s.key].decoder, s.turn): s.error for s in records.samples}
    skipped = "vanilla failed on turn 1: this turn has no context"
    assert errors == {
        ("vanilla", 0): "out of memory: MemoryError: no room",
        (LOOKUP, 0): "",
        ("vanilla", 1): skipped,
        ("vanilla", 2): skipped,
        (LOOKUP, 1): skipped,
        (LOOKUP, 2): skipped,
    }
    assert failed(rows(records))


def test_a_conversation_that_vanilla_broke_off_is_finished(tmp_path, monkeypatch, calls):
    data = write(tmp_path, ["unused"], turns=["Long? " * 1500, "Second?"])
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write('{"id": "short", "turns": ["Short?"], "answers": ["1"]}\n')
    plan = plan_of(data, LOOKUP)
    unfinished(plan, tmp_path / "out", monkeypatch)
    calls.clear()
    _, records = run(plan, tmp_path / "out")
    assert not calls
    assert row_of(records, LOOKUP)["errors"] == 2
