"""Wherever a run is cut off, the same command completes the table that an uninterrupted run prints.

Generations are stubs here: every token, step and time follows from the question, its noise, the
decoder, and what a decoder has learned.
"""

import json
import random
import sys

import pytest
import torch
from runs import Foreign, Own, plan_of, run, write

from fspad_bench.benchmark import evidence, failures, runner, stats
from fspad_bench.benchmark.audit import Auditor, Finding
from fspad_bench.benchmark.guards import watch
from fspad_bench.benchmark.record import Pit, Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.core.protocols import Generation
from fspad_bench.decoders import build
from fspad_bench.decoders.build import Decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.util import provenance

pytestmark = [pytest.mark.usefixtures("one_target", "stubs"), pytest.mark.wide]
ME = "test_endurance"
LEARNS = f"{ME}:Learns"
LABELS = [f"{ME}:{name}" for name in ("Differs", "Fails", "Draws", "Disturbs")]
TURNS = [["One?", "And then?"], ["Two?"]]


class Learns(Vanilla):
    """A decoder that drafts more, the more prompts it has seen."""

    scope = "run"

    def __init__(self, target):
        self.seen = []

    def stub(self, prompt, tokens):
        self.seen.append(prompt)
        random.seed(str(self.seen))
        return tokens, random.randrange(1, 4)


class Differs(Foreign):
    def stub(self, prompt, tokens):
        return [*tokens[:3], *[7] * (len(tokens) - 3)], 2


class Fails(Vanilla):
    """A decoder that fails in a second turn only, and runs out of memory on one prompt."""

    def stub(self, prompt, tokens):
        if len(prompt) > 40:
            raise ZeroDivisionError("a second turn")
        if tokens[0] % 3 == 0:
            raise torch.OutOfMemoryError("no room")
        return tokens, 2


class Draws(Own):
    """A decoder with a rule of its own, whose samples are not vanilla's."""

    def stub(self, prompt, tokens):
        return tokens[::-1], 1


class Disturbs(Vanilla):
    """A decoder that leaves torch changed, and opens another undeclared file on each prompt."""

    folder = None

    def stub(self, prompt, tokens):
        torch.set_default_dtype(torch.float16)
        with open(self.folder / f"{len(prompt)}.txt", "a"):
            return tokens, 1


def generate(decoder, target, sampler, prompt, limit):
    """Stand in for a generation: all of it follows from its arguments and the decoder's state."""
    dice = random.Random(f"{sampler.stream} {sampler.temperature} {prompt}")
    tokens = dice.choices(range(10, 90), k=limit.max_new_tokens)
    width = 1
    own = decoder.drafter or decoder.engine
    if hasattr(own, "stub"):
        tokens, width = own.stub(list(prompt), tokens)
    steps = [min(width, len(tokens) - 1 - start) for start in range(0, len(tokens) - 1, width)]
    return Generation(
        tokens,
        prefill_seconds=0.25,
        decode_seconds=0.01 * len(steps),
        forwards=len(steps),
        committed=steps,
        drafted=[width - 1] * len(steps),
        draft_seconds=0.001,
        score_seconds=0.002,
        prefill_forwards=1,
    )


class Idle:
    """A machine on which nothing else runs."""

    def __init__(self, helpers):
        pass

    def others(self):
        return 0.0


class Unchanged:
    """A guard of a target and of code that nothing changes."""

    def __init__(self, *_):
        pass

    def changed(self):
        return ""

    def answers_otherwise(self):
        return False


@pytest.fixture
def stubs(monkeypatch, tmp_path):
    """Let labels find the decoders of this file, and nothing take time or depend on it."""
    monkeypatch.setitem(sys.modules, ME, sys.modules[__name__])
    monkeypatch.setattr(Decoder, "generate", generate)
    monkeypatch.setattr(runner.machine, "Load", Idle)
    monkeypatch.setattr(runner, "CodeGuard", Unchanged)
    monkeypatch.setattr(watch, "TargetGuard", Unchanged)
    monkeypatch.setattr(build, "code_hashes", lambda cls: {})
    monkeypatch.setattr(provenance, "provenance", lambda: {"source_sha256": "s"})
    draw = stats._resampled_means
    monkeypatch.setattr(stats, "_resampled_means", lambda rows, _, seed: draw(rows, 20, seed))
    monkeypatch.setattr(runner, "free_unreachable", lambda: None)
    monkeypatch.setattr(failures, "note_traceback", lambda error: None)
    monkeypatch.setattr(Disturbs, "folder", tmp_path)

    def audit(self, sampler, prompt, vanilla, decoder, limit):
        return Finding(3, [float(token) for token in decoder], [0.0], 0.5)

    def pit(target, prompt, sample, sampler):
        u = [random.Random(f"{prompt} {i}").random() for i in range(len(sample.tokens))]
        return Pit(sample.key, sample.sample, sample.turn, sample.round, u, [0] * len(u))

    monkeypatch.setattr(Auditor, "audit", audit)
    monkeypatch.setattr(evidence, "evidence", pit)


