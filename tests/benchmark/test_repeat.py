"""Repeating a run: the plan of its record, what differs here, both runs side by side."""

import json
from dataclasses import asdict, replace

import pytest
from by_hand import FAST, KEY, sample
from documents import ROOT

from fspad_bench.benchmark import repeat
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record import SCHEMA, Records
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.benchmark.repeat import (
    Counts,
    Reference,
    differences,
    equal_tokens,
    overridden,
    side_by_side,
)
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.tasks import TaskData, load_card
from fspad_bench.util.errors import BenchError
from fspad_bench.util.provenance import provenance

PLAN = Plan(
    decoders=["vanilla", "fast"],
    tasks=["gsm8k"],
    target="tiny",
    options={"fast": {"head": "heads/mine"}},
    data="bundled",
    limit=4,
)
TOKENS = {"a": [1, 2, 3], "b": [4, 5, 6]}


@pytest.fixture
def written(tmp_path):
    """`written(plan, tokens, **key)`: a record of two decoders that give these tokens."""

    def written(plan=PLAN, tokens=TOKENS, name="record.jsonl", prompt="p", header=(), **key):
        software = {k: v for k, v in provenance().items() if k in ("packages", "python")}
        plan = asdict(plan) if isinstance(plan, Plan) else plan
        record = RecordFile(tmp_path / name, {"plan": plan, **software, **dict(header)})
        for own in (KEY, FAST):
            own = replace(own, **key)
            record.key(own)
            for question, ids in tokens.items():
                record.add(sample(own, question, ids, 0.5, prompt_sha256=prompt))
        record.end()
        record.release()
        return record.path

    return written


# the plan


def test_open_choices_are_those_that_the_record_made(written):
    plan = Reference.read(written()).plan
    assert plan == replace(PLAN, dtype="float64", threads=1)


def test_auto_data_are_those_that_it_found(written):
    plan = replace(PLAN, data="auto")
    assert Reference.read(written(plan, header={"sources": {"gsm8k": "hub"}})).plan.data == "hub"
    mixed = {"gsm8k": "hub", "rag": "bundled"}
    assert Reference.read(written(plan, name="2", header={"sources": mixed})).plan.data == "auto"


def test_data_of_a_task_of_another_suite_are_found_again(written):
    """Their source is the name of that suite's task, no file."""
    sources = {"lm_eval:triviaqa": "lm_eval-0.4.13-v3.0"}
    reference = Reference.read(written(replace(PLAN, data="auto"), header={"sources": sources}))
    assert reference.plan.data == "auto"
    reference.check_file(reference.plan.data)


def test_more_threads_than_cores_stay_open(written, monkeypatch):
    monkeypatch.setattr(repeat, "cores", lambda: 2)
    assert Reference.read(written(threads=3)).plan.threads is None
    assert Reference.read(written(threads=2, name="2")).plan.threads == 2


def test_what_is_given_takes_the_place_of_the_records_own(written):
    reference = Reference.read(written())
    given = {"limit": 2, "options": {"fast": {"depth": "4"}}}
    plan = reference.changed(given)
    assert plan == replace(
        reference.plan, limit=2, options={"fast": {"head": "heads/mine", "depth": "4"}}
    )
    assert overridden(reference.plan, plan) == [
        "options: {'fast': {'head': 'heads/mine'}} in the record, given as "
        "{'fast': {'head': 'heads/mine', 'depth': '4'}}",
        "limit: 4 in the record, given as 2",
    ]
    assert overridden(reference.plan, reference.changed({})) == []


def test_options_of_decoders_that_are_not_repeated_are_dropped(written):
    reference = Reference.read(written())
    assert reference.changed({"decoders": ["vanilla", "other"]}).options == {}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (None, "the first line holds no plan"),
        ({**asdict(PLAN), "novelty": 1}, "a plan with 'novelty', which is not known here"),
        ({**asdict(PLAN), "limit": "four"}, "not a plan: 'limit' is 'four'"),
        ({"target": "tiny"}, "not a plan"),
    ],
)
def test_a_plan_that_is_none_is_refused(written, plan, message):
    with pytest.raises(BenchError, match=message):
        Reference.read(written(plan))


