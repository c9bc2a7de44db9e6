"""Interrupted runs continue where they stopped, and lose nothing."""

import os
from collections import Counter

import pytest
from runs import (
    LOOKUP,
    ME,
    QUESTIONS,
    Costly,
    foreign,
    interrupt,
    plan_of,
    row_of,
    run,
    tokens_of,
    unfinished,
    write,
)

from fspad_bench.benchmark import record, resume, runner, tasks
from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.benchmark.recorded_costs import recorded_costs
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.runner import Runner
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.costs import SIZES, Costs
from fspad_bench.util import provenance
from fspad_bench.util.errors import BenchError

pytestmark = pytest.mark.usefixtures("one_target")


def after(count, function):
    """Return `function` with a Ctrl-C in its call number `count`."""
    left = [count]

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped


PLACES = [
    (PromptLookup, "begin", 3),  # in the warm-up
    (PromptLookup, "begin", 5),
    (PromptLookup, "begin", 9),
    (PromptLookup, "begin", 14),
    (RecordFile, "add", 1),
    (RecordFile, "add", 2),
    (RecordFile, "add", 3),
    (RecordFile, "add", 8),
    (RecordFile, "line", 1),
    (RecordFile, "line", 2),
    (RecordFile, "end", 1),
    (Runner, "_score", 1),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny):
    """The tokens of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "load_target", lambda *_, **__: tiny)
        plan = plan_of(write(folder, QUESTIONS), LOOKUP, temperatures=[0.0, 1.0])
        return tokens_of(run(plan, folder / "out")[1])


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("where", "name", "count"), PLACES)
def test_an_interrupted_run_continues_where_it_stopped(
    uninterrupted, data, tmp_path, calls, monkeypatch, where, name, count
):
    plan = plan_of(data, LOOKUP, temperatures=[0.0, 1.0])
    output = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, name, after(count, getattr(where, name)))
        run(plan, output)
    before = Records.read(*output.glob("*.jsonl"))
    done = {(s.key, s.sample) for s in before.samples}
    calls.clear()
    path, records = run(plan, output)
    assert list(output.glob("*.jsonl")) == [path]
    assert records.complete
    assert tokens_of(records) == uninterrupted
    measured = [call for call in calls if call.stream != "warm-up"]
    finished = Counter((before.keys[key].temperature, name) for key, name in done)
    assert len(measured) == 2 * (10 - sum(count == 2 for count in finished.values()))
    assert [row["samples"] for row in rows(records)] == [5] * 4
    assert all(row["speedup"] is not None and row["verdict"] == "exact" for row in rows(records))


def test_an_interruption_within_the_audit_does_not_lose_it(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Auditor, "audit", after(2, Auditor.audit))
        foreign(data, tmp_path / "out", "other")
    records, row = foreign(data, tmp_path / "out", "other")
    assert (row["verdict"], row["divergences"]) == ("lossy", 5)
    assert len({(a.sample, a.round) for a in records.audits}) >= 5


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"version": "9"}, "version"),
        ({"packages": {"torch": "9"}}, "set of packages"),
        ({"commit": "another"}, "commit"),
        ({"source_sha256": "another"}, "source"),
    ],
)
def test_other_software_begins_another_record(data, tmp_path, monkeypatch, capsys, change, name):
    """Otherwise a row would hold the tokens and times of two programs."""
    unfinished(plan_of(data, LOOKUP), tmp_path / "out", monkeypatch)
    (first,) = (tmp_path / "out").glob("*.jsonl")
    origin = provenance.provenance()
    with monkeypatch.context() as patch:
        patch.setattr(resume, "__version__", change.get("version", resume.__version__))
        patch.setattr(provenance, "provenance", lambda: origin | change)
        second, records = run(plan_of(data, LOOKUP), tmp_path / "out")
    assert second != first
    assert records.complete
    assert not Records.read(first).complete
    note = f"not resuming {first}: it was begun with another {name}"
    assert note in capsys.readouterr().err


@pytest.mark.sampled(2)
@pytest.mark.parametrize("schema", [1, record.SCHEMA + 1])
def test_a_record_of_another_schema_is_not_resumed(data, tmp_path, monkeypatch, capsys, schema):
    with monkeypatch.context() as patch:
        patch.setattr(record, "SCHEMA", schema)
        patch.setattr(resume, "SCHEMA", schema)
        unfinished(plan_of(data, LOOKUP), tmp_path / "out", monkeypatch)
    (first,) = (tmp_path / "out").glob("*.jsonl")
    before = first.read_bytes()
    second, records = run(plan_of(data, LOOKUP), tmp_path / "out")
    assert second != first
    assert records.complete
    assert f"not resuming {first}: it was begun with another schema" in capsys.readouterr().err
    assert first.read_bytes() == before


def test_a_run_leaves_no_lock_file(data, tmp_path):
    path, _ = run(plan_of(data), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [path]


def test_a_record_that_another_run_writes_is_one_clear_error(data, tmp_path, monkeypatch):
    unfinished(plan_of(data), tmp_path / "out", monkeypatch)
    (path,) = (tmp_path / "out").glob("*.jsonl")
    other = RecordFile.reopen(path)
    with pytest.raises(BenchError, match=f"another run is writing {path}"):
        run(plan_of(data), tmp_path / "out")
    other.release()
    _, records = run(plan_of(data), tmp_path / "out")
    assert records.complete


def test_trees_are_sized_by_the_costs_that_the_record_began_with(data, tmp_path, monkeypatch):
    plan = plan_of(data, "fspad", options={"fspad": {"tree": "auto"}})
    dear = Costs(tuple(50.0 * n for n in SIZES), 9.0, 9.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(costs, "TINY", dear)
        patch.setattr(Fspad, "begin", after(5, Fspad.begin))
        run(plan, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    resumed = Runner(plan, tmp_path / "out")
    drafter = resumed.decoders[1].drafter
    assert drafter.policies is None  # nothing is measured before the run
    assert resumed.run() == path
    assert drafter.policies[True].costs == drafter.policies[False].costs == dear
    assert len([line for line in lines(path) if line["kind"] == "costs"]) == 1


def test_costs_of_a_decoder_that_cannot_take_others_are_written_once(data, tmp_path, monkeypatch):
    plan = plan_of(data, f"{ME}:Costly")
    output = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Costly, "begin", after(5, Costly.begin))
        run(plan, output)
    path, records = run(plan, output)
    assert records.complete
    ((decoder, origin),) = records.costs
    assert (decoder, len(origin)) == (f"{ME}:Costly", 16)
    assert records.costs[decoder, origin] == {"greedy": {"first": 1.0}}
    own = [recorded_costs(records, key) for key in records.keys.values() if key.decoder == decoder]
    assert own == [records.costs[decoder, origin]]
    assert len([line for line in lines(path) if line["kind"] == "costs"]) == 1


def test_a_torn_line_is_no_obstacle(data, tmp_path, monkeypatch):
    plan = plan_of(data, LOOKUP)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecordFile, "add", after(4, RecordFile.add))
        run(plan, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    path.write_bytes(path.read_bytes() + '{"kind": "sample", "text": "ü'.encode()[:-1])
    again, records = run(plan, tmp_path / "out")
    assert again == path
    assert [row["samples"] for row in rows(records)] == [5, 5]


def test_a_full_disk_loses_nothing_and_the_same_command_continues(data, tmp_path, monkeypatch):
    plan = plan_of(data, LOOKUP)
    real = os.fsync
    left = [7]

    def full(fd):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(fd)

    with monkeypatch.context() as patch, pytest.raises(BenchError, match="No space left"):
        patch.setattr(os, "fsync", full)
        run(plan, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert len(Records.read(path).samples) == 3
    again, records = run(plan, tmp_path / "out")
    assert again == path
    assert [row["samples"] for row in rows(records)] == [5, 5]


def test_a_source_is_resolved_once_and_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "resolve_source", lambda wanted, cards: {"gsm8k": str(data)})
    unfinished(plan_of("auto"), tmp_path / "out", monkeypatch)
    monkeypatch.setattr(tasks, "resolve_source", interrupt)
    _, records = run(plan_of("auto"), tmp_path / "out")
    assert row_of(records, "vanilla")["data_source"] == "questions.jsonl"


def test_a_finished_run_is_not_resumed(data, tmp_path):
    first, _ = run(plan_of(data), tmp_path / "out")
    before = first.read_bytes()
    second, _ = run(plan_of(data), tmp_path / "out")
    assert second != first
    assert first.read_bytes() == before


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"limit": 4}, {"max_new_tokens": 5}, {"temperatures": [1.0]}]
)
def test_another_plan_is_another_record(data, tmp_path, monkeypatch, change):
    unfinished(plan_of(data), tmp_path / "out", monkeypatch)
    run(plan_of(data, **change), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 2


def test_a_question_that_changed_is_measured_again(tmp_path, monkeypatch, calls):
    data = write(tmp_path, ["One?", "Two?"])
    unfinished(plan_of(data), tmp_path / "out", monkeypatch)
    write(tmp_path, ["One?", "Three?"])
    calls.clear()
    _, records = run(plan_of(data), tmp_path / "out")
    assert len([call for call in calls if call.stream != "warm-up"]) == 2
    assert len(rows(records)) == 2


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "content", [b"[]\n", b'{"id": 1}\n', b"no json\n", b"\xff\xfe\n", b"", b"\n"]
)
def test_other_files_in_the_folder_do_not_matter(data, tmp_path, content):
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "zzz.jsonl"
    other.write_bytes(content)
    _, records = run(plan_of(data), tmp_path / "out")
    assert records.complete
    assert other.read_bytes() == content


@pytest.mark.sampled(3)
@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_damaged_line_of_the_same_plan_is_measured_again(data, tmp_path, monkeypatch, line):
    """Line 1 is the key's, the others are samples."""
    unfinished(plan_of(data), tmp_path / "out", monkeypatch)
    (path,) = (tmp_path / "out").glob("*.jsonl")
    content = path.read_bytes().split(b"\n")
    content[line] = content[line][:-3]
    path.write_bytes(b"\n".join(content))
    again, records = run(plan_of(data), tmp_path / "out")
    assert again == path
    assert row_of(records, "vanilla")["samples"] == 5
    assert records.complete
    assert f".jsonl:{line + 1}: not a record line" in records.damaged[0]
