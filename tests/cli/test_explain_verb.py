"""The verb `explain`: records in, reasons out; what cannot be explained is one clear error."""

import json

import pytest
from by_hand import FAST, VANILLA
from small import DRAFTED, PLAIN

from fspad_bench.analysis import pictures
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.cli.main import main


@pytest.fixture
def record(tmp_path):
    """The path of a record of two generations."""
    path = tmp_path / "run.jsonl"
    written = RecordFile(path, {"plan": {}})
    for key, generation in ((VANILLA, PLAIN), (FAST, DRAFTED)):
        written.key(key)
        written.add(generation)
    written.end()
    return path


def test_a_record_that_was_written_is_explained(record, capsys):
    assert main(["explain", str(record), "--decoder", "fast,vanilla", "--format", "json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["explanations"]
    assert report["decoders"][1]["accepted_by_rank"] == [3, 2]
    assert report["decoders"][1]["factors"]["draft"] == pytest.approx(2**-0.6)
    assert report["comparisons"][0]["speedup"] == pytest.approx(4 / 3)


def test_a_run_records_what_explain_reads(arguments, tmp_path, capsys):
    assert main(arguments("--decoder", "token_recycling", "--max-new-tokens", 12)) == 0
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "out"), "--format", "json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["explanations"]
    own = report["decoders"][1]
    assert own["acceptance_is_exact"]
    assert own["gaps"] == []
    assert sum(own["accepted_by_rank"]) == sum(d["accepted"] for d in own["acceptance_by_depth"])
    assert set(own["step"]["parts"]) == {"draft", "forward", "verification", "rest"}


def test_pictures_are_written_and_named(record, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(pictures.PICTURES, "acceptance")
    monkeypatch.delitem(pictures.PICTURES, "steps")
    assert main(["explain", str(record), "--pictures", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures" / "factors.svg").is_file()
    assert capsys.readouterr().err.count("written: ") == 1


def test_a_torn_line_costs_that_line(record, capsys):
    content = record.read_bytes().splitlines(keepends=True)
    content.insert(2, b'{"kind": "sample", "key"\n')
    record.write_bytes(b"".join(content) + b'{"kind": "sam')
    assert main(["explain", str(record)]) == 0
    out, err = capsys.readouterr()
    assert "left out: " in err
    assert "fast" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such record"),
        (b"", "holds no generation yet"),
        (b"hello\n", "not a record line"),
        (b'{"rows": []}\n', "not a record line"),
        (b'{"kind": "run", "schema": 99}\n', "schema 99 is newer"),
    ],
)
def test_what_is_no_record_is_refused(content, message, tmp_path, refused):
    path = tmp_path / "record.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert message in refused(["explain", path])


def test_a_decoder_that_is_not_there_is_refused(record, refused):
    error = refused(["explain", record, "--decoder", "fats"])
    assert "no decoder 'fats' in these records" in error
    assert "did you mean 'fast'?" in error
