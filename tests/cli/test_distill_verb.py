"""The verb `distill`, from the command line to what training reads."""

import json

import pytest

from fspad_bench.cli import main as cli
from fspad_bench.cli.arguments import parser
from fspad_bench.training.features import read_conversations

TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def distill(*words):
    return cli.main(["distill", "--target", "tiny", "--rows", "16", *map(str, words)])


def test_own_conversations_with_their_overlap_report(tmp_path, capsys):
    assert distill("--output", tmp_path / "set", "--tokens", "0.1k", "--shard", 6) == 0
    assert "no row shares 10 words" in capsys.readouterr().out
    assert json.loads((tmp_path / "set" / "overlap.json").read_text())["rows"] > 0
    assert read_conversations([tmp_path / "set"], 97, 8192)


def test_given_conversations_and_what_was_left_out(tmp_path, capsys):
    source = tmp_path / "given.jsonl"
    source.write_text(json.dumps(TALK) + "\n" + json.dumps({"messages": []}) + "\n")
    assert distill("--of", source, "--output", tmp_path / "set") == 0
    assert f"left out 1 rows, the first {source}:2: no messages" in capsys.readouterr().err
    (conversation,) = read_conversations([tmp_path / "set"], 97, 8192)
    assert len(conversation.answers) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "many"], "not a count: many"),
        (["--tokens", "0"], "not a count: 0"),
        (["--regenerate"], "--regenerate needs conversations"),
        (["--of", "gone.jsonl"], "no such data: gone.jsonl"),
        (["--target", "tinny"], "unknown target 'tinny'"),
        (["--against", "spec-bench=gone.jsonl"], "no such data file: gone.jsonl"),
    ],
)
def test_bad_input_of_distill_is_one_clear_error(refused, tmp_path, words, said):
    argv = [
        "distill",
        "--target",
        "tiny",
        "--output",
        tmp_path / "set",
        "--tokens",
        "10",
        "--shard",
        "4",
        *words,
    ]
    assert said in refused(argv)


@pytest.mark.parametrize(
    ("text", "count"), [("7", 7), ("2k", 2000), ("1.5M", 1_500_000), ("1e3", 1000)]
)
def test_counts_may_be_written_short(text, count):
    assert parser().parse_args(["distill", "--output", "x", "--tokens", text]).tokens == count
