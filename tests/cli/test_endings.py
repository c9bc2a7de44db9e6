"""How a command ends: one message, one exit code, and an output that every terminal can show."""

import errno
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from commands import ME

from fspad_bench.benchmark.record import Records
from fspad_bench.cli import endings, ls
from fspad_bench.cli.main import main
from fspad_bench.util.errors import BenchError


@pytest.fixture
def stdout(monkeypatch):
    """`stdout(stream)`: give the command this output."""

    def stdout(stream):
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return stdout


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.sampled(4)
@pytest.mark.parametrize("style", ["text", "markdown", "csv", "json"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_of_few_characters_gets_the_table(arguments, stdout, encoding, style):
    shown = io.BytesIO()
    stream = stdout(io.TextIOWrapper(shown, encoding=encoding))
    assert main(arguments("--format", style, "--limit", "1", "--max-new-tokens", "2")) == 0
    text = shown.getvalue().decode(encoding)
    assert "prompt_lookup" in text
    if style == "json":
        assert json.loads(text)["rows"][0]["decoder"] == "vanilla"
    stream.detach()


def test_an_output_that_is_closed_ends_the_command_quietly(stdout, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:  # what is left is discarded when it is closed
        stdout(stream)
        assert main(["ls"]) == endings.CLOSED_OUTPUT
    assert capfd.readouterr().err == ""


def test_help_that_is_not_read_ends_quietly(stdout, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        stdout(stream)
        assert main(["--help"]) == endings.CLOSED_OUTPUT
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_output_is_one_clear_error_and_the_record_is_safe(arguments, stdout, capsys):
    with open("/dev/full", "w") as stream:
        stdout(stream)
        assert main(arguments("--limit", "1", "--max-new-tokens", "2")) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error == "error: cannot write the output: No space left on device"
    assert hint.startswith("hint:  ")
    (record,) = Path(arguments()[arguments().index("--output") + 1]).glob("*.jsonl")
    assert Records.read(record).complete


def test_streams_that_are_closed_are_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["ls"]) == 0
    assert main(["ls", "nothing"]) == 2


def test_an_unexpected_error_has_a_code_of_its_own_and_says_where_its_traceback_is(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(ls.LISTINGS, "decoders", raising_names)
    monkeypatch.setattr(endings.tempfile, "tempdir", str(tmp_path))
    assert main(["ls"]) == endings.UNEXPECTED == 70
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: unexpected ZeroDivisionError: a bug"
    (written,) = tmp_path.iterdir()
    assert hint.endswith(f"its traceback is in {written}")
    text = written.read_text()
    assert "raising_names" in text
    assert "ZeroDivisionError: a bug" in text


def raising_names(*_):
    raise ZeroDivisionError("a bug\nof two lines")


def test_a_traceback_that_no_disk_takes_is_printed(monkeypatch, capsys):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(endings.tempfile, "mkstemp", full)
    assert endings.handled(raising(ValueError("x"))) == endings.UNEXPECTED
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "error: unexpected ValueError: x" in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BenchError("bad", "do so"), 2, "error: bad"),
        (KeyboardInterrupt(), 130, "\ninterrupted; "),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            2,
            "error: a/b: Permission denied",
        ),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2, "error: x: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left", "out"), 2, "error: out: No space left"),
        (OSError("odd"), 2, "error: odd"),
        (MemoryError(), 2, "error: out of memory\nhint:  end what else uses it"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 byte\nx"),
            2,
            "error: out of memory: [enforce fail] DefaultCPUAllocator",
        ),
        (RuntimeError("memory"), 70, "error: unexpected RuntimeError: memory"),
        (RecursionError("deep"), 70, "error: unexpected RecursionError: deep"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "no"), 70, "error: unexpected UnicodeEnc"),
    ],
)
def test_every_kind_of_error_has_its_code(error, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(endings.tempfile, "tempdir", str(tmp_path))
    assert endings.handled(raising(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_interrupts_as_ctrl_c_does(name, code, capsys):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    done = []

    def run():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            done.append("what is known is written")
            raise

    try:
        assert endings.handled(run) == code
        assert done
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        assert endings.handled(lambda: signal.raise_signal(number) or 0) == 0
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.startswith("\ninterrupted; the same `run`")


@pytest.mark.parametrize("word", ["\udcff", "caf\udce9.jsonl", "--data=\udc80", "a\0b"])
def test_an_argument_that_is_not_utf_8_is_refused(arguments, refused, word):
    assert "is not UTF-8" in refused(arguments(word))


# decoders and cards of strangers


MODULES = {
    "a syntax error": ("def f(:\n", "SyntaxError"),
    "an error on import": ("1 / 0\n", "ZeroDivisionError"),
    "an exit on import": ("raise SystemExit(0)\n", "SystemExit"),
    "no text": ("\x00", "null bytes"),
    "an endless recursion": ("def f():\n    f()\nf()\n", "RecursionError"),
}


@pytest.mark.parametrize(("source", "error"), MODULES.values(), ids=MODULES.keys())
def test_a_plug_in_that_cannot_be_imported_is_one_clear_error(
    arguments, refused, tmp_path, monkeypatch, source, error
):
    (tmp_path / "strange.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(arguments("--decoder", "strange:Mine"))
    assert error in message
    assert "cannot load 'strange:Mine'" in message


def test_a_decoder_that_exits_is_its_own_error(arguments, capsys):
    argv = arguments("--decoder", f"{ME}:Exits,prompt_lookup", "--format", "json", "--limit", "1")
    assert main(argv) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["decoder"], row["errors"]) for row in rows] == [
        ("vanilla", 0),
        (f"{ME}:Exits", 1),
        ("prompt_lookup", 0),
    ]


class Strike(BaseException):
    """An exception that is none of Python's Exceptions."""


@pytest.mark.parametrize(
    ("error", "message"), [(SystemExit(0), "SystemExit: 0"), (Strike("out"), "Strike: out")]
)
def test_a_verb_ends_with_a_code_of_its_own(error, message, capsys, monkeypatch):
    monkeypatch.setattr(ls, "run", lambda _: raising(error)())
    assert main(["ls"]) == endings.UNEXPECTED
    assert f"error: unexpected ForeignExitError: {message}" in capsys.readouterr().err
