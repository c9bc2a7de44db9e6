"""How a command ends: every error has one message, and its kind has one exit code.

- 2: bad input, a disk or a file that does not take what is written, or no memory left.
- 70: an error that nothing here expected, a bug. Its traceback goes to a file that the message
  names.
- 130: Ctrl-C. 143 and 129: SIGTERM and SIGHUP, which interrupt as Ctrl-C does.
- 141: whoever read the output has closed it, as `| head -1` does; nothing is said.
- Characters that a terminal cannot show are replaced, and those that it would obey are escaped.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from fspad_bench import __version__
from fspad_bench.util.errors import BenchError, TargetLost
from fspad_bench.util.memory import is_out_of_memory
from fspad_bench.util.strangers import first_line_of
from fspad_bench.util.terminal import note, note_traceback
from fspad_bench.util.text import is_text

BAD_INPUT = BenchError.exit_code
UNEXPECTED = 70
INTERRUPTED = 130
CLOSED_OUTPUT = 141
SIGNALS = ("SIGTERM", "SIGHUP")  # of a batch system, and of a terminal that is closed
RESUMED = "`run`, `sweep`, `train`, `distill` or `certify --served`"
SIGNALLED = 128  # plus the signal's number, as shells have it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SignalledInterrupt(KeyboardInterrupt):
    """A signal that interrupts as Ctrl-C does; it carries its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = SIGNALLED + number


def handled(run: Callable[[], int]) -> int:
    """Run a command and return its exit code, that of the error where one ends it."""
    _prepare_streams()
    try:
        with _interrupting_signals():
            return _written_out(run)
    except (BenchError, TargetLost) as error:
        _say(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        note("")  # after `^C`
        note(f"interrupted; the same {RESUMED} command resumes where it stopped")
        return interrupt.exit_code if isinstance(interrupt, SignalledInterrupt) else INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return CLOSED_OUTPUT
    except OSError as error:
        _drop_output()
        _say(*_of_system(error))
        return BAD_INPUT
    except Exception as error:
        if is_out_of_memory(error):
            _say(*_of_memory(error))
            return BAD_INPUT
        _say(*_unexpected(error))
        return UNEXPECTED


@contextmanager
def _interrupting_signals() -> Iterator[None]:
    """Let signals that would end the process at once end it as Ctrl-C does, what is known being
    written.

    A signal that something handles or ignores, as under `nohup`, stays as it is.
    """
    known = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    mine = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]
    with suppress(ValueError):  # only the main thread may set them
        for number in mine:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        with suppress(ValueError):
            for number in mine:
                signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise SignalledInterrupt(number)


def _written_out(run: Callable[[], int]) -> int:
    """Run a command and flush its output: what cannot be written is an error here, not at exit."""
    try:
        code = run()
    except SystemExit:  # after --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def check_arguments(argv: Sequence[str] | None) -> None:
    """Raise BenchError for an argument that is not UTF-8, which no record could hold."""
    for word in sys.argv[1:] if argv is None else argv:
        if not is_text(word) or "\0" in word:
            shown = os.fsencode(word).decode("utf-8", "backslashreplace")
            raise BenchError(f"the argument '{shown}' is not UTF-8", "rename the file it names")


def _prepare_streams() -> None:
    """Let output replace what its encoding lacks; a stream that is closed takes everything."""
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _say(message: str, hint: str) -> None:
    """Print an error, its message and its hint in one line each."""
    note(f"error: {message}")
    if hint:
        note(f"hint:  {hint}")


def _drop_output() -> None:
    """Discard what stdout still holds: at the very end Python would try to write it again."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _of_system(error: OSError) -> tuple[str, str]:
    """Return message and hint of an error of the operating system, with its path if it has one."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    place = f"{_shown(error.filename)}: " if error.filename is not None else ""
    if error.errno in NO_ROOM:
        return f"{place or 'cannot write the output: '}{reason}", "free some space, and repeat it"
    return f"{place}{reason}", "see the path, its permissions and its disk, and repeat the command"


def _shown(name: object) -> str:
    return os.fsencode(name).decode("utf-8", "replace") if isinstance(name, str) else str(name)


def _of_memory(error: Exception) -> tuple[str, str]:
    """Return message and hint where memory ran out, outside of a generation."""
    reason = first_line_of(error)
    return (
        f"out of memory: {reason}" if reason else "out of memory",
        "end what else uses it, or choose a smaller --dtype or target; "
        f"the same {RESUMED} resumes where it stopped",
    )


def _unexpected(error: Exception) -> tuple[str, str]:
    """Return message and hint of a bug, after writing its traceback to a file."""
    reason = first_line_of(error) or "no message"
    message = f"unexpected {type(error).__name__}: {reason}"
    text = "".join(traceback.format_exception(error))
    about = f"fspad-bench {__version__}, Python {sys.version}\n{sys.argv}\n\n"
    try:
        descriptor, name = tempfile.mkstemp(prefix="fspad-bench-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(about + text)
    except OSError:
        note_traceback(error)
        return message, "this is a bug of fspad-bench or of a plug-in: report the traceback above"
    return message, f"a bug of fspad-bench or of a plug-in; its traceback is in {Path(name)}"
