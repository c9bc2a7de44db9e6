"""Runs that share the questions: together they are the whole run, and it has its score."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from runs import ME, plan_of, run

from fspad_bench.benchmark import shards
from fspad_bench.benchmark.origin import origin_of
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.prompts import prompts_of
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.runner import Runner
from fspad_bench.benchmark.shards import Shard, launched, launched_device, of_process
from fspad_bench.engine.placement import Placement
from fspad_bench.util.errors import BenchError

SAME = ("verdict", "tokens_per_step", "samples", "tokens", "score")


def plan(shard):
    return Plan(
        decoders=["vanilla", "prompt_lookup"],
        tasks=["gsm8k"],
        target="tiny",
        data="bundled",
        limit=5,
        max_new_tokens=8,
        aa=False,
        shard=shard,
    )


@pytest.mark.parametrize(
    ("text", "shard"), [("", (1, 1)), ("1/1", (1, 1)), ("2/3", (2, 3)), ("3/3", (3, 3))]
)
def test_a_shard_is_read(text, shard):
    assert Shard.of(text) == shard


@pytest.mark.parametrize("text", ["2", "0/2", "3/2", "a/b", "1/", "/2", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(BenchError, match="shard"):
        Shard.of(text)


def test_every_index_belongs_to_one_shard():
    parts = [[i for i in range(10) if Shard(k, 3).has(i)] for k in (1, 2, 3)]
    assert parts == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_shards_together_are_the_whole_run(quick_runs, tmp_path):
    whole = Records.read(Runner(plan(""), tmp_path / "whole").run())
    first = Runner(plan("1/2"), tmp_path / "parts").run()
    assert Records.read(first).scores == {}
    second = Runner(plan("2/2"), tmp_path / "parts").run()
    parts = Records.read(first, second)
    assert parts.complete
    assert parts.scores == whole.scores
    assert list(parts.scored.values()) == list(whole.scored.values()) == [5, 5]
    tokens = {(s.key, s.sample, s.turn): s.tokens for s in whole.samples}
    assert {(s.key, s.sample, s.turn): s.tokens for s in parts.samples} == tokens
    assert len(parts.samples) == len(tokens) == 10
    for one, other in zip(rows(parts), rows(whole), strict=True):
        assert {name: one[name] for name in SAME} == {name: other[name] for name in SAME}
        assert (one["runs"], other["runs"]) == (2, 1)
    (said,) = [line for line in render(rows(parts), "text").splitlines() if "read as one" in line]
    assert said.startswith("2 runs are read as one: tokens/s and first token are of different")
    assert "read as one" not in render(rows(whole), "text")


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        (["cpu"], "cpu"),
        (["cuda:0"], "cuda"),
        (["cuda:1"], "cuda"),
        (["cuda:0", "cuda:1"], "cuda:0,cuda:1"),
    ],
)
def test_shards_on_equal_gpus_share_their_rows(monkeypatch, tiny, devices, name):
    """A row's key names the kind of a single device, not its number."""
    layers = tuple(map(torch.device, devices))
    monkeypatch.setattr(tiny, "placement", Placement(layers[0], layers))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    origin = origin_of(tiny, prompts_of(tiny, "tiny", []))
    assert origin["device"] == name
    assert origin["machine"].startswith("a GPU, ") == (name != "cpu")


def test_an_unfinished_shard_leaves_the_task_without_a_score(quick_runs, tmp_path):
    first = Runner(plan("1/2"), tmp_path).run()
    *kept, _ = first.read_text().splitlines(keepends=True)
    first.write_text("".join(line for line in kept if '"kind": "end"' not in line))
    second = Runner(plan("2/2"), tmp_path).run()
    assert Records.read(second).complete
    assert Records.read(first, second).scores == {}


def record(folder, name, shard, *, end=True):
    path = folder / name
    run = {"kind": "run", "schema": 4, "plan": asdict(plan(shard))}
    lines = [run, {"kind": "end", "status": "complete"}] if end else [run]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_only_parts_of_one_division_are_the_whole(tmp_path):
    own = record(tmp_path, "own.jsonl", "1/3")
    second = record(tmp_path, "b.jsonl", "2/3")
    for number, other in enumerate(["1/2", "2/2", "", "1/3", "3/4"]):
        record(tmp_path, f"{number}.jsonl", other)
    record(tmp_path, "unfinished.jsonl", "3/3", end=False)
    (tmp_path / "stranger.jsonl").write_text("not a record\n")
    assert shards.together(plan("1/3"), own) == []
    third = record(tmp_path, "c.jsonl", "3/3")
    assert shards.together(plan("1/3"), own) == [own, second, third]


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, ""),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ""),
        ({"RANK": "1", "WORLD_SIZE": "3"}, "2/3"),
        ({"RANK": "x", "WORLD_SIZE": "3"}, ""),
    ],
)
def test_a_launched_process_knows_its_shard(monkeypatch, environment, shard):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == shard


@pytest.mark.parametrize(
    ("given", "device"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")]
)
def test_launched_processes_have_a_gpu_each(monkeypatch, given, device):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launched_device(given) == device
    monkeypatch.setattr(shards, "launched", lambda: "")
    assert launched_device(given) == given


def test_a_launched_process_measures_its_part_of_any_plan(monkeypatch):
    monkeypatch.setattr(shards, "launched", lambda: "")
    assert of_process(plan("")) == plan("")
    assert of_process(plan("1/4")) == plan("1/4")
    monkeypatch.setattr(shards, "launched", lambda: "2/3")
    assert of_process(plan("")) == plan("2/3")
    assert of_process(plan("2/3")) == plan("2/3")
    with pytest.raises(BenchError, match="share this run, and it is shard 1/4 of another"):
        of_process(plan("1/4"))


@pytest.mark.usefixtures("one_target")
def test_a_decoder_that_learns_across_prompts_is_not_shared(data, tmp_path):
    with pytest.raises(BenchError, match="Learner learns across prompts: a shard would show it"):
        run(plan_of(data, f"{ME}:Learner", shard="1/2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_torchrun_shares_the_questions_between_two_processes(tmp_path):
    run = "run --target tiny --decoder prompt_lookup --task gsm8k --data bundled --limit 3"
    launch = "torch.distributed.run --nproc-per-node 2 -m fspad_bench"
    words = f"{launch} {run} --max-new-tokens 6 --no-aa --output {tmp_path}".split()
    environment = os.environ | {"FSPAD_BENCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    records = Records.read(*tmp_path.glob("*.jsonl"))
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert len({sample.sample for sample in records.samples}) == 3
    assert len(records.scores) == 2


@pytest.mark.parametrize("device", ["cuda:0,cuda:1", "cuda:0+cuda:1"])
def test_processes_that_share_a_run_have_one_device_each(monkeypatch, device):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BenchError, match=r"each would have --device cuda:0"):
        of_process(replace(plan(""), device=device))
