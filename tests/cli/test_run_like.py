"""`run --like`: the run of a record, repeated and compared with it."""

import json
import shutil

import pytest
from commands import ME

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.tasks import tasks_of
from fspad_bench.cli.main import main


@pytest.fixture
def record(arguments, tmp_path, capsys):
    """`record(*more)`: a record of a run, apart from the folder that runs write to."""

    def record(*more):
        assert main(arguments("--output", tmp_path / "records", *more)) in (0, 1)
        capsys.readouterr()
        return next((tmp_path / "records").glob("*.jsonl"))

    return record


def like(path, output, *more):
    return main([*map(str, ("run", "--like", path, "--output", output, *more))])


def header(path):
    return json.loads(path.read_text().splitlines()[0])


def test_a_run_like_a_record_gives_the_same_tokens(record, tmp_path, capsys):
    given = ("--temperature", "0,1", "--seed", "3", "-D", "prompt_lookup.length=3")
    path = record(*given, "--limit", "2")
    assert like(path, tmp_path / "again") == 0
    out, err = capsys.readouterr()
    _, _, beside = out.partition(f"beside {path.name}")
    assert beside.count("2 of 2") == 4
    assert "  nothing that decides a figure differs\n" in err
    (again,) = (tmp_path / "again").glob("*.jsonl")
    mine, theirs = header(again)["plan"], header(path)["plan"]
    assert mine == {**theirs, "dtype": "float64", "threads": mine["threads"]}
    assert Records.read(again).keys == Records.read(path).keys


def test_what_is_given_or_differs_is_said_before_anything_is_measured(record, tmp_path, capsys):
    path = record()
    path.write_text(path.read_text().replace('"machine": "', '"machine": "Old '))
    assert like(path.parent, tmp_path / "again", "--limit", "1", "--format", "json") == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)) == ["rows"]
    before, _, after = err.partition("generations")
    assert "  limit: 16 in the record, given as 1\n" in before
    assert "  machine: Old " in before
    assert "  data_sha256: " in before
    assert "1 of 1" in after


def test_a_damaged_line_of_the_record_is_named(record, tmp_path, capsys):
    path = record("--limit", "2")
    lines = path.read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if '"kind": "sample"' in line)
    lines[number] = "torn\n"
    path.write_text("".join(lines))
    assert like(path, tmp_path / "again") == 0
    out, err = capsys.readouterr()
    assert f"left out: {path}:{number + 1}: " in err
    assert "1 of 1" in out


def test_a_record_that_cannot_be_repeated_is_one_clear_error(
    record, refused, data, tmp_path, capsys
):
    path = record("--limit", "2")
    out = tmp_path / "out"
    edited = tmp_path / "edited.jsonl"

    def refusal(old, new):
        edited.write_text(path.read_text().replace(old, new))
        return refused_lines(main(["run", "--like", str(edited), "--output", str(out)]))

    def refused_lines(code):
        assert code == 2
        printed, err = capsys.readouterr()
        assert printed == ""
        assert "Traceback" not in err
        error, hint = err.splitlines()[-2:]
        assert (error[:7], hint[:7]) == ("error: ", "hint:  ")
        assert not list(out.glob("*.jsonl"))
        return err

    error = refusal("prompt_lookup", "prompt_lookdown")
    assert "cannot repeat edited.jsonl: unknown decoder 'prompt_lookdown'" in error
    assert "cannot repeat" in refusal("prompt_lookup", "an_engine.of_a_stranger:Engine")
    assert "not a record line" in refusal('{"kind": "run"', "no JSON")
    assert "'target'" in refusal('"target": "tiny", "options"', '"target": 7, "options"')
    data.write_text(data.read_text().replace("and 1", "and 2"))
    assert "the questions of gsm8k" in refusal("", "")
    data.unlink()
    assert "the record's data file questions.jsonl is not here" in refusal("", "")
    assert "no such record" in refused(["run", "--like", tmp_path / "gone", "--output", out])
    shutil.copy(path, path.with_name("second.jsonl"))
    assert "holds 2 records" in refused(["run", "--like", path.parent, "--output", out])


def test_without_a_record_decoders_and_tasks_are_needed(refused):
    error = refused(["run", "--task", "gsm8k"])
    assert "the following arguments are required: --decoder\n" in error
    assert "arguments are required: --decoder, --task" in refused(["run"])


def test_a_foreign_engine_that_is_installed_is_repeated(record, tmp_path, capsys):
    path = record("--decoder", f"{ME}:Lossy", "--limit", "1")
    assert like(path, tmp_path / "again") == 1  # it is lossy here too
    assert "lossy" in capsys.readouterr().out.partition("beside")[2]


@pytest.mark.parametrize(
    "flag",
    [["--like", "x"], ["--limit", "3"], ["-D", "suffix.n=1"], ["--no-aa"], ["--log-samples"]],
)
def test_a_plan_says_all(refused, flag):
    assert f"--plan says all, and {flag[0]} is given" in refused(["run", "--plan", "x.json", *flag])


def test_a_file_without_a_plan_is_told_with_what_one_is(refused, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"decoders": ["suffix"], "tasks": ["gsm8k"]}')
    said = refused(["run", "--plan", path])
    assert f"{path} holds no plan: it has no 'target'" in said
    assert "first line of a record" in said
    path.write_text("garbage")
    assert "holds no plan: not JSON" in refused(["run", "--plan", path])
    assert "cannot read" in refused(["run", "--plan", tmp_path / "none"])


def test_all_tasks_are_those_of_the_records_data(record, data, tmp_path):
    """A file is taken for one of every task; of bundled samples some tasks have none."""
    data.write_text('{"turns": ["Hello?"]}\n')
    path = record("--limit", "1", "--max-new-tokens", "2")
    assert like(path, tmp_path / "again", "--task", "all") == 0
    (again,) = (tmp_path / "again").glob("*.jsonl")
    tasks = header(again)["plan"]["tasks"]
    assert tasks == tasks_of(str(data))
    assert set(tasks) > set(tasks_of("bundled"))
