"""The verb `share`: files of a record that is run here, and errors that say what to do."""

import json
import re
import shutil

import pytest
import yaml

from fspad_bench.cli.main import main
from fspad_bench.profiling.golden import read_golden


@pytest.fixture
def record(arguments, tmp_path, capsys):
    assert main(arguments("--output", tmp_path / "records")) == 0
    capsys.readouterr()
    (path,) = (tmp_path / "records").glob("*.jsonl")
    return path


def share(*words):
    return main(["share", *map(str, words)])


def two_records(record, folder):
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        shutil.copy(record, folder / name)
    return folder


def test_a_run_becomes_a_document_of_every_eval_ever(record, tmp_path, capsys):
    assert share(record.parent, "-o", tmp_path / "shared", "--organization", "a lab") == 0
    (path,) = (tmp_path / "shared").glob("data/fspad-bench/fspad-bench/tiny/*.json")
    content = json.loads(path.read_text())
    assert content["source_metadata"]["source_organization_name"] == "a lab"
    metrics = {r["metric_config"]["metric_id"] for r in content["evaluation_results"]}
    assert metrics == {
        "accuracy",
        "fspad_bench.speedup",
        "fspad_bench.speedup_end_to_end",
        "fspad_bench.tokens_per_step",
        "fspad_bench.verdict",
    }
    assert str(tmp_path) not in path.read_text()
    assert capsys.readouterr().out == f"{path}: {len(content['evaluation_results'])} results\n"


def test_a_score_that_is_no_number_is_left_out_by_name(record, tmp_path, capsys):
    record.write_text(record.read_text().replace('"accuracy": 0.0', '"accuracy": NaN'))
    assert share(record, "-o", tmp_path / "shared") == 0
    err = capsys.readouterr().err
    assert "left out: accuracy of prompt_lookup on gsm8k: it is not finite" in err
    (path,) = (tmp_path / "shared").rglob("*.json")
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    metrics = {r["metric_config"]["metric_id"] for r in content["evaluation_results"]}
    assert metrics
    assert "accuracy" not in metrics


def test_a_run_becomes_results_of_the_hub(record, tmp_path, capsys):
    assert share(record, "-o", tmp_path / "repo", "--as", "hub", "--benchmark", "lab/speeds") == 0
    (path,) = (tmp_path / "repo" / ".eval_results").glob("*.yaml")
    assert path.name == "gsm8k-questions.jsonl-prompt_lookup-greedy.yaml"
    assert [entry["dataset"]["id"] for entry in yaml.safe_load(path.read_text())] == [
        "lab/speeds"
    ] * 3
    assert capsys.readouterr().out == f"{path}: 3 results\n"


def test_bad_input_of_share_is_one_clear_error(record, refused, tmp_path):
    gone = tmp_path / "gone.jsonl"
    assert "no such record" in refused(["share", gone, "-o", tmp_path / "s"])
    error = refused(["share", record, "-o", tmp_path / "s", "--as", "hub"])
    assert "no row of this record is a result of a benchmark" in error
    assert "--benchmark OWNER/NAME" in error
    error = refused(["share", record, "-o", tmp_path / "s", "--as", "hub", "--benchmark", "speeds"])
    assert "'speeds' is no data set of the hub" in error
    assert "'mine' is no hub id" in refused(["share", record, "-o", "s", "--model", "mine"])
    (tmp_path / "file").write_text("")
    assert "cannot write to" in refused(["share", record, "-o", tmp_path / "file"])
    error = refused(["share", two_records(record, tmp_path / "two"), "-o", tmp_path / "s"])
    assert "two holds 2 records" in error
    empty = tmp_path / "empty.jsonl"
    empty.write_text(record.read_text().splitlines(keepends=True)[0])
    assert "holds no generation yet" in refused(["share", empty, "-o", tmp_path / "s"])
    empty.write_text("no record\n")
    assert "not a record line" in refused(["share", empty, "-o", tmp_path / "s"])
    assert not (tmp_path / "s").exists()


def test_the_hint_of_the_golden_export_leads_to_a_curve(arguments, record, refused, tmp_path):
    """The record is of prompt lookup, whose drafts follow the text."""
    words = ["share", record, "-o", tmp_path / "curves", "--as", "golden"]
    (given,) = re.findall(r"such as `(.+?)`", refused(words))
    run = arguments("--output", tmp_path / "chains", "--max-new-tokens", "24", *given.split())
    assert main(run) == 0
    assert share(tmp_path / "chains", *words[2:]) == 0
    (path,) = (tmp_path / "curves").glob("*.yaml")
    (curve,) = read_golden(path)
    assert (curve.mode, list(curve.lengths)) == ("thinking_off", [5])