@pytest.fixture
def questions(tmp_path):
    data = write(tmp_path, [turns[0] for turns in TURNS])
    lines = [
        f'{{"id": "q{i}", "turns": {turns!r}, "answers": ["{i}"]}}\n'.replace("'", '"')
        for i, turns in enumerate(TURNS)
    ]
    data.write_text("".join(lines))
    return data


@pytest.fixture
def plan(questions):
    return plan_of(questions, *LABELS, temperatures=[0.0, 1.0], aa=True)


@pytest.fixture
def learning(questions):
    """A plan of a decoder that learns across prompts, which takes one temperature."""
    return plan_of(questions, LEARNS, LABELS[0], temperatures=[0.0], aa=True)


@pytest.fixture
def whole(plan, tmp_path):
    """Return the lines of an uninterrupted run, and its table."""
    path, records = run(plan, tmp_path / "whole")
    table = rows(records)
    assert [row["errors"] for row in table if row["decoder"].endswith("Fails")] != [0, 0]
    assert {finding["guard"] for row in table for finding in row["findings"]} == {
        "machine",
        "files",
    }
    assert {row["verdict"] for row in table} >= {"exact", "lossy", "unverified"}
    return path.read_bytes().splitlines(keepends=True), table


def resumed(plan, folder, content):
    """Resume a record with this content. Returns its table."""
    folder.mkdir()
    path = folder / "20260101T000000-tiny-0000.jsonl"
    path.write_bytes(content)
    again, records = run(plan, folder)
    assert again == path
    assert records.complete
    assert Records.read(path).samples == records.samples
    return rows(records)


def name_of(row):
    return row["decoder"], row["temperature"]


def assert_equal(table, expected, where):
    differing = [
        (row["decoder"], row["temperature"], name, row[name], value)
        for row, known in zip(table, expected, strict=True)
        for name, value in known.items()
        if row[name] != value
    ]
    assert (where, differing) == (where, [])


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_record_cut_off_anywhere_is_completed_to_the_same_table(plan, whole, tmp_path, step):
    """After a line, and in the middle of the next, by turns."""
    lines, table = whole
    for count in range(1, len(lines), step):
        torn = lines[count][: len(lines[count]) // 2] if count % 2 else b""
        content = b"".join(lines[:count]) + torn
        assert_equal(resumed(plan, tmp_path / f"cut{count}", content), table, count)


def test_one_of_a_decoder_that_learns_is_too(learning, tmp_path):
    path, records = run(learning, tmp_path / "whole")
    lines = path.read_bytes().splitlines(keepends=True)
    widths = {sample.committed[0] for sample in records.samples}
    assert len(widths) > 1
    for count in range(1, len(lines)):
        table = resumed(learning, tmp_path / f"cut{count}", b"".join(lines[:count]))
        assert_equal(table, rows(records), count)


def test_a_damaged_line_is_measured_again(plan, whole, tmp_path):
    """Every kind of line but the first, which makes a file a record."""
    lines, table = whole
    unfinished = [line for line in lines if b'"kind": "end"' not in line]
    kinds = [json.loads(line)["kind"] for line in unfinished]
    assert set(kinds) == {"run", "key", "sample", "aa", "audit", "pit", "finding", "score"}
    for kind in sorted(set(kinds) - {"run"}):
        places = [i for i, own in enumerate(kinds) if own == kind]
        for place in {places[0], places[len(places) // 2], places[-1]}:
            damaged = [
                *unfinished[:place],
                unfinished[place][:-9] + b"\n",
                *unfinished[place + 1 :],
            ]
            content = b"".join(damaged)
            again = resumed(plan, tmp_path / f"damaged{place}", content)
            assert again[0]["decoder"] == "vanilla"
            assert_equal(sorted(again, key=name_of), sorted(table, key=name_of), place)


def test_a_decoder_that_learns_otherwise_when_repeated_is_told(learning, tmp_path, monkeypatch):
    path, _ = run(learning, tmp_path / "whole")
    lines = path.read_bytes().splitlines(keepends=True)
    content = b"".join(lines[:-5])  # the last unit lacks a sample
    monkeypatch.setattr(Learns, "stub", lambda self, prompt, tokens: (tokens, 5))
    for row in resumed(learning, tmp_path / "otherwise", content):
        told = [f["text"] for f in row["findings"] if f["guard"] == "state"]
        assert bool(told) == (row["decoder"] == LEARNS)
        assert all("took other steps when they were repeated" in text for text in told)
