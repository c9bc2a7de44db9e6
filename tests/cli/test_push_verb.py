"""Repositories of the hub: what a dry run writes, what is pushed, and what stays here."""

import json
import re
import shlex
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
import yaml

from fspad_bench.cli.main import main, parser
from fspad_bench.decoders.build import check_options
from fspad_bench.decoders.options import read_options, split_names
from fspad_bench.drafts.head import shipped


@pytest.fixture
def record(arguments, tmp_path, capsys):
    assert main(arguments("--output", tmp_path / "records", "--log-samples")) == 0
    capsys.readouterr()
    (path,) = (tmp_path / "records").glob("*.jsonl")
    return path


def push(*words):
    return main(["push", *map(str, words)])


def front(card):
    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


def test_a_head_becomes_a_model_repository(tmp_path, capsys):
    folder = shipped("fspad", "tiny")
    assert push(folder, "--repo", "lab/fspad-tiny", "--dry-run", tmp_path / "out") == 0
    assert capsys.readouterr().err.endswith("nothing was pushed\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "head.json", "head.safetensors"}
    weights = (tmp_path / "out" / "head.safetensors").read_bytes()
    assert weights == (folder / "head.safetensors").read_bytes()
    about = json.loads((tmp_path / "out" / "head.json").read_text())
    assert about["identity"] == json.loads((folder / "head.json").read_text())["identity"]
    assert '"command"' not in json.dumps(about)
    card = (tmp_path / "out" / "README.md").read_text()
    assert front(card) == {
        "license": "apache-2.0",
        "base_model": "fspad-bench/tiny",
        "tags": ["speculative-decoding", "fspad-bench", "fspad"],
    }
    assert "-D fspad.head=lab/fspad-tiny" in card
    counted = f"{about['conversations']} conversations, {about['answer_tokens']} answer tokens"
    assert f"| data | {counted} |" in card


def test_the_head_that_was_written_can_be_run(tmp_path, quick_runs):
    assert push(shipped("fspad", "tiny"), "--repo", "a/b", "--dry-run", tmp_path / "head") == 0
    run = "run --target tiny --decoder fspad --task gsm8k --data bundled --limit 1 --no-aa"
    words = [*run.split(), "--max-new-tokens", "4", "-D", f"fspad.head={tmp_path / 'head'}"]
    assert main([*words, "--output", str(tmp_path / "records")]) == 0


def command(card):
    """Return the words of the command that a card shows, without the program's name."""
    (line,) = [line for line in card.splitlines() if line.startswith("fspad-bench run ")]
    return shlex.split(line)[1:]


@pytest.mark.parametrize("architecture", ["fspad", "draft_model", "wide", "fspad3"])
def test_the_command_of_a_card_runs_the_head(heads, tmp_path, architecture):
    folder = tmp_path / "head"
    assert push(heads[architecture], "--repo", "lab/head", "--dry-run", folder) == 0
    words = command((folder / "README.md").read_text())
    arguments = parser().parse_args(words)
    check_options(split_names(arguments.decoder), read_options(arguments.options))
    here = [word.replace("lab/head", str(folder)) for word in words]
    few = "--data bundled --limit 1 --no-aa --max-new-tokens 4".split()
    assert main([*here, *few, "--output", str(tmp_path / "records")]) == 0


def test_records_become_a_data_set(record, tmp_path):
    out = tmp_path / "out"
    assert push(record.parent, "--repo", "lab/results", "--dry-run", out) == 0
    assert {path.name for path in out.iterdir()} == {"README.md", "rows.jsonl"}
    card = (out / "README.md").read_text()
    assert front(card)["configs"] == [{"config_name": "default", "data_files": "rows.jsonl"}]
    assert "| prompt_lookup | exact" in " ".join(card.split())
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [row["decoder"] for row in rows] == ["vanilla", "prompt_lookup"]
    assert str(tmp_path) not in card + json.dumps(rows)
    table = datasets.Dataset.from_json(str(out / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert table["verdict"] == ["exact", "exact"]


def test_several_records_have_one_table(arguments, tmp_path):
    """Two shards: each decoder has one row, of the prompts of both."""
    for shard in ("1/2", "2/2"):
        words = arguments("--limit", "4", "--shard", shard, "--output", tmp_path / "records")
        assert main(words) == 0
    out = tmp_path / "out"
    assert push(tmp_path / "records", "--repo", "lab/results", "--dry-run", out) == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(row["decoder"], row["samples"]) for row in rows] == [
        ("vanilla", 4),
        ("prompt_lookup", 4),
    ]
    assert "mean of the tasks" not in (out / "README.md").read_text()


def test_each_row_has_the_caveats_of_its_own_records(record, tmp_path):
    """A decoder of a finished run and one of an unfinished run; vanilla is in both."""
    folder = tmp_path / "both"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(record.read_bytes())
    *lines, _ = record.read_text().replace("prompt_lookup", "other").splitlines(keepends=True)
    (folder / "b.jsonl").write_text("".join(lines))
    assert push(folder, "--repo", "lab/results", "--dry-run", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    unfinished = [line for line in card.splitlines() if line.endswith("the run is unfinished")]
    assert [line.split(" on ")[0] for line in unfinished] == ["- other", "- vanilla"]


def test_what_is_no_number_is_null_and_a_device_stays(record, tmp_path):
    text = record.read_text().replace('"accuracy": 0.0', '"accuracy": NaN')
    record.write_text(text.replace('"device": "cpu"', '"device": "cuda:0"'))
    assert push(record, "--repo", "lab/results", "--dry-run", tmp_path / "out") == 0
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [(row["score"], row["device"]) for row in rows] == [(None, "cuda:0")] * 2
    assert "cuda:0, 1 thread" in (tmp_path / "out" / "README.md").read_text()


def test_the_name_of_a_machine_is_no_path(record, tmp_path):
    machine = "AMD Ryzen 7 7840U w/ Radeon 780M Graphics, avx512f, 8 cores"
    text = re.sub(r'"machine": "[^"]*"', f'"machine": "{machine}"', record.read_text())
    record.write_text(text.replace('"forward": "', '"forward": "fused/'))
    assert push(record, "--repo", "lab/results", "--dry-run", tmp_path / "out") == 0
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["machine"] for row in rows] == [machine] * 2
    assert all(row["forward"].startswith("fused/") for row in rows)


def test_records_of_one_name_do_not_replace_each_other(record, tmp_path):
    other = tmp_path / "other" / record.name
    other.parent.mkdir()
    other.write_text(record.read_text().replace('"prompt_lookup"', '"again"'))
    words = (record, other, "--repo", "lab/results", "--dry-run", tmp_path / "out")
    assert push(*words, "--with-records") == 0
    paths = list((tmp_path / "out" / "records").iterdir())
    assert {path.read_bytes() for path in paths} == {record.read_bytes(), other.read_bytes()}
    assert {path.name[: len(record.stem)] for path in paths} == {record.stem}


def test_records_go_only_where_they_are_asked_for(record, tmp_path):
    words = (record, "--repo", "lab/results", "--dry-run", tmp_path / "out", "--with-records")
    assert push(*words) == 0
    (path,) = (tmp_path / "out" / "records").iterdir()
    assert path.read_bytes() == record.read_bytes()


class Api:
    """A double of the hub."""

    def __init__(self):
        self.made = []
        Api.last = self

    def create_repo(self, repo, *, repo_type, private, exist_ok):
        self.made.append((repo, repo_type, private, exist_ok))

    def create_commit(self, repo, operations, *, commit_message, repo_type):
        self.files = {operation.path_in_repo for operation in operations}
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo}/commit/1")


def test_without_a_dry_run_the_files_are_one_commit(monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(shipped("eagle", "tiny"), "--repo", "lab/eagle-tiny", "--private") == 0
    assert capsys.readouterr().out == "https://huggingface.co/lab/eagle-tiny/commit/1\n"
    assert Api.last.made == [("lab/eagle-tiny", "model", True, True)]
    assert Api.last.files == {"README.md", "head.json", "head.safetensors"}


def test_bad_input_is_one_clear_error(monkeypatch, refused, tmp_path):
    head = shipped("eagle", "tiny")
    dry = ("--dry-run", tmp_path / "out")
    assert "'eagle' is no repository" in refused(["push", head, "--repo", "eagle", *dry])
    assert "no records in" in refused(["push", tmp_path, "--repo", "a/b", *dry])
    assert "goes alone" in refused(["push", head, head, "--repo", "a/b", *dry])
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert "cannot push to a/b: division by zero" in refused(["push", head, "--repo", "a/b"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "repo",
    ["../x", "a/b/c", "a/", "/b", "a/b--c", "a/b..c", "a/.b", "a/b-", "a./b", "a/b\n", "ä/b"],
)
def test_a_name_that_the_hub_refuses_is_refused_in_a_dry_run_too(refused, tmp_path, repo):
    head = shipped("eagle", "tiny")
    words = ["push", head, "--repo", repo, "--dry-run", tmp_path / "out"]
    assert "is no repository of the hub" in refused(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"target": "tiny"}', "it has no 'decoder'"),
        ("[]", "it is no JSON object"),
        ("x", "not JSON"),
    ],
)
def test_half_a_head_is_told_with_what_it_lacks(refused, tmp_path, text, message):
    (tmp_path / "head.json").write_text(text)
    said = refused(["push", tmp_path, "--repo", "a/b", "--dry-run", tmp_path / "out"])
    assert "is of no head that was trained here" in said
    assert message in said
