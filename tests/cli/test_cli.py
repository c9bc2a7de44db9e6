"""The verb `run`: its output, its exit codes, and one clear error for every kind of bad input."""

import errno
import json
import os
import signal

import pytest
from commands import ME
from test_rows import CONTRACT

from fspad_bench.benchmark.record import Records
from fspad_bench.cli.main import main


def test_a_run_prints_its_table_on_stdout_and_the_rest_on_stderr(arguments, capsys, tmp_path):
    assert main(arguments("--temperature", "0,1")) == 0
    out, err = capsys.readouterr()
    assert sum(line.startswith("prompt_lookup  ") for line in out.splitlines()) == 2
    assert "exact" in out
    assert "generations" in err
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert f"record: {path}" in err


def test_json_is_one_document_with_the_names_of_the_contract(arguments, capsys):
    assert main(arguments("--format", "json", "--limit", "2", "-D", "prompt_lookup.length=3")) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["rows"]
    vanilla, lookup = document["rows"]
    assert set(CONTRACT) <= vanilla.keys() == lookup.keys()
    assert (vanilla["decoder"], lookup["decoder"], lookup["verdict"]) == (
        "vanilla",
        "prompt_lookup",
        "exact",
    )
    assert lookup["options"] == {"tree": "fixed", "ngram": 3, "shortest": 2, "length": 3}
    assert (lookup["samples"], lookup["max_new_tokens"], lookup["top_p"], lookup["top_k"]) == (
        2,
        5,
        1.0,
        0,
    )
    assert (lookup["task"], lookup["target"], lookup["dtype"]) == ("gsm8k", "tiny", "float64")


def test_vanilla_is_measured_twice_unless_it_is_left_out(arguments, capsys):
    rows = []
    for flags in ([], ["--no-aa", "--repeats", "2"]):
        assert main(arguments("--format", "json", "--limit", "1", *flags)) == 0
        rows.append(json.loads(capsys.readouterr().out)["rows"][1])
    assert [(row["aa"] is None, row["repeats"]) for row in rows] == [(False, 1), (True, 2)]


@pytest.mark.parametrize("style", ["text", "markdown", "csv", "json"])
def test_the_table_of_a_record_is_the_table_of_its_run(arguments, capsys, tmp_path, style):
    main(arguments("--format", style))
    printed = capsys.readouterr().out
    (path,) = (tmp_path / "out").glob("*.jsonl")
    for given in (path, tmp_path / "out", tmp_path):
        if given == tmp_path:
            (tmp_path / "questions.jsonl").unlink()
        assert main(["table", str(given), "--format", style]) == 0
        assert capsys.readouterr() == (printed, "")


def test_a_lossy_row_is_exit_code_1(arguments, capsys):
    assert main(arguments("--decoder", f"{ME}:Lossy,prompt_lookup", "--format", "json")) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["decoder"]: row["verdict"] for row in rows} == {
        "vanilla": "exact",
        f"{ME}:Lossy": "lossy",
        "prompt_lookup": "exact",
    }


def test_a_failed_sample_is_exit_code_1(arguments, capsys, tmp_path):
    assert main(arguments("--decoder", f"{ME}:Broken,prompt_lookup")) == 1
    out = capsys.readouterr().out
    assert "4 generations failed" in out
    assert main(["table", str(tmp_path / "out")]) == 1


def test_a_prompt_too_long_is_exit_code_1_and_2_where_none_fits(arguments, capsys, data, refused):
    rows = [{"question": "x" * 9000, "answer": "1"}, {"question": "short?", "answer": "1"}]
    data.write_text(json.dumps(rows[0]) + "\n")
    assert "no prompt fits" in refused(arguments())
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(arguments()) == 1
    assert "2 generations failed" in capsys.readouterr().out


def test_vanilla_may_be_named_and_names_repeated(arguments, capsys):
    assert (
        main(arguments("--decoder", "prompt_lookup, vanilla,prompt_lookup", "--format", "json"))
        == 0
    )
    assert [row["decoder"] for row in json.loads(capsys.readouterr().out)["rows"]] == [
        "vanilla",
        "prompt_lookup",
    ]


def test_a_temperature_named_twice_is_one(arguments, capsys):
    assert main(arguments("--temperature", "1,1.0", "--format", "json")) == 0
    assert [row["samples"] for row in json.loads(capsys.readouterr().out)["rows"]] == [4, 4]


def test_all_tasks_are_run_with_all(arguments, capsys, data):
    data.write_text('{"turns": ["Hello?"]}\n')
    assert main(arguments("--task", "all", "--format", "json")) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["task"] for row in rows} >= {"mt_bench", "wmt", "cnn_dm", "nq", "gsm8k", "rag"}
    assert {row["score"] for row in rows} == {None}


def test_ctrl_c_is_130_and_the_same_command_resumes(arguments, capsys, tmp_path, monkeypatch):
    argv = arguments("--decoder", f"{ME}:Interrupted")
    monkeypatch.setattr(f"{ME}.Interrupted.calls", 0)  # the class that the label names
    # a shell that starts the tests in the background has the signal ignored
    monkeypatch.setattr(
        signal, "raise_signal", lambda number: signal.default_int_handler(number, None)
    )
    assert main(argv) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert (
        err.splitlines()[-1]
        == "interrupted; the same `run`, `sweep`, `train`, `distill` or `certify --served` command "
        "resumes where it stopped"
    )
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert len(Records.read(path).samples) == 4
    assert main(argv) == 0
    assert f"resuming {path}" in capsys.readouterr().err
    assert list((tmp_path / "out").glob("*.jsonl")) == [path]
    assert len(Records.read(path).samples) == 8


