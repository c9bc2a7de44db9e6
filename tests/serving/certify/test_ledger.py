"""The report file: what is in it is not asked again, and nothing that was measured is lost."""

import json
import os

import pytest
from cells import answer

from fspad_bench.serving.certify.ledger import END, Ledger
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.engine import Reply
from fspad_bench.util.errors import BenchError

PLAN = {"plan": {"rounds": 2}}
ANSWERS = [answer([1, 2], "stop", rival=4), Observation((7,), "length")]


def never():
    raise AssertionError("asked again")


def test_answers_come_back_as_they_were(tmp_path):
    path = tmp_path / "a" / "report.jsonl"
    first = Ledger(path, PLAN)
    assert first.answers("q", lambda: ANSWERS) == ANSWERS
    first.close()
    again = Ledger(path, PLAN)
    assert again.answers("q", never) == ANSWERS
    again.close()
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
        "served",
        "answers",
    ]


def held(path):
    """Write a file with answers."""
    ledger = Ledger(path, PLAN)
    ledger.answers("q", lambda: ANSWERS)
    ledger.close()


@pytest.mark.parametrize("size", [None, 28])
def test_a_file_without_answers_takes_a_corrected_plan(tmp_path, size):
    """A run that was refused leaves its header, and one that was killed a part of it."""
    path = tmp_path / "report.jsonl"
    Ledger(path, {"plan": "misspelt"}).close()
    path.write_bytes(path.read_bytes()[:size])
    held(path)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
        "served",
        "answers",
    ]
    assert json.loads(path.read_text().splitlines()[0])["plan"] == PLAN["plan"]


@pytest.mark.parametrize(
    "line",
    [
        {"name": "q"},
        {"answers": []},
        {"name": "q", "answers": [{"tokens": [1]}]},
        {"name": "q", "answers": [3]},
        {"name": "q", "answers": [{"tokens": 1, "finish": "stop"}]},
        {"name": "q", "answers": [{"tokens": [1], "finish": "stop", "top": [{"a": 1}]}]},
        {"name": [], "answers": []},
    ],
)
def test_a_bad_line_of_answers_is_one_error(tmp_path, line):
    path = tmp_path / "report.jsonl"
    held(path)
    with path.open("a") as file:
        file.write(json.dumps({"kind": "answers"} | line) + "\n")
    with pytest.raises(BenchError, match="jsonl:3: not answers of a certification"):
        Ledger(path, PLAN)


@pytest.mark.parametrize(("name", "end"), [("truncate", ""), ("rename", '{"kind": "end"}\n')])
def test_a_file_that_cannot_be_changed_is_one_error(tmp_path, monkeypatch, name, end):
    path = tmp_path / "report.jsonl"
    held(path)
    with path.open("a") as file:
        file.write(end)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(type(path), "rename", refuse)
    with pytest.raises(BenchError, match=r"cannot write .*: Permission denied"):
        Ledger(path, PLAN)


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "report.jsonl"
    first = Ledger(path, PLAN)
    first.answers("q", lambda: ANSWERS)
    first.close()
    with path.open("a") as file:
        file.write('{"kind": "answers", "na')
    again = Ledger(path, PLAN)
    again.answers("other", lambda: ANSWERS)
    again.close()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3


def test_another_plan_and_another_file_are_refused(tmp_path):
    path = tmp_path / "report.jsonl"
    held(path)
    before = path.read_bytes()
    with pytest.raises(BenchError, match="of another plan, or of other servers"):
        Ledger(path, {"plan": {"rounds": 3}})
    assert path.read_bytes() == before
    other = tmp_path / "other.jsonl"
    other.write_text('{"kind": "run"}\n')
    with pytest.raises(BenchError, match="of no certification"):
        Ledger(other, PLAN)
    Ledger(path, PLAN).close()  # a refusal keeps no lock


def test_a_file_in_use_is_refused(tmp_path):
    path = tmp_path / "report.jsonl"
    first = Ledger(path, PLAN)
    with pytest.raises(BenchError, match="another certification is writing"):
        Ledger(path, PLAN)
    first.close()


def test_a_complete_file_is_kept_under_another_name(tmp_path, capsys):
    path = tmp_path / "report.jsonl"
    first = Ledger(path, PLAN)
    first.write({"kind": END})
    first.close()
    again = Ledger(path, {"plan": "new"})
    assert again.known == {}
    again.close()
    assert END in (tmp_path / "report-1.jsonl").read_text()
    assert "report-1.jsonl" in capsys.readouterr().err


def test_text_alone_is_kept_as_characters():
    reply = Reply((), "ab", "stop", tokens_known=False)
    kept = Observation.of(reply)
    assert kept == Observation((97, 98), "stop", is_text=True)
    assert Observation.read(json.loads(json.dumps(kept.as_json()))) == kept
    assert Observation.of(reply).alternatives(0) == {}
