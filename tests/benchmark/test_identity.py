"""What decides a figure decides the row: each edit of a target's files gives another key."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from runs import LOOKUP, ME, Costly, header_of, plan_of, run, unfinished, write

from fspad_bench.benchmark import runner
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import failed, rows
from fspad_bench.models import smollm2
from fspad_bench.models.tiny import tiny_model
from fspad_bench.util import machine, provenance
from fspad_bench.util.errors import BenchError


@pytest.fixture
def folder(saved_tiny, tmp_path, monkeypatch):
    """A folder of its own, and runs that are quick."""
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 1)
    monkeypatch.setattr(provenance, "_commit", dict)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return shutil.copytree(saved_tiny, tmp_path / "T")


@pytest.fixture
def data(tmp_path):
    return write(tmp_path, ["One?", "Two?"])


def edit(path, text="{# edited #}"):
    path.write_bytes((path.read_bytes() if path.exists() else b"") + text.encode())


def note(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "edited"}))


EDITS = {
    "the template": lambda folder: edit(folder / "chat_template.jinja"),
    "a sentencepiece model": lambda folder: edit(folder / "tokenizer.model"),
    "merges": lambda folder: edit(folder / "merges.txt"),
    "the tokenizer": lambda folder: edit(folder / "tokenizer.json", "\n"),
    "its settings": lambda folder: note(folder / "tokenizer_config.json"),
    "the generation settings": lambda folder: note(folder / "generation_config.json"),
    "the configuration": lambda folder: note(folder / "config.json"),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_another_row(folder, data, tmp_path, monkeypatch, name):
    """Between two runs, and between an interruption and its resumption."""
    plan = plan_of(data, target=str(folder))
    unfinished(plan, tmp_path / "out", monkeypatch)
    (before,) = Records.read(*(tmp_path / "out").glob("*.jsonl")).keys
    EDITS[name](folder)
    _, records = run(plan, tmp_path / "out")
    assert len(records.keys) == 2
    (after,) = records.keys.keys() - {before}
    assert [sample.key for sample in records.samples].count(after) == 2


def test_the_default_targets_own_folder_decides_the_row(folder, data, tmp_path, monkeypatch):
    """Its identity is that of the published weights, whatever is made of them on this machine."""
    monkeypatch.setattr(smollm2, "model_folder", lambda: folder)
    keys = []
    for output in ("a", "b"):
        _, records = run(plan_of(data, target="smollm2-135m"), tmp_path / output)
        keys += records.keys.values()
        edit(folder / "chat_template.jinja")
    assert {key.target_identity for key in keys} == {smollm2.SHA256}
    assert len({key.target_sha256 for key in keys}) == 2


def test_a_template_that_prints_the_date_gives_the_prompts_of_every_day(folder, data, tmp_path):
    dated = "{{ strftime_now('%H:%M:%S.%f') }}"
    path = folder / "chat_template.jinja"
    path.write_text(dated + path.read_text())
    plan = plan_of(data, target=str(folder), log_samples=True)
    prompts = [{s.prompt for s in run(plan, tmp_path / name)[1].samples} for name in "ab"]
    assert prompts[0] == prompts[1]
    assert all(text.startswith("00:00:00.000000u:") for text in prompts[0])


@pytest.mark.parametrize(
    ("where", "name", "value", "what"),
    [
        (machine, "describe", lambda gpu="": "another processor", "machine"),
        (torch, "get_num_threads", lambda: 64, "number of threads"),
    ],
)
def test_another_machine_or_number_of_threads_begins_another_record(
    folder, data, tmp_path, monkeypatch, capsys, where, name, value, what
):
    plan = plan_of(data, target=str(folder))
    unfinished(plan, tmp_path / "out", monkeypatch)
    (first,) = (tmp_path / "out").glob("*.jsonl")
    monkeypatch.setattr(where, name, value)
    second, records = run(plan, tmp_path / "out")
    assert second != first
    assert len(records.keys) == 1
    assert f"not resuming {first}: it was begun with another {what}" in capsys.readouterr().err


def test_threads_that_a_plan_asks_for_are_those_of_its_record(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: asked.append(count))
    monkeypatch.setattr(torch, "get_num_threads", lambda: (asked or [1])[-1])
    asked = []
    path, _ = run(plan_of(data, target=str(folder), threads=2), tmp_path / "out")
    assert header_of(path)["threads"] == 2


def test_costs_of_other_settings_are_not_taken_over(folder, data, tmp_path, monkeypatch):
    known = []
    real = Costly.prepare

    def prepare(self, target, recorded=None):
        known.append(recorded)
        return real(self, target, recorded)

    monkeypatch.setattr(Costly, "prepare", prepare)
    plan = plan_of(data, f"{ME}:Costly", target=str(folder))
    unfinished(plan, tmp_path / "out", monkeypatch)
    run(plan, tmp_path / "out")
    assert known == [None, {"greedy": {"first": 1.0}}]
    unfinished(plan, tmp_path / "out", monkeypatch)
    edit(folder / "chat_template.jinja")
    run(plan, tmp_path / "out")
    assert known[2:] == [None, None]


def test_logits_that_are_not_finite_are_that_samples_error(folder, data, tmp_path, capsys):
    model = tiny_model().to(torch.float32)
    model.model.embed_tokens.weight.data[81] = float("nan")
    model.save_pretrained(folder)
    data = write(tmp_path, ["A quiet square?", "A calm one?"])
    for temperatures in ([0.0], [1.0]):
        plan = plan_of(data, LOOKUP, target=str(folder), temperatures=temperatures)
        _, records = run(plan, tmp_path / "out")
        table = rows(records)
        assert [(row["samples"], row["errors"]) for row in table] == [(1, 1), (1, 1)]
        assert failed(table)
        errors = {sample.error for sample in records.samples} - {""}
        (error,) = errors
        assert error.startswith("the target's logits before position ")
        assert {sample.sample for sample in records.samples if sample.error} == {"q0"}
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert f"{LOOKUP}: q0: {error}" in err


def test_a_template_that_takes_no_second_turn_costs_that_turn(folder, tmp_path):
    one = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
    path = folder / "chat_template.jinja"
    path.write_text(one + path.read_text())
    data = write(tmp_path, ["unused"], turns=["First?", "Second?"])
    _, records = run(plan_of(data, LOOKUP, target=str(folder)), tmp_path / "out")
    refused = "the chat template refuses a conversation: one turn"
    assert [(s.turn, s.error) for s in records.samples] == [(0, "")] * 2 + [(1, refused)] * 2
    assert records.complete


@pytest.mark.parametrize("template", ["a:", "{{ raise_exception('never') }}"])
def test_a_template_of_no_use_shows_before_anything_is_written(folder, data, tmp_path, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(BenchError, match="chat template"):
        run(plan_of(data, target=str(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_record_says_which_ids_end_an_answer(folder, data, tmp_path, capsys):
    def stops(name):
        path, _ = run(plan_of(data, target=str(folder)), tmp_path / name)
        return header_of(path)["stop_ids"], capsys.readouterr().err

    facts, err = stops("a")
    assert facts == {"ids": [96], "from": "generation settings"}
    assert "answers of" not in err
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": 5}))
    facts, err = stops("b")
    assert facts == {"ids": [5], "from": "generation settings"}
    assert (
        "note: answers of T end with the ids [5] of its generation settings, "
        "not with [96] of its tokenizer" in err
    )
    settings.unlink()
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": None}))
    facts, err = stops("c")
    assert facts == {"ids": [96], "from": "tokenizer"}
    assert "end with the ids [96] of its tokenizer" in err
