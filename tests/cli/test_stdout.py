"""Stdout holds results alone: what plug-ins print goes to stderr, whatever the verb."""

import json
from xml.etree import ElementTree

import pytest
import yaml
from commands import ME

from fspad_bench.cli import ls
from fspad_bench.cli.main import main
from fspad_bench.drafts.sizing import costs
from fspad_bench.profiling import forward, probe, timing
from fspad_bench.util.terminal import show

CHATTY = f"{ME}:Chatty"
FEW = "--target tiny --device cpu --limit 1 --max-new-tokens 3".split()


@pytest.fixture
def printed(capsys):
    """`printed(*words)`: a command's output, after a check that its decoder printed meanwhile."""

    def printed(*words):
        assert main([*map(str, words)]) == 0
        out, err = capsys.readouterr()
        assert "drafting!" in err
        assert "drafting!" not in out
        return out

    return printed


def test_whatever_a_verb_calls_prints_to_stderr(monkeypatch, capsys):
    def run(arguments):
        print("chatter")
        show("result")
        return 0

    monkeypatch.setattr(ls, "run", run)
    assert main(["ls"]) == 0
    assert capsys.readouterr() == ("result\n", "chatter\n")


def test_run(arguments, printed):
    out = printed(*arguments("--decoder", CHATTY, "--format", "json", "--limit", "1"))
    assert json.loads(out)["rows"][1]["verdict"] == "exact"


@pytest.mark.parametrize(
    ("style", "read"), [("json", json.loads), ("junit", ElementTree.fromstring)]
)
def test_check(printed, tmp_path, style, read):
    entry = {"target": "tiny", "task": "nq", "limit": 1, "max_new_tokens": 3, "tokens_per_step": 1}
    path = tmp_path / "chatty.yaml"
    path.write_text(yaml.safe_dump({"decoder": CHATTY, "promises": [entry]}))
    assert read(printed("check", path, "--format", style)) is not None


def test_throughput(printed):
    words = ("throughput", *FEW, "--decoder", CHATTY, "--batch", "1", "--format", "json")
    assert list(json.loads(printed(*words))["decoders"]) == ["vanilla", CHATTY]


def test_profile(printed, monkeypatch):
    monkeypatch.setattr(forward, "NODES", (1,))
    monkeypatch.setattr(forward, "LENGTHS", (16,))
    monkeypatch.setattr(timing, "CPU_COPY", 1 << 20)
    assert "c(n) / c(1)" in printed("profile", *FEW, "--decoder", CHATTY)


def test_project(arguments, printed, tmp_path, monkeypatch):
    printed(*arguments("--decoder", CHATTY, "--limit", "1"))
    monkeypatch.setattr(costs, "is_tiny", lambda target: False)
    monkeypatch.setattr(probe, "measure_target", lambda target: costs.TINY)
    monkeypatch.setattr(probe, "TOKENS", 4)
    (row,) = json.loads(printed("project", tmp_path / "out", "--format", "json"))["projections"]
    assert row["decoder"] == CHATTY
