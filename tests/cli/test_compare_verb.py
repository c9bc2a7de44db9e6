"""`compare`: exit codes, sides of several records, and what cannot be compared."""

import json

import pytest
from by_hand import FAST, KEY, sample, written_record

from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.cli.main import main


def record(path, seconds=0.5, prompts="abcdefgh", key=FAST):
    """Write a record of vanilla and a decoder; prompts vary a little."""
    written = RecordFile(path, {"plan": {"limit": None}})
    for own in (KEY, key):
        written.key(own)
    for number, name in enumerate(prompts):
        wait = 1 + number / 100
        written.add(sample(KEY, name, 10, 1.0, committed=[1] * 9, forwards=9))
        written.add(sample(key, name, 10, seconds * wait, committed=[3] * 3, forwards=3))
    written.end()
    written.release()
    return path


def test_what_is_worse_is_exit_code_1(tmp_path, capsys):
    a = record(tmp_path / "a.jsonl")
    assert main(["compare", str(a), str(record(tmp_path / "b.jsonl", 0.6))]) == 1
    assert "1 figure differs beyond noise: 1 worse" in capsys.readouterr().out
    assert main(["compare", str(a), str(a)]) == 0
    assert main(["compare", str(a), str(record(tmp_path / "c.jsonl", 0.4))]) == 0
    assert "1 better" in capsys.readouterr().out


def test_sides_of_several_records_and_folders(tmp_path, capsys):
    folder = tmp_path / "before"
    folder.mkdir()
    for name in "ab":
        record(folder / f"{name}.jsonl")
    after = [str(record(tmp_path / f"{name}.jsonl")) for name in "cd"]
    assert main(["compare", str(folder), "--to", *after, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    figures = {line["figure"]: line["state"] for line in report["lines"]}
    assert figures == {"speedup": "same", "tokens/step": "same", "verdict": "same"}


def test_a_record_that_is_not_finished_is_compared_with_a_note(tmp_path, capsys):
    a = record(tmp_path / "a.jsonl")
    unfinished = tmp_path / "b.jsonl"
    unfinished.write_bytes(b"".join(a.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["compare", str(a), str(unfinished)]) == 0
    assert "b.jsonl is not finished" in capsys.readouterr().err


def _edited(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kind": "sample"', '"kind": "sam', "not a record line"),
        ('"temperature": 0.0', '"temperature": 0.0, "colour": 3', "colour"),
        ('"schema": ', '"schema": 9', "is newer than"),
    ],
)
def test_a_damaged_record_is_refused(old, new, message, tmp_path, refused):
    a = record(tmp_path / "a.jsonl")
    b = record(tmp_path / "b.jsonl")
    assert old in b.read_text()
    assert message in refused(["compare", a, _edited(b, old, new)])


def test_two_records_without_a_common_row_are_refused(tmp_path, refused):
    a = record(tmp_path / "a.jsonl", key=FAST)
    b = _edited_everywhere(record(tmp_path / "b.jsonl"), '"task": "gsm8k"', '"task": "nq"')
    assert "no row is on both sides: task gsm8k against nq" in refused(["compare", a, b])


def _edited_everywhere(path, old, new):
    path.write_text(path.read_text().replace(old, new))
    return path


def test_records_that_are_not_two_sides_are_refused(tmp_path, refused):
    a = record(tmp_path / "a.jsonl")
    assert "which are A, and which B?" in refused(["compare", a])
    assert "which are A, and which B?" in refused(["compare", a, a, a])
    assert "no such record" in refused(["compare", a, tmp_path / "none.jsonl"])


def test_a_record_of_nothing_is_refused(tmp_path, refused):
    empty = tmp_path / "empty.jsonl"
    written_record(empty).release()
    assert "holds no generation yet" in refused(["compare", record(tmp_path / "a.jsonl"), empty])
