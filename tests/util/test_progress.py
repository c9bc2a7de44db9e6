"""Progress is a bar on a terminal, lines in a log, and never on stdout."""

import io
import sys
import threading

import pytest

from fspad_bench.util import progress
from fspad_bench.util.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """`open_terminal()`: make stderr a terminal; call it within a test."""

    def open_terminal():
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return open_terminal


def test_a_log_gets_a_line_at_the_start_and_at_the_end(capsys):
    with Progress("steps", 100, start=10) as bar:
        for _ in range(40):
            bar.advance(note="a note")
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert out == ""
    assert first.startswith("steps 10/100 [")
    assert last.startswith("steps 50/100 [")
    assert "\r" not in err


def test_a_log_gets_lines_now_and_then_with_their_note(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with Progress("steps", 3) as bar:
        bar.advance(0, "reading")
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("steps 0/3 [")
    assert "reading" in lines[1]
    assert lines[2].startswith("steps 1/3 [")
    assert "reading" not in lines[2]


def test_a_terminal_gets_one_bar(open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setattr(progress, "REDRAW_EVERY", 0.0)
    with Progress("steps", 4) as bar:
        bar.advance(3, "loss 1.2")
    text = terminal.getvalue()
    assert "steps:  75%" in text
    assert "loss 1.2" in text
    assert text.count("\n") == 1
    assert text.endswith("\n")


def test_an_interrupted_bar_shows_it(open_terminal):
    terminal = open_terminal()
    with pytest.raises(KeyboardInterrupt), Progress("steps", 4) as bar:
        bar.advance(1)
        raise KeyboardInterrupt
    assert "interrupted" in terminal.getvalue()


def test_a_quiet_bar_shows_nothing(open_terminal, capsys):
    terminal = open_terminal()
    with Progress("steps", 4, quiet=True) as bar:
        bar.advance(2, "note")
    assert terminal.getvalue() == capsys.readouterr().out == ""


def test_no_thread_runs_beside_the_work(open_terminal):
    open_terminal()
    before = threading.active_count()
    with Progress("steps", 4):
        assert threading.active_count() == before


def test_a_dumb_terminal_gets_lines(open_terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = open_terminal()
    with Progress("steps", 2) as bar:
        bar.advance(2)
    text = stream.getvalue()
    assert [line.partition(" [")[0] for line in text.splitlines()] == ["steps 0/2", "steps 2/2"]
    assert "\r" not in text


def test_a_title_and_a_note_control_no_terminal(capsys):
    with Progress("on \x1b[2J", 1) as bar:
        bar.bar.mininterval = 0
        bar.advance(1, "of \x07")
    err = capsys.readouterr().err
    assert r"on \x1b[2J 1/1" in err
    assert not {"\x1b", "\x07"} & set(err)
