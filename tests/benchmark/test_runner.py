"""A run on the tiny target: who runs when, what is recorded, what a mistake or a failure leaves."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import runs
from runs import LENGTH, LOOKUP, ME, Headed, plan_of, row_of, run, tokens_of, unfinished, write

from fspad_bench.benchmark import tasks as task
from fspad_bench.benchmark.record import lines
from fspad_bench.benchmark.rows import failed, render, rows
from fspad_bench.benchmark.runner import Runner
from fspad_bench.decoders import build as method
from fspad_bench.decoders.build import check_options, configure
from fspad_bench.drafts.sizing.costs import TINY
from fspad_bench.errors import BenchError

pytestmark = pytest.mark.usefixtures("one_target")


CODE = Path(runs.__file__)


def test_all_decoders_are_interleaved_per_prompt_in_random_order(data, tmp_path, calls):
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
    made, caches = Runner(plan_of(data), tmp_path / "out"), []
    prefill = made.target.prefill
    monkeypatch.setattr(
        made.target,
        "prefill",
        lambda *a: (prefill(*a), caches.append(id(made.target.cache.rows)))[0],
    )
    made.run()
    assert len(caches) > 5
    assert len(set(caches)) == 1


def test_the_record_holds_everything(data, tmp_path):
    path, found = run(plan_of(data, LOOKUP, log_samples=True), tmp_path / "new" / "out")
    kinds = Counter(line["kind"] for line in lines(path))
    assert kinds == {"run": 1, "key": 2, "sample": 10, "score": 2, "end": 1}
    assert found.complete
    (header,) = found.headers
    assert header["sources"] == {"gsm8k": str(data)}
    assert {"version", "started", "machine", "python", "packages", "argv"} <= header.keys()
    for sample in found.samples:
        assert len(sample.tokens) == LENGTH
        assert sum(sample.committed) == LENGTH - 1
        assert len(sample.committed) == len(sample.drafted) == sample.forwards
        assert sample.prefill_seconds > 0
        assert sample.decode_seconds > sample.draft_seconds + sample.score_seconds > 0
        assert sample.peak_memory is None  # known on a device only
        assert sample.prompt.startswith("u:What is")
        assert sample.text
    rounds = Counter(sample.round for sample in found.samples)
    assert list(rounds.values()) == [2] * 5


def test_the_record_says_what_trees_were_sized_by(data, tmp_path):
    path, _ = run(
        plan_of(data, "eagle", "fixed=eagle", options={"fixed": {"tree": "fixed"}}),
        tmp_path / "out",
    )
    (found,) = [line for line in lines(path) if line["kind"] == "costs"]
    assert found["decoder"] == "eagle"
    assert found["seconds"] == dict.fromkeys(
        ("greedy", "sampled"), json.loads(json.dumps(asdict(TINY)))
    )


def test_texts_are_kept_only_on_demand(data, tmp_path):
    _, found = run(plan_of(data), tmp_path)
    assert {(s.prompt, s.text) for s in found.samples} == {("", "")}


def test_rows_have_verdict_and_score(data, tmp_path):
    _, found = run(plan_of(data, LOOKUP, temperatures=[0.0, 1.0]), tmp_path / "out")
    table = rows(found)
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


def test_a_rule_of_its_own_is_believed_nothing(data, tmp_path):
    _, found = run(plan_of(data, f"{ME}:Own", temperatures=[0.0, 1.0]), tmp_path)
    verdicts = {
        row["temperature"]: row["verdict"] for row in rows(found) if row["decoder"] != "vanilla"
    }
    assert verdicts == {0.0: "lossy", 1.0: "unverified"}


def test_vanilla_alone_is_a_run(data, tmp_path):
    _, found = run(plan_of(data), tmp_path)
    assert [row["decoder"] for row in rows(found)] == ["vanilla"]


def test_sampled_text_depends_on_seed_and_sample_alone(data, tmp_path):
    def said(**changes):
        _, found = run(
            plan_of(data, temperatures=[1.0], **changes),
            tmp_path / str(len(list(tmp_path.iterdir()))),
        )
        return {sample: tokens for (_, _, sample, _), tokens in tokens_of(found).items()}

    everything = said()
    assert said() == everything
    assert said(seed=1) != everything
    assert said(limit=2) == {name: everything[name] for name in ("q0", "q2")}


def test_the_task_says_how_long_answers_are_unless_the_user_does(data, tmp_path):
    made = Runner(plan_of(data, max_new_tokens=None), tmp_path)
    unit = next(made._units())
    assert made._key(made.methods[0], unit).max_new_tokens == task.load_card("gsm8k").max_new_tokens


# turns


def test_turn_two_stands_on_vanillas_answer_for_everyone(tmp_path, tiny):
    data = write(tmp_path, ["unused"], turns=["First?", "And then?"])
    plan = plan_of(
        data, f"{ME}:Foreign", options={f"{ME}:Foreign": {"edit": "other"}}, log_samples=True
    )
    _, found = run(plan, tmp_path / "out")
    by_turn = {turn: [s for s in found.samples if s.turn == turn] for turn in (0, 1)}
    assert [len(made) for made in by_turn.values()] == [2, 2]
    assert all(len({s.prompt_sha256 for s in made}) == 1 for made in by_turn.values())
    vanilla = next(s for s in by_turn[0] if found.keys[s.key].decoder == "vanilla")
    said = tiny.tokenizer.decode(vanilla.tokens, skip_special_tokens=True)
    prompt = tiny.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "First?"},
            {"role": "assistant", "content": said},
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


def test_options_and_the_heads_hash_are_in_the_key(data, tmp_path, monkeypatch):
    plan = plan_of(data, f"{ME}:Headed", options={f"{ME}:Headed": {"head": "a/b"}})
    _, found = run(plan, tmp_path / "a")
    assert row_of(found, f"{ME}:Headed")["options"] == {
        "head": "a/b", "depth": 2, "head_sha256": "first", "code_sha256": hashlib.sha256(CODE.read_bytes()).hexdigest()
    }  # fmt: skip
    monkeypatch.setattr(Headed, "digest", "second")
    _, other = run(plan, tmp_path / "b")
    differing = found.keys.keys() ^ other.keys.keys()
    assert {(found.keys | other.keys)[key].decoder for key in differing} == {f"{ME}:Headed"}
    assert not any(
        "code_sha256" in key.options for key in found.keys.values() if key.decoder == "vanilla"
    )


def test_options_reach_the_decoder_over_the_presets(data, monkeypatch, tmp_path):
    (tmp_path / "prompt_lookup.yaml").write_text("presets:\n  paper: {ngram: 5, length: 10}\n")
    monkeypatch.setattr(method, "data_folder", lambda name: tmp_path)
    _, plain = configure(LOOKUP, {})
    assert plain == {"ngram": 3, "shortest": 2, "length": 8}
    assert configure(f"{LOOKUP}@paper", {})[1] == {"ngram": 5, "shortest": 2, "length": 10}
    options = {LOOKUP: {"shortest": "1", "length": "9"}, f"{LOOKUP}@paper": {"length": "7"}}
    assert configure(f"{LOOKUP}@paper", options)[1] == {"ngram": 5, "shortest": 1, "length": 7}
    check_options([LOOKUP, f"{LOOKUP}@paper"], options)


def test_a_decoder_can_be_compared_with_itself_under_a_name_of_its_own(data, tmp_path):
    label = f"deep={ME}:Headed"
    plan = plan_of(
        data,
        f"{ME}:Headed",
        label,
        options={"deep": {"depth": "7"}, f"{ME}:Headed": {"depth": "3"}},
    )
    _, found = run(plan, tmp_path)
    depths = {
        key.decoder: key.options["depth"] for key in found.keys.values() if key.decoder != "vanilla"
    }
    assert depths == {f"{ME}:Headed": 3, label: 7}
    text = render(rows(found), "text")
    assert "\ndeep " in text
    assert label not in text


@pytest.mark.parametrize(
    ("decoders", "changes", "said", "hint"),
    [
        ([LOOKUP, f"{LOOKUP}=vanilla"], {}, f"two decoders are called '{LOOKUP}'", "other=DECODER"),
        (["fspda"], {}, "unknown decoder 'fspda'", "did you mean 'fspad'?"),
        (["fspad@papper"], {}, "fspad has no preset 'papper'", "did you mean 'paper'?"),
        ([f"{ME}:Headed@paper"], {}, f"{ME}:Headed has no preset 'paper'", "none are known"),
        (
            [LOOKUP],
            {"options": {LOOKUP: {"lenght": "3"}}},
            "no option 'lenght'",
            "did you mean 'length'?",
        ),
        ([LOOKUP], {"options": {LOOKUP: {"length": "x"}}}, "length=x is not an integer", "number"),
        (
            [LOOKUP],
            {"options": {"prompt_lokup": {"length": "3"}}},
            "prompt_lokup",
            "did you mean 'prompt_lookup'?",
        ),
        (
            [LOOKUP],
            {"options": {"eagle": {"depth": "3"}}},
            "this run has no decoder 'eagle'",
            "known:",
        ),
        ([LOOKUP], {"options": {LOOKUP: {"length": "0"}}}, "length >= 1", "defaults"),
        ([f"{ME}:Useless"], {}, "is no decoder", "propose"),
        ([f"{ME}:Gone"], {}, f"cannot load '{ME}:Gone'", "name"),
        ([], {"tasks": ["gsmk8"]}, "unknown task 'gsmk8'", "did you mean 'gsm8k'?"),
        ([], {"temperatures": [0.0, -1.0]}, "temperature -1.0", "0"),
        ([], {"temperatures": [float("nan")]}, "temperature nan", "0"),
        ([], {"top_p": 0.0}, "top-p 0.0", "above 0"),
        ([], {"top_p": 1.5}, "top-p 1.5", "at most"),
        ([], {"top_k": -1}, "top-k -1", "0 for no cut"),
        ([], {"data": "gone.jsonl"}, "no such data file", "path"),
        ([], {"max_new_tokens": 8192}, "no prompt fits", "--max-new-tokens"),
    ],
)
def test_every_mistake_shows_before_anything_is_written(
    data, tmp_path, calls, decoders, changes, said, hint
):
    output = tmp_path / "out"
    with pytest.raises(BenchError) as caught:
        Runner(plan_of(data, *decoders, **changes), output).run()
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert not output.exists()
    assert not calls


def test_an_answer_that_cannot_be_scored_shows_before_too(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "q", "answer": "I do not know"}\n')
    with pytest.raises(BenchError, match="I do not know"):
        Runner(plan_of(path), tmp_path / "out")


# what fails


@pytest.mark.parametrize("always", ["false", "true"])
def test_a_decoder_that_raises_is_an_error_of_its_own(data, tmp_path, capsys, always):
    label = f"{ME}:Raises"
    _, found = run(
        plan_of(data, label, LOOKUP, options={label: {"always": always}}), tmp_path / "out"
    )
    table = rows(found)
    broken = row_of(found, label)
    assert broken["errors"] == (5 if always == "true" else 1)
    assert broken["verdict"] == ("unverified" if always == "true" else "exact")
    assert failed(table)
    for decoder in ("vanilla", LOOKUP):
        row = row_of(found, decoder)
        assert (row["verdict"], row["samples"], row["errors"]) == ("exact", 5, 0)
        assert row["speedup"] is not None
    assert {s.error for s in found.samples} == {"", "ZeroDivisionError: nine"}
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert found.complete


def test_a_failure_is_not_tried_again(data, tmp_path, calls, monkeypatch):
    plan = plan_of(data, f"{ME}:Raises")
    unfinished(plan, tmp_path / "out", monkeypatch)
    calls.clear()
    _, found = run(plan, tmp_path / "out")
    assert not calls
    assert row_of(found, f"{ME}:Raises")["errors"] == 1


def test_a_prompt_too_long_is_that_samples_error(tmp_path):
    data = write(tmp_path, ["Short?", "Long? " * 1500, "Short again?"])
    _, found = run(plan_of(data, LOOKUP), tmp_path / "out")
    for decoder in ("vanilla", LOOKUP):
        row = row_of(found, decoder)
        assert (row["errors"], row["samples"], row["verdict"]) == (1, 2, "exact")
    (error,) = {s.error for s in found.samples if s.error}
    assert "exceed the context of 8192" in error
    assert failed(rows(found))


def test_a_second_turn_too_long_is_that_turns_error(tmp_path):
    data = write(tmp_path, ["unused"], turns=["First?", "Long? " * 1500])
    _, found = run(plan_of(data, LOOKUP), tmp_path / "out")
    assert [(s.turn, bool(s.error)) for s in found.samples] == [(0, False)] * 2 + [(1, True)] * 2


def test_where_no_prompt_fits_the_input_is_bad(tmp_path, calls):
    data = write(tmp_path, ["Long? " * 1500, "Longer? " * 1500])
    with pytest.raises(
        BenchError, match="no prompt fits: with its new tokens the shortest takes 90"
    ) as caught:
        run(plan_of(data, LOOKUP), tmp_path / "out")
    assert "8192" in caught.value.message
    assert not (tmp_path / "out").exists()
    assert not calls
