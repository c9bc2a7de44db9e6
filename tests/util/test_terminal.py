"""What a terminal is shown: no character that it would obey."""

import errno
import sys

import pytest

from fspad_bench.util.terminal import note, results_alone, show, visible, visible_lines

SHOWN = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "a\rb\tc\x00\x7f": r"a\rb\tc\x00\x7f",
    "\x9b31m": r"\x9b31m",
    "one\u2028two\u2029": r"one\u2028two\u2029",
    "\u202eabc\u2066": r"\u202eabc\u2066",
    "\ud83d": r"\ud83d",
    "Grüße 🦆 · ±": "Grüße 🦆 · ±",
    r"C:\new": r"C:\new",
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.items(), ids=ascii)
def test_control_characters_are_shown_as_python_writes_them(text, shown):
    assert visible(text) == shown
    assert visible_lines(text) == shown


def test_only_lines_keep_their_ends():
    assert visible("a\nb\r\n") == r"a\nb\r\n"
    assert visible_lines("a\nb\r\n") == "a\nb\\r\n"


def test_results_go_to_stdout_and_notes_to_stderr(capsys):
    show("a\x1b\nb")
    note("c\x07\nd")
    assert capsys.readouterr() == ("a\\x1b\nb\n", "c\\x07\\nd\n")


def test_results_alone_are_printed_to_stdout(capsys):
    with results_alone():
        print("chatter")
        with results_alone():
            show("a result")
        show("another")
    print("afterwards")
    assert capsys.readouterr() == ("a result\nanother\nafterwards\n", "chatter\n")


class Full:
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stream", [Full(), None])
def test_a_stderr_that_takes_nothing_ends_no_work(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    note("a")
