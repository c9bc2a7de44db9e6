"""The verb `page`: what it writes, and what it refuses without touching anything."""

from dataclasses import replace

import pytest
from by_hand import SAMPLE, written_record

from fspad_bench.cli.main import main


@pytest.fixture
def record(tmp_path):
    """A record of a generation by vanilla."""
    path = tmp_path / "records" / "run.jsonl"
    path.parent.mkdir()
    written_record(path, SAMPLE)
    return path


def test_a_page_is_written_and_written_again(record, tmp_path, capsys):
    site = tmp_path / "new" / "site"
    assert main(["page", str(record), "-o", str(site)]) == 0
    assert capsys.readouterr().out == f"{site / 'index.html'}: 1 rows\n"
    first = (site / "index.html").read_bytes()
    assert main(["page", str(record.parent), "--output", str(site)]) == 0
    assert (site / "index.html").read_bytes() == first
    assert [path.name for path in site.iterdir()] == ["index.html"]
    assert str(tmp_path).encode() not in first


def test_a_damaged_line_is_named_on_the_page_without_its_folder(record, tmp_path, capsys):
    record.write_bytes(record.read_bytes() + b"torn\n")
    assert main(["page", str(record), "-o", str(tmp_path / "site")]) == 0
    assert f"left out: {record}:4: not a record line" in capsys.readouterr().err
    text = (tmp_path / "site" / "index.html").read_text()
    assert "run.jsonl:4: not a record line" in text
    assert str(tmp_path) not in text


def test_a_page_of_no_rows_is_refused(refused, record, tmp_path):
    site = tmp_path / "site"
    assert "no such record" in refused(["page", tmp_path / "gone.jsonl", "-o", site])
    (tmp_path / "empty").mkdir()
    assert "no records" in refused(["page", tmp_path / "empty", "-o", site])
    lines = record.read_bytes().split(b"\n")
    record.write_bytes(lines[0] + b"\n")
    assert "holds no generation" in refused(["page", record, "-o", site])
    record.write_text("<html>\n")
    assert "run.jsonl:1: not a record line" in refused(["page", record, "-o", site])
    assert not site.exists()


def test_nothing_is_replaced_that_is_no_page(refused, record, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert f"{taken} is not a folder" in refused(["page", record, "-o", taken])
    assert taken.read_text() == "mine"
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<html>mine</html>")
    assert "is no page of fspad-bench" in refused(["page", record, "-o", site])
    assert (site / "index.html").read_text() == "<html>mine</html>"
    (site / "index.html").unlink()
    (site / "index.html").mkdir()
    assert "is no page of fspad-bench" in refused(["page", record, "-o", site])


def test_a_folder_below_a_file_is_refused(refused, record, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write to" in refused(["page", record, "-o", tmp_path / "file" / "site"])


def test_rows_that_failed_are_published_as_they_are(tmp_path):
    """`table` ends with 1 there; a page that shows it is well made."""
    broken = replace(SAMPLE, tokens=[], error="it <broke>")
    path = tmp_path / "run.jsonl"
    written_record(path, broken)
    assert main(["table", str(path)]) == 1
    assert main(["page", str(path), "-o", str(tmp_path / "site")]) == 0
    assert "1 generations failed" in (tmp_path / "site" / "index.html").read_text()