def test_a_record_without_generations_is_refused(written):
    with pytest.raises(BenchError, match="holds no generation yet"):
        Reference.read(written(tokens={}))


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/*.jsonl")), ids=lambda p: p.name)
def test_plans_of_the_records_here_are_read(path):
    """Of any schema: by the first lines alone, which are quick to read."""
    header = json.loads(path.open(encoding="utf-8").readline())
    plan = repeat.plan_of(path, header["plan"])
    assert plan.tasks == header["plan"]["tasks"]
    assert plan.aa == header["plan"].get("aa", False)  # an older run measured vanilla once


# data


def test_a_missing_file_is_named_with_the_hash_of_its_questions(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference = Reference.read(written())
    with pytest.raises(BenchError, match="odd.jsonl is not here.*gsm8k is " + "ab" * 32) as caught:
        reference.check_file("spec-bench=folder/odd.jsonl")
    assert caught.value.hint == "give that file with --data spec-bench=FILE"
    with pytest.raises(BenchError) as caught:
        reference.check_file("mine.jsonl")
    assert caught.value.hint == "give that file with --data FILE"
    (tmp_path / "mine.jsonl").touch()
    for source in ("mine.jsonl", "spec-bench=mine.jsonl", "bundled", "hub", "auto"):
        reference.check_file(source)


def test_other_questions_are_refused_unless_given(written):
    reference = Reference.read(written())
    card = load_card("gsm8k")
    same = TaskData(card, "bundled", "ab" * 32, [])
    other = TaskData(card, "bundled", "ef" * 32, [])
    reference.check_questions([same], [])
    for given in ("data", "limit", "tasks"):
        reference.check_questions([other], [given])
    with pytest.raises(BenchError, match=f"{'ef' * 32}, the record's {'ab' * 32}") as caught:
        reference.check_questions([same, other], ["seed"])
    assert "--data" in caught.value.hint


def test_an_unfinished_record_is_not_continued_by_its_own_repetition(written, tmp_path):
    path = written()
    Reference.read(path).check_output(tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    reference = Reference.read(path)
    with pytest.raises(BenchError, match="unfinished, and a run with its plan would continue it"):
        reference.check_output(tmp_path)
    reference.check_output(tmp_path / "again")


def test_an_error_about_a_file_names_its_hash(written):
    reference = Reference.read(written(options={"head": "heads/mine", "head_sha256": "23" * 32}))
    error = reference.blamed(BenchError("no head in heads/mine", "train one"))
    assert error.message == "cannot repeat record.jsonl: no head in heads/mine"
    assert error.hint == f"give it with -D fast.head=...; the record's has sha256 {'23' * 32}"
    assert reference.blamed(BenchError("other", "do that")).hint == "do that"


# what differs


def test_nothing_differs_from_a_run_like_it(written):
    assert differences(Reference.read(written()), [KEY, FAST]) == []


def test_every_field_of_a_key_that_differs_is_named(written):
    reference = Reference.read(written())
    changes = {
        "version": "0.2.0",
        "source_sha256": "99" * 32,
        "machine": "another",
        "torch": "2.14.0",
        "target_sha256": "98" * 32,
        "template_sha256": "97" * 32,
        "tokenizer_sha256": "96" * 32,
        "card_sha256": "95" * 32,
        "data_sha256": "94" * 32,
        "threads": 2,
    }
    lines = differences(reference, [replace(KEY, **changes), replace(FAST, **changes)])
    assert {line.split(":")[0] for line in lines} == set(changes)
    assert len(lines) == len(changes)
    assert "machine: a machine in the record, another here" in lines
    assert "source_sha256: 010101010101 in the record, 999999999999 here" in lines


def test_options_that_differ_are_named_with_their_decoder(written):
    reference = Reference.read(written())
    here = replace(FAST, options={"depth": 4, "head_sha256": "23" * 32})
    assert differences(reference, [KEY, here]) == [
        "fast.depth: 3 in the record, 4 here",
        "fast.head_sha256: none in the record, 232323232323 here",
    ]


def test_libraries_of_other_versions_are_named(written):
    packages = {**provenance()["packages"], "transformers": "4.0"}
    reference = Reference.read(written(header={"packages": packages, "python": "3.9.1"}))
    lines = differences(reference, [KEY, FAST])
    assert [line.split(" in the record")[0] for line in lines] == [
        "transformers: 4.0",
        "python: 3.9.1",
    ]


def test_what_an_older_record_does_not_say_is_named(written):
    """Its options are as given, so that only the hashes of files are compared."""
    unsaid = dict.fromkeys(("source_sha256", "torch", "template_sha256"), "")
    packages = {**provenance()["packages"], "torch": "1.0"}
    path = written(
        **unsaid, options={"depth": 0, "head_sha256": "23" * 32}, header={"packages": packages}
    )
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', '"schema": 1', 1))
    here = replace(FAST, options={"depth": 5, "nodes": 4, "head_sha256": "24" * 32})
    lines = differences(Reference.read(path), [replace(KEY, options={}), here])
    assert "fast.head_sha256: 232323232323 in the record, 242424242424 here" in lines
    assert not [line for line in lines if "depth" in line or "nodes" in line]
    assert any(line.startswith("torch: 1.0 in the record") for line in lines)
    assert (
        "the record does not say: source_sha256, template_sha256, torch, options as resolved"
        in lines
    )


def test_rows_without_a_counterpart_are_named(written):
    lines = differences(Reference.read(written()), [KEY, replace(KEY, decoder="new")])
    assert lines == ["not in the record: new on gsm8k, T=0"]


# side by side


def test_outputs_to_the_same_prompts_are_compared(written):
    there = Records.read(written())
    here = Records.read(written(tokens={**TOKENS, "b": [4, 5, 9], "c": [7]}, name="here"))
    assert equal_tokens(there, here, ("fast", "gsm8k", 0.0)) == Counts(shared=2, equal=1)
    other = Records.read(written(prompt="another", name="other"))
    assert equal_tokens(there, other, ("fast", "gsm8k", 0.0)) == Counts(shared=0, equal=0)


def test_each_repeat_is_compared_with_its_own(written):
    """Sampled tokens differ from repeat to repeat."""
    subject = ("vanilla", "gsm8k", 0.0)
    runs = []
    for name, tokens in (("once", {0: [1]}), ("twice", {0: [1], 1: [2]}), ("other", {1: [3]})):
        path = written(tokens={}, name=name)
        record = RecordFile.reopen(path)
        for number, ids in tokens.items():
            record.add(sample(KEY, "a", ids, 0.5, repeat=number, round_=str(number)))
        record.release()
        runs.append(Records.read(path))
    once, twice, other = runs
    assert equal_tokens(once, twice, subject) == Counts(shared=1, equal=1)
    assert equal_tokens(twice, other, subject) == Counts(shared=1, equal=0)


def test_both_runs_stand_side_by_side(written):
    reference = Reference.read(written())
    here = Records.read(written(tokens={**TOKENS, "b": [4, 5, 9]}, name="here"))
    table = side_by_side(reference, here, is_markdown=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0][-1] == "equal tokens"
    assert rows[2] == [
        "vanilla",
        "gsm8k",
        "0",
        "exact",
        "exact",
        "-",
        "-",
        "1.00",
        "1.00",
        "1 of 2",
    ]
    assert rows[3][:5] == ["fast", "gsm8k", "0", "exact", "exact"]


def test_figures_are_those_of_the_prompts_that_both_runs_answered(written):
    """The record's other prompts, on which its decoder is slower, do not count."""
    path = written()
    record = RecordFile.reopen(path)
    for own, seconds in ((KEY, 0.5), (FAST, 5.0)):
        record.add(sample(own, "slow", [1, 2, 3], seconds, prompt_sha256="p"))
    record.release()
    assert {row["speedup"] for row in rows(Records.read(path))} != {1.0}
    here = Records.read(written(name="here"))
    table = side_by_side(Reference.read(path), here, is_markdown=True)
    assert [line.split("|")[8].strip() for line in table.splitlines()[2:]] == ["1.00", "1.00"]
    elsewhere = Records.read(written(prompt="another", name="elsewhere"))
    assert len(side_by_side(Reference.read(path), elsewhere, is_markdown=True).splitlines()) == 2
