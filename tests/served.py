"""Run shell scripts whose `python -m fspad_bench` and `fspad-bench` this process carries out.

A stub stands for both programs: it leaves a request, waits, and prints the answer. A verb then runs
where torch has been imported already; the scripts are the true ones.
"""

import io
import runpy
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from fspad_bench.cli.main import main

STUB = f"""#!/usr/bin/env bash
if [ "${{0##*/}}" = python ]; then
    if [ "$1 $2" != "-m fspad_bench" ]; then exec {sys.executable} "$@"; fi
    shift 2
fi
folder=$(mktemp -d -p "$SERVED")
printf '%s\\0' "$@" > "$folder/words"
mv "$folder/words" "$folder/request"
while [ ! -e "$folder/code" ]; do sleep 0.02; done
cat "$folder/out"
cat "$folder/err" >&2
exit "$(cat "$folder/code")"
"""


class Served:
    """Programs in `folder / "bin"`, whose verbs run here while a script does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests = folder / "requests"
        self.requests.mkdir(parents=True)
        programs = folder / "bin"
        programs.mkdir()
        for name in ("python", "fspad-bench"):
            (programs / name).write_text(STUB)
            (programs / name).chmod(0o755)
        self.python = str(programs / "python")
        self.variables = {"SERVED": str(self.requests), "PYTHON": self.python}

    def run(
        self, command: list[str], environment: dict[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run a script as `subprocess.run` does, and its requests meanwhile."""
        path = f"{self.folder / 'bin'}:{environment['PATH']}"
        environment = environment | self.variables | {"PATH": path}
        outputs = [self.folder / name for name in ("stdout", "stderr")]
        with outputs[0].open("w") as out, outputs[1].open("w") as err:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=err, cwd=cwd)
            while process.poll() is None:
                for request in self.requests.glob("*/request"):
                    _answer(request)
                time.sleep(0.01)
        texts = [path.read_text() for path in outputs]
        return subprocess.CompletedProcess(command, process.returncode, *texts)


def _answer(request: Path) -> None:
    words = request.read_text().split("\0")[:-1]
    request.unlink()
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(words)
    (request.parent / "out").write_text(out.getvalue())
    (request.parent / "err").write_text(err.getvalue())
    (request.parent / "part").write_text(str(code))
    (request.parent / "part").rename(request.parent / "code")


def printed(script: Path, *words: object) -> str:
    """Return what a Python script prints, run in this process."""
    argv = patch.object(sys, "argv", [str(script), *map(str, words)])
    with argv, redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(script), run_name="__main__")
    return out.getvalue()
