"""The verb `distill`, from the command line to what training reads."""

import json

import pytest

from fspad_bench.cli import main as cli
from fspad_bench.cli.main import parser
from fspad_bench.training.conversations import all_conversations, read_files

CONVERSATION = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
}


@pytest.fixture(autouse=True)
def short(shorten, monkeypatch):
    shorten(monkeypatch)


def distill(*words):
    return cli.main(["distill", "--target", "tiny", "--rows", "16", *map(str, words)])


def read(folder):
    return all_conversations(read_files([folder], 97, 8192))


def test_own_conversations_with_their_overlap_report(tmp_path, capsys):
    assert distill("--output", tmp_path / "set", "--tokens", "0.1k", "--shard", 6) == 0
    assert "no row shares 10 words" in capsys.readouterr().out
    report = json.loads((tmp_path / "set" / "overlap.json").read_text())
    assert report["rows"] > 0
    tasks = {name.removesuffix("@bundled") for name in report["prompts"]}
    assert tasks >= {"mt_bench", "wmt", "cnn_dm", "nq", "gsm8k", "rag"}
    assert all(report["prompts"].values())
    assert read(tmp_path / "set")


def test_given_conversations_and_those_left_out(tmp_path, capsys):
    source = tmp_path / "given.jsonl"
    source.write_text(json.dumps(CONVERSATION) + "\n" + json.dumps({"messages": []}) + "\n")
    assert distill("--of", source, "--output", tmp_path / "set") == 0
    assert f"left out 1 rows, the first {source}:2: no messages" in capsys.readouterr().err
    (conversation,) = read(tmp_path / "set")
    assert len(conversation.answers) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "many"], "not a count: many"),
        (["--tokens", "0"], "not a count: 0"),
        (["--regenerate"], "--regenerate needs given conversations"),
        (["--of", "gone.jsonl"], "no such data: gone.jsonl"),
        (["--target", "tinny"], "unknown target 'tinny'"),
        (["--against", "spec-bench=gone.jsonl"], "no such data file: gone.jsonl"),
    ],
)
def test_bad_input_of_distill_is_one_clear_error(refused, tmp_path, words, message):
    argv = "distill --target tiny --tokens 10 --shard 4 --output".split()
    argv += [tmp_path / "set", *words]
    assert message in refused(argv)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("text", "count"), [("7", 7), ("2k", 2000), ("1.5M", 1_500_000), ("1e3", 1000)]
)
def test_counts_may_be_written_short(text, count):
    assert parser().parse_args(["distill", "--output", "x", "--tokens", text]).tokens == count
