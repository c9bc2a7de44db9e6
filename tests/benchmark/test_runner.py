"""Runs on the tiny target: order, records, bad input and failures."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import runs
import torch
from runs import (
    LENGTH,
    LOOKUP,
    ME,
    Headed,
    header_of,
    plan_of,
    row_of,
    run,
    tokens_of,
    write,
)

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.record import SCHEMA, Key
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import failed, rows
from fspad_bench.benchmark.runner import Runner
from fspad_bench.benchmark.units import units
from fspad_bench.decoders import about
from fspad_bench.decoders.build import check_options, configure
from fspad_bench.drafts.sizing.costs import TINY
from fspad_bench.models.chat import tokenizer_hash
from fspad_bench.util.provenance import source_hash

pytestmark = pytest.mark.usefixtures("one_target")


CODE = Path(runs.__file__)
WARM_UPS = 4  # two prompts, two decoders, one temperature


def test_all_decoders_are_interleaved_per_prompt_in_random_order(
    data, tmp_path, calls, counted_rounds
):
    decoders = [LOOKUP, f"{ME}:Headed"]
    run(plan_of(data, *decoders, temperatures=[0.0, 1.0]), tmp_path / "out")
    measured = [call for call in calls if call.stream != "warm-up"]
    units = [measured[i : i + 3] for i in range(0, len(measured), 3)]
    assert len(units) == 5 * 2
    for unit in units:
        assert {call.label for call in unit} == {"vanilla", *decoders}
        assert len({(tuple(call.prompt), call.t, call.stream) for call in unit}) == 1
    assert len({tuple(call.label for call in unit) for unit in units}) > 1


def test_warm_up_comes_first_on_prompts_that_are_not_measured(data, tmp_path, calls):
    run(plan_of(data, LOOKUP, temperatures=[0.0, 1.0]), tmp_path / "out")
    warm = [call.stream == "warm-up" for call in calls]
    assert warm == sorted(warm, reverse=True)
    cold = {tuple(call.prompt) for call in calls if call.stream != "warm-up"}
    warmed = [call for call in calls if call.stream == "warm-up"]
    assert not cold & {tuple(call.prompt) for call in warmed}
    assert {(call.label, call.t) for call in warmed} == {
        (d, t) for d in ("vanilla", LOOKUP) for t in (0.0, 1.0)
    }


def test_room_for_the_longest_conversation_is_made_before_anything_is_timed(
    data, tmp_path, monkeypatch
):
    runner = Runner(plan_of(data), tmp_path / "out")
    target = runner.target
    real = target.session
    caches = []

    def session(*arguments, **options):
        opened = real(*arguments, **options)
        caches.append(id(opened.cache.entries))
        return opened

    monkeypatch.setattr(target, "session", session)
    runner.run()
    assert len(caches) > 5
    assert len(set(caches)) == 1


def test_the_record_is_complete(data, tmp_path):
    path, records = run(plan_of(data, LOOKUP, log_samples=True), tmp_path / "new" / "out")
    kinds = Counter(line["kind"] for line in lines(path))
    assert kinds == {"run": 1, "costs": 1, "key": 2, "sample": 10, "score": 2, "end": 1}
    assert records.complete
    header = header_of(path)
    assert header["schema"] == SCHEMA
    assert header["sources"] == {"gsm8k": str(data)}
    names = {"version", "started", "machine", "python", "packages", "argv", "source_sha256"}
    assert names <= header.keys()
    for sample in records.samples:
        assert len(sample.tokens) == LENGTH
        assert sum(sample.committed) == LENGTH - 1
        assert len(sample.committed) == len(sample.drafted) == sample.forwards
        assert sample.prefill_seconds > 0
        assert sample.decode_seconds > sample.draft_seconds + sample.score_seconds > 0
        assert sample.peak_memory is None  # known on a device only
        assert sample.prompt.startswith("u:What is")
        assert sample.text
    rounds = Counter(sample.round for sample in records.samples)
    assert list(rounds.values()) == [2] * 5


def test_the_record_holds_the_costs_that_size_trees(data, tmp_path):
    path, _ = run(
        plan_of(data, "eagle", "fixed=eagle", options={"fixed": {"tree": "fixed"}}),
        tmp_path / "out",
    )
    (line,) = [line for line in lines(path) if line["kind"] == "costs"]
    assert line["decoder"] == "eagle"
    assert line["seconds"] == dict.fromkeys(
        ("greedy", "sampled"), json.loads(json.dumps(asdict(TINY)))
    )


def test_texts_are_kept_only_on_demand(data, tmp_path):
    _, records = run(plan_of(data), tmp_path)
    assert {(s.prompt, s.text) for s in records.samples} == {("", "")}


def test_rows_have_verdict_and_score(data, tmp_path):
    _, records = run(plan_of(data, LOOKUP, temperatures=[0.0, 1.0]), tmp_path / "out")
    table = rows(records)
    assert [(row["decoder"], row["temperature"]) for row in table] == [
        ("vanilla", 0.0),
        (LOOKUP, 0.0),
        ("vanilla", 1.0),
        (LOOKUP, 1.0),
    ]
    for row in table:
        assert (row["verdict"], row["samples"], row["metric"], row["errors"]) == (
            "exact",
            5,
            "accuracy",
            0,
        )
        assert 0 < row["tokens"] <= 5 * LENGTH
        assert row["data_source"] == "questions.jsonl"
    assert not failed(table)


def test_penalties_and_min_p_are_settings_of_a_row(data, tmp_path):
    settings = {"repetition_penalty": 1.4, "presence_penalty": 0.5, "min_p": 0.05}
    plain, penalised = (
        run(plan_of(data, "fspad", temperatures=[0.0, 0.8], **more), tmp_path / name)[1]
        for name, more in (("plain", {}), ("penalised", settings))
    )
    for row in rows(penalised):
        assert {name: row[name] for name in settings} == settings
        assert (row["frequency_penalty"], row["no_repeat_ngram_size"]) == (0.0, 0)
        assert row["verdict"] == "exact"
    assert {row["repetition_penalty"] for row in rows(plain)} == {1.0}
    old, new = (tokens_of(records) for records in (plain, penalised))
    assert old != new
    table = render(rows(penalised), "text")
    assert "greedy repetition penalty 1.4 presence penalty 0.5" in table
    assert "T=0.8 min-p 0.05 repetition penalty 1.4 presence penalty 0.5" in table


def test_a_key_without_penalties_reads_as_one_that_had_none(data, tmp_path):
    _, records = run(plan_of(data), tmp_path / "out")
    (key,) = records.keys.values()
    content = {name: value for name, value in asdict(key).items() if "penalty" not in name}
    del content["min_p"], content["no_repeat_ngram_size"]
    assert Key.read(content) == key


def test_a_rule_of_its_own_is_not_trusted(data, tmp_path):
    _, records = run(plan_of(data, f"{ME}:Own", temperatures=[0.0, 1.0]), tmp_path)
    verdicts = {
        row["temperature"]: row["verdict"] for row in rows(records) if row["decoder"] != "vanilla"
    }
    assert verdicts == {0.0: "lossy", 1.0: "unverified"}


def test_vanilla_alone_is_a_run(data, tmp_path):
    _, records = run(plan_of(data), tmp_path)
    assert [row["decoder"] for row in rows(records)] == ["vanilla"]


def test_sampled_text_depends_on_seed_and_sample_alone(data, tmp_path):
    def outputs(**changes):
        _, records = run(
            plan_of(data, temperatures=[1.0], **changes),
            tmp_path / str(len(list(tmp_path.iterdir()))),
        )
        return {sample: tokens for (_, _, sample, _), tokens in tokens_of(records).items()}

    everything = outputs()
    assert outputs() == everything
    assert outputs(seed=1) != everything
    assert outputs(limit=2) == {name: everything[name] for name in ("q0", "q2")}


def test_the_task_sets_the_length_of_answers_unless_the_user_does(data, tmp_path):
    runner = Runner(plan_of(data, max_new_tokens=None), tmp_path)
    unit = next(units(runner.data, [0.0], 1))
    tokens = runner._key(runner.decoders[0], unit).max_new_tokens
    assert tokens == tasks.load_card("gsm8k").max_new_tokens


# turns


def test_turn_two_follows_vanillas_answer_for_every_decoder(tmp_path, tiny):
    data = write(tmp_path, ["unused"], turns=["First?", "And then?"])
    plan = plan_of(
        data, f"{ME}:Foreign", options={f"{ME}:Foreign": {"edit": "other"}}, log_samples=True
    )
    _, records = run(plan, tmp_path / "out")
    by_turn = {turn: [s for s in records.samples if s.turn == turn] for turn in (0, 1)}
    assert [len(samples) for samples in by_turn.values()] == [2, 2]
    assert all(len({s.prompt_sha256 for s in samples}) == 1 for samples in by_turn.values())
    vanilla = next(s for s in by_turn[0] if records.keys[s.key].decoder == "vanilla")
    answer = tiny.tokenizer.decode(vanilla.tokens, skip_special_tokens=True)
    prompt = tiny.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "First?"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "And then?"},
        ],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    assert {s.prompt_tokens for s in by_turn[1]} == {len(prompt)}
    assert (
        by_turn[1][0].prompt_sha256 == hashlib.sha256(str(list(prompt)).encode()).hexdigest()[:16]
    )


# keys


def test_a_key_holds_the_software_the_template_and_the_card(data, tmp_path, tiny):
    _, records = run(plan_of(data, LOOKUP, f"{ME}:Learner"), tmp_path)
    card = (tasks.data_folder("tasks") / "gsm8k.yaml").read_bytes()
    template = tiny.tokenizer.chat_template.encode()
    for key in records.keys.values():
        assert key.source_sha256 == source_hash()
        assert key.template_sha256 == hashlib.sha256(template).hexdigest()
        assert key.tokenizer_sha256 == tokenizer_hash(tiny.tokenizer)
        assert key.card_sha256 == hashlib.sha256(card).hexdigest()
        assert key.torch == torch.__version__
    scopes = {key.decoder: key.scope for key in records.keys.values()}
    assert scopes == {"vanilla": "prompt", LOOKUP: "prompt", f"{ME}:Learner": "run"}
    assert "schema 1" not in render(rows(records), "text")


def test_another_template_is_another_row(data, tmp_path, tiny, monkeypatch):
    _, first = run(plan_of(data), tmp_path / "a")
    template = tiny.tokenizer.chat_template
    monkeypatch.setattr(tiny.tokenizer, "chat_template", template + "{# the same prompts #}")
    _, second = run(plan_of(data), tmp_path / "b")
    assert not first.keys.keys() & second.keys.keys()


def test_options_and_the_heads_hash_are_in_the_key(data, tmp_path, monkeypatch):
    plan = plan_of(data, f"{ME}:Headed", options={f"{ME}:Headed": {"head": "a/b"}})
    _, records = run(plan, tmp_path / "a")
    assert row_of(records, f"{ME}:Headed")["options"] == {
        "head": "a/b",
        "depth": 2,
        "head_sha256": "first",
        "code_sha256": hashlib.sha256(CODE.read_bytes()).hexdigest(),
    }
    monkeypatch.setattr(Headed, "digest", "second")
    _, other = run(plan, tmp_path / "b")
    differing = records.keys.keys() ^ other.keys.keys()
    assert {(records.keys | other.keys)[key].decoder for key in differing} == {f"{ME}:Headed"}
    assert not any(
        "code_sha256" in key.options for key in records.keys.values() if key.decoder == "vanilla"
    )


def test_options_reach_the_decoder_over_the_presets(data, monkeypatch, tmp_path):
    (tmp_path / "prompt_lookup.yaml").write_text("presets:\n  paper: {ngram: 5, length: 10}\n")
    monkeypatch.setattr(about, "data_folder", lambda name: tmp_path)
    paper = {"ngram": 5, "tree": ""}
    _, plain = configure(LOOKUP, {})
    assert plain == {"ngram": 3, "shortest": 2, "length": None, "tree": ""}
    assert configure(f"{LOOKUP}@paper", {})[1] == paper | {"shortest": 2, "length": 10}
    options = {LOOKUP: {"shortest": "1", "length": "9"}, f"{LOOKUP}@paper": {"length": "7"}}
    assert configure(f"{LOOKUP}@paper", options)[1] == paper | {"shortest": 1, "length": 7}
    check_options([LOOKUP, f"{LOOKUP}@paper"], options)


def test_a_decoder_can_be_compared_with_itself_under_a_name_of_its_own(data, tmp_path):
    label = f"deep={ME}:Headed"
    plan = plan_of(
        data,
        f"{ME}:Headed",
        label,
        options={"deep": {"depth": "7"}, f"{ME}:Headed": {"depth": "3"}},
    )
    _, records = run(plan, tmp_path)
    depths = {
        key.decoder: key.options["depth"]
        for key in records.keys.values()
        if key.decoder != "vanilla"
    }
    assert depths == {f"{ME}:Headed": 3, label: 7}
    text = render(rows(records), "text")
    assert "\ndeep " in text
    assert label not in text