def test_a_full_disk_is_one_clear_error_and_the_same_command_resumes(
    arguments, capsys, monkeypatch, tmp_path
):
    left = [4]

    def full(fd):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(arguments()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    first, second = err.splitlines()[-2:]
    assert first.startswith("error: cannot write")
    assert "No space left on device" in first
    assert "give the same command again" in second
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert main(arguments()) == 0
    assert list((tmp_path / "out").glob("*.jsonl")) == [path]


# bad input of a run


@pytest.mark.parametrize(
    ("given", "error", "hint"),
    [
        ("--decoder fspda", "unknown decoder 'fspda'", "did you mean 'fspad'?"),
        ("--decoder ,", "',' contains no name", "fspad-bench ls"),
        ("--decoder no.such:Thing", "cannot load 'no.such:Thing'", "name"),
        ("--decoder os:sep", "os:sep is not a decoder class", "package.module:Class"),
        ("--decoder builtins:int", "builtins:int is not a decoder class", "class"),
        ("--decoder fspad@papper", "fspad has no preset 'papper'", "did you mean 'paper'?"),
        ("--task gsm8", "unknown task 'gsm8'", "did you mean 'gsm8k'?"),
        ("--task ,", "',' contains no name", "fspad-bench ls"),
        ("--target tinny", "unknown target 'tinny'", "did you mean 'tiny'?"),
        ("--target ./gone", "unknown target './gone'", "folder"),
        (
            "-D prompt_lookup.lenght=3",
            "prompt_lookup has no option 'lenght'",
            "did you mean 'length'?",
        ),
        ("-D prompt_lookup.length=many", "prompt_lookup.length=many is not an integer", "number"),
        ("-D prompt_lookup.length=0", "1 <= length < 128", "defaults"),
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
        ("--device gpu", "unknown device 'gpu'", "auto"),
        ("--device cpu:0,cpu", "'cpu' among several devices, without a number", "number each"),
        ("--device cpu:0,cpu:0", "--device cpu:0,cpu:0 names cpu:0 twice", "name each device once"),
        ("--device balanced", "unknown device 'balanced'", "give one of"),
        ("--dtype int8", "invalid choice: 'int8'", "--help"),
        ("--format xml", "invalid choice: 'xml'", "--help"),
        ("--data gone.jsonl", "no such data file: gone.jsonl", "path"),
        ("--data bundeld", "unknown data source 'bundeld'", "bundled"),
        ("--data spec-bench=gone.jsonl", "no such data file: gone.jsonl", "path"),
        ("--task rag --data hub", "'rag' has no data set on the hub", "--data bundled"),
        ("--frobnicate", "unrecognized arguments: --frobnicate", "--help"),
        ("--frobnicate -x", "unrecognized arguments: --frobnicate -x", "--help"),
        ("--max-tokens 3", "unrecognized arguments: --max-tokens 3", "did you mean --max-new-tok"),
        ("--treads=2", "unrecognized arguments: --treads=2", "did you mean --threads?"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, refused, given, error, hint):
    message, advice = refused(arguments(*given.split())).splitlines()
    assert error in message
    assert hint in advice


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "is empty"),
        ("no json\n", ":1: not JSON"),
        (
            '{"question": "q", "answer": "1"}\n{"question": "q"}\n',
            ":2: the field of the answer (answer) is missing",
        ),
        ('{"answer": "1"}\n', ":1: 'question' is undefined"),
        ("[1]\n", ":1: not a JSON object"),
        ('{"question": "q", "answer": "nobody knows"}\n', "nobody knows"),
        ('{"question": "q", "answer": "1"}\n' * 2, "two samples"),
    ],
)
def test_a_bad_data_file_is_one_clear_error(arguments, refused, data, content, error):
    data.write_text(content)
    assert error in refused(arguments())


@pytest.mark.parametrize(
    "words", [[], ["run"], ["ls", "dogs"], ["table"], ["fetch", "gpt-4"], ["train"]]
)
def test_a_bad_command_is_one_clear_error(refused, words):
    assert "--help` lists the arguments" in refused(words)


def test_an_output_that_is_a_file_is_refused_before_anything_is_measured(arguments, refused, data):
    assert f"cannot write records to {data}" in refused(arguments("--output", data))
    assert "--output" in refused(arguments("--output", data / "in" / "it"))


def test_a_folder_that_is_no_target_is_refused(arguments, refused, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no config.json" in refused(arguments("--target", folder))
    (folder / "config.json").write_text("{}")
    assert "cannot load target 'model'" in refused(arguments("--target", folder))


def test_a_missing_network_is_one_clear_error(arguments, refused, monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand a page more")

    monkeypatch.setattr("fspad_bench.models.load.AutoTokenizer.from_pretrained", fail)
    monkeypatch.setattr("fspad_bench.models.load.AutoModelForCausalLM.from_pretrained", fail)
    message = refused(arguments("--target", "owner/some-model"))
    assert "cannot load target 'owner/some-model': We couldn't connect" in message
    monkeypatch.setattr("datasets.load_dataset", fail)
    assert "cannot load openai/gsm8k@" in refused(arguments("--data", "hub"))
