"""The scripts that shells read: they know every verb, and the names that may follow a flag."""

import shutil
import subprocess

import pytest

from fspad_bench.cli.completion import SHELLS
from fspad_bench.cli.main import VERBS, main


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_flag_and_name_stands_in_the_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*VERBS, "temperature", "prompt_lookup", "cnn_dm", "smollm2-135m"):
        assert word in script, word


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("fspad-bench com", {"compare", "completion"}),
        ("fspad-bench run --decoder eag", {"eagle", "eagle3"}),
        ("fspad-bench run --task gs", {"gsm8k"}),
        ("fspad-bench table --form", {"--format"}),
        ("fspad-bench table note", {"notes.jsonl"}),
    ],
)
def test_bash_proposes_what_may_follow(line, proposed, capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "notes.jsonl").touch()
    words = line.split()
    ask = f"""
{capsys.readouterr().out}
COMP_WORDS=({line})
COMP_CWORD={len(words) - 1}
$(complete -p fspad-bench | sed 's/.*-F \\([^ ]*\\) .*/\\1/') fspad-bench {words[-1]} {words[-2]}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, cwd=tmp_path)
    assert set(done.stdout.split()) == proposed, done.stderr
