"""The verb `answers`: records in Spec-Bench's format, texts included."""

import json
import shutil

import pytest

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.cli.main import main


@pytest.fixture
def record(arguments, tmp_path, capsys):
    """`record(*more)`: the path of a record of prompt lookup on four questions."""

    def record(*more):
        main(arguments("--max-new-tokens", "12", *more))
        capsys.readouterr()
        (path,) = (tmp_path / "out").glob("*.jsonl")
        moved = shutil.move(path, tmp_path / "record.jsonl")
        shutil.rmtree(tmp_path / "out")
        return moved

    return record


def lines_of(folder, decoder):
    (path,) = folder.glob(f"*-{decoder}-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(path, output, *more):
    return main([*map(str, ("answers", path, "--format", "spec-bench", "-o", output, *more))])


def test_answers_of_a_record_have_its_tokens_per_step(record, tmp_path, capsys):
    path = record()
    output = tmp_path / "answers"
    assert answers(path, output) == 0
    printed = capsys.readouterr().out.splitlines()
    names = [f"tiny-{name}-float64-temperature-0.jsonl" for name in ("vanilla", "prompt_lookup")]
    assert sorted(p.name for p in output.iterdir()) == sorted(names)
    assert printed[0] == f"{output / names[0]}: 4 questions, 1.00 mean accepted tokens"
    for row in rows(Records.read(path)):
        lines = lines_of(output, row["decoder"])
        assert [line["question_id"] for line in lines] == ["q0", "q1", "q2", "q3"]
        lengths = [n for line in lines for n in line["choices"][0]["accept_lengths"]]
        assert sum(lengths) / len(lengths) == pytest.approx(row["tokens_per_step"])
        assert sum(sum(line["choices"][0]["new_tokens"]) for line in lines) == row["tokens"]


def test_texts_are_those_of_the_record_or_the_targets_own(record, tmp_path):
    path = record("--log-samples")
    answers(path, tmp_path / "recorded")
    content = [json.loads(line) for line in path.read_text().splitlines()]
    without = [{k: v for k, v in line.items() if k not in ("text", "prompt")} for line in content]
    path.write_text("".join(json.dumps(line) + "\n" for line in without))
    answers(path, tmp_path / "decoded")
    for decoder in ("vanilla", "prompt_lookup"):
        recorded, decoded = (lines_of(tmp_path / name, decoder) for name in ("recorded", "decoded"))
        assert recorded == decoded
        assert all(line["choices"][0]["turns"][0] for line in recorded)


def test_bad_input_of_answers_is_one_clear_error(record, refused, tmp_path):
    path = record()
    assert "no such record" in refused(["answers", tmp_path / "gone.jsonl", "-o", tmp_path / "a"])
    assert "arguments are required: -o" in refused(["answers", path])
    assert "invalid choice: 'mt'" in refused(["answers", path, "--format", "mt", "-o", tmp_path])
    (tmp_path / "file").write_text("")
    assert "cannot write to" in refused(["answers", path, "-o", tmp_path / "file" / "below"])
    error = refused(["answers", path, "-o", tmp_path / "a", "--target", "tinny"])
    assert "the record holds tokens, no texts, and unknown target 'tinny'" in error
    (tmp_path / "empty.jsonl").write_text(path.read_text().splitlines(keepends=True)[0])
    error = refused(["answers", tmp_path / "empty.jsonl", "-o", tmp_path / "a"])
    assert "holds no generation yet" in error
    assert not (tmp_path / "a").exists()


def test_another_tokenizer_is_refused(record, refused, tmp_path):
    path = record()
    content = path.read_text()
    digest = json.loads(next(x for x in content.splitlines() if '"key", "key"' in x))
    path.write_text(content.replace(digest["tokenizer_sha256"], "0" * 64))
    error = refused(["answers", path, "-o", tmp_path / "a"])
    assert "the tokenizer of 'tiny' is not the one that the record was made with" in error


def test_a_line_that_cannot_be_read_costs_its_question_alone(record, tmp_path, capsys):
    path = record()
    lines = path.read_text().splitlines(keepends=True)
    place = max(i for i, line in enumerate(lines) if '"sample": "q2"' in line)  # prompt lookup's
    lines[place] = lines[place].replace('"turn": 0', '"turn": "zero"')
    path.write_text("".join(lines))
    assert answers(path, tmp_path / "a") == 0
    err = capsys.readouterr().err
    assert f"left out: {path}:{place + 1}" in err
    for decoder, ids in (("vanilla", "0123"), ("prompt_lookup", "013")):
        asked = [line["question_id"] for line in lines_of(tmp_path / "a", decoder)]
        assert asked == [f"q{i}" for i in ids]
