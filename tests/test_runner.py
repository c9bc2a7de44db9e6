"""A run on the tiny target: who runs when, what is recorded, what an interruption or a failure leaves."""

import hashlib
import json
import os
from collections import Counter
from types import SimpleNamespace

import pytest

from fspad_bench import machine, method, runner, task
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.decoding import Generation, Limit, generate
from fspad_bench.errors import BenchError
from fspad_bench.lossless.audit import Auditor
from fspad_bench.method import Method, check_options, configure
from fspad_bench.record import RecordFile, Records, lines
from fspad_bench.runner import Plan, Runner
from fspad_bench.sampling import Sampler
from fspad_bench.table import failed, rows
from fspad_bench.target import TransformersTarget

ME = "test_runner"
LOOKUP = "prompt_lookup"
LENGTH = 6


class Raises(Vanilla):
    """Fails on prompts that hold the character '9' (token 25), and on every prompt if `always`."""

    def __init__(self, target, *, always: bool = False):
        self.always = always

    def begin(self, context, scores):
        if self.always or 25 in context.tokens[: context.prompt_length]:
            raise ZeroDivisionError("nine")


class Headed(Vanilla):
    """Names a file whose content belongs to its run key."""

    digest = "first"

    def __init__(self, target, *, head: str = "", depth: int = 2):
        self.files = {"head": self.digest}


class Foreign:
    """An engine of its own, whose tokens `edit` may spoil; it claims to take no time at all."""

    def __init__(self, target, *, edit: str = "none"):
        self.target, self.edit = target, edit

    def generate(self, prompt, sampler, limit):
        tokens = generate(self.target, Vanilla(self.target), sampler, prompt, Limit(limit.max_new_tokens)).tokens
        edits = {
            "none": tokens,
            "long": [*tokens, 1, 2, 3],
            "short": tokens[:-2],
            "empty": [],
            "other": [(token + 1) % 90 for token in tokens],
        }
        return Generation(edits[self.edit], prefill_seconds=0.0, decode_seconds=0.0)


class Useless:
    def __init__(self, target):
        pass


@pytest.fixture(autouse=True)
def one_target(monkeypatch, tiny):
    """The same tiny target for every run, a short warm-up, no git and no waiting for the disk: all that takes time."""
    monkeypatch.setattr(TransformersTarget, "load", lambda name, *, device, dtype: tiny)
    monkeypatch.setattr(runner, "WARM_UP_TOKENS", 2)
    monkeypatch.setattr(machine, "_commit", dict)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def data(tmp_path):
    """Five questions; the fourth holds the character that `Raises` cannot bear."""
    return write(tmp_path, [f"What is {i} and {i}, and what is it not?" for i in (1, 2, 3, 9, 5)])


def write(folder, questions, **more):
    path = folder / "questions.jsonl"
    rows = [{"id": f"q{i}", "question": q, "answer": f"#### {i}", **more} for i, q in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_of(source, /, *decoders, **changes):
    plan = {
        "decoders": ["vanilla", *decoders],
        "tasks": ["gsm8k"],
        "target": "tiny",
        "options": {},
        "data": str(source),
        "limit": None,
        "temperatures": [0.0],
        "top_p": 1.0,
        "top_k": 0,
        "seed": 0,
        "max_new_tokens": LENGTH,
        "dtype": None,
        "device": "cpu",
        "threads": None,
        "log_samples": False,
    }
    return Plan(**plan | changes)


def run(plan, output):
    path = Runner(plan, output).run()
    return path, Records.read(path)


def row_of(found, decoder):
    (row,) = [row for row in rows(found) if row["decoder"] == decoder]
    return row


def tokens_of(found):
    """(decoder, temperature, sample, turn) -> tokens, of the last generation of each."""
    key = found.keys
    return {(key[s.key].decoder, key[s.key].temperature, s.sample, s.turn): s.tokens for s in found.samples}


@pytest.fixture
def calls(monkeypatch):
    """What every method was asked, in order: label, prompt, temperature, stream."""
    asked, real = [], Method.generate

    def generate(self, target, sampler, prompt, limit):
        asked.append(SimpleNamespace(label=self.label, prompt=prompt, t=sampler.temperature, stream=sampler.stream))
        return real(self, target, sampler, prompt, limit)

    monkeypatch.setattr(Method, "generate", generate)
    return asked


# what a run does


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
    assert {(call.label, call.t) for call in warmed} == {(d, t) for d in ("vanilla", LOOKUP) for t in (0.0, 1.0)}


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
        assert sample.peak_memory > 0
        assert sample.prompt.startswith("u:What is")
        assert sample.text
    rounds = Counter(sample.round for sample in found.samples)
    assert list(rounds.values()) == [2] * 5


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
        assert (row["verdict"], row["samples"], row["metric"], row["errors"]) == ("exact", 5, "accuracy", 0)
        assert 0 < row["tokens"] <= 5 * LENGTH
        assert row["data_source"] == "questions.jsonl"
    assert not failed(table)


def test_vanilla_alone_is_a_run(data, tmp_path):
    _, found = run(plan_of(data), tmp_path)
    assert [row["decoder"] for row in rows(found)] == ["vanilla"]


def test_sampled_text_depends_on_seed_and_sample_alone(data, tmp_path):
    def said(**changes):
        _, found = run(plan_of(data, temperatures=[1.0], **changes), tmp_path / str(len(list(tmp_path.iterdir()))))
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
    plan = plan_of(data, f"{ME}:Foreign", options={f"{ME}:Foreign": {"edit": "other"}}, log_samples=True)
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
    assert by_turn[1][0].prompt_sha256 == hashlib.sha256(str(list(prompt)).encode()).hexdigest()[:16]


# keys


def test_options_and_the_heads_hash_are_in_the_key(data, tmp_path, monkeypatch):
    plan = plan_of(data, f"{ME}:Headed", options={f"{ME}:Headed": {"head": "a/b"}})
    _, found = run(plan, tmp_path / "a")
    assert row_of(found, f"{ME}:Headed")["options"] == {"head": "a/b", "depth": 2, "head_sha256": "first"}
    monkeypatch.setattr(Headed, "digest", "second")
    _, other = run(plan, tmp_path / "b")
    differing = found.keys.keys() ^ other.keys.keys()
    assert {(found.keys | other.keys)[key].decoder for key in differing} == {f"{ME}:Headed"}


def test_options_reach_the_decoder_over_the_presets(data, monkeypatch, tmp_path):
    (tmp_path / "prompt_lookup.yaml").write_text("presets:\n  paper: {ngram: 5, length: 10}\n")
    monkeypatch.setattr(method, "data_folder", lambda name: tmp_path)
    _, plain = configure(LOOKUP, {})
    assert plain == {"ngram": 3, "shortest": 2, "length": 8}
    assert configure(f"{LOOKUP}@paper", {})[1] == {"ngram": 5, "shortest": 2, "length": 10}
    options = {LOOKUP: {"shortest": "1", "length": "9"}, f"{LOOKUP}@paper": {"length": "7"}}
    assert configure(f"{LOOKUP}@paper", options)[1] == {"ngram": 5, "shortest": 1, "length": 7}
    check_options([LOOKUP, f"{LOOKUP}@paper"], options)


@pytest.mark.parametrize(
    ("decoders", "changes", "said", "hint"),
    [
        (["fspda"], {}, "unknown decoder 'fspda'", "did you mean 'fspad'?"),
        (["fspad@papper"], {}, "fspad has no preset 'papper'", "did you mean 'paper'?"),
        ([f"{ME}:Headed@paper"], {}, f"{ME}:Headed has no preset 'paper'", "none are known"),
        ([LOOKUP], {"options": {LOOKUP: {"lenght": "3"}}}, "no option 'lenght'", "did you mean 'length'?"),
        ([LOOKUP], {"options": {LOOKUP: {"length": "x"}}}, "length=x is not an integer", "number"),
        ([LOOKUP], {"options": {"prompt_lokup": {"length": "3"}}}, "prompt_lokup", "did you mean 'prompt_lookup'?"),
        ([LOOKUP], {"options": {"eagle": {"depth": "3"}}}, "this run has no decoder 'eagle'", "known:"),
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
def test_every_mistake_shows_before_anything_is_written(data, tmp_path, calls, decoders, changes, said, hint):
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
    _, found = run(plan_of(data, label, LOOKUP, options={label: {"always": always}}), tmp_path / "out")
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
    with pytest.raises(BenchError, match="no prompt fits: with its new tokens the shortest takes 90") as caught:
        run(plan_of(data, LOOKUP), tmp_path / "out")
    assert "8192" in caught.value.message
    assert not (tmp_path / "out").exists()
    assert not calls


# foreign engines


def foreign(data, output, edit, **changes):
    label = f"{ME}:Foreign"
    _, found = run(plan_of(data, label, options={label: {"edit": edit}}, **changes), output)
    return found, row_of(found, label)


@pytest.mark.parametrize("edit", ["none", "long"])
def test_a_foreign_engine_is_timed_from_outside_and_cut_at_the_limit(data, tmp_path, edit):
    found, row = foreign(data, tmp_path / "out", edit, temperatures=[1.0])
    assert (row["verdict"], row["tokens"], row["errors"]) == ("exact", row_of(found, "vanilla")["tokens"], 0)
    assert row["speedup_end_to_end"] > 0
    assert [row[name] for name in ("speedup", "tokens_per_step", "time_to_first_token")] == [None] * 3
    made = [s for s in found.samples if found.keys[s.key].decoder != "vanilla"]
    assert all(s.prefill_seconds > 0 == s.decode_seconds for s in made)


@pytest.mark.parametrize("edit", ["short", "empty"])
def test_a_foreign_engine_that_stops_early_has_failed(data, tmp_path, edit):
    """Every token it did say is vanilla's: without this rule the row would read `tie`."""
    _, row = foreign(data, tmp_path / "out", edit)
    assert (row["errors"], row["verdict"]) == (5, "unverified")


def test_a_foreign_engine_that_says_something_else_is_lossy(data, tmp_path):
    found, row = foreign(data, tmp_path / "out", "other")
    assert (row["verdict"], row["divergences"], row["same_tokens"]) == ("lossy", 5, 0.0)
    assert len(found.audits) == 5
    assert row_of(found, "vanilla")["verdict"] == "exact"
    assert failed(rows(found))


def test_a_foreign_engine_ends_where_the_stop_is(tiny):
    method = Method("foreign", Foreign(tiny), {})
    prompt, sampler = [40, 41, 42], Sampler()
    whole = method.generate(tiny, sampler, prompt, Limit(12)).tokens
    stop = whole[5]
    cut = method.generate(tiny, sampler, prompt, Limit(12, frozenset([stop]))).tokens
    assert cut == whole[: whole.index(stop) + 1]


def test_what_no_audit_can_judge_is_unverified(data, tmp_path, monkeypatch):
    def fail(*_):
        raise runner.torch.OutOfMemoryError("no room for a copy")

    monkeypatch.setattr(Auditor, "audit", fail)
    found, row = foreign(data, tmp_path / "out", "other")
    assert (row["verdict"], row["divergences"], row["max_regret"]) == ("unverified", 5, None)
    assert not found.audits


# interruptions


def unfinished(plan, output, monkeypatch):
    """A run that has measured everything, and was stopped before its scores."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Runner, "_score", interrupt)
        run(plan, output)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def after(count, function):
    """`function`, but a Ctrl-C at its call number `count`."""
    left = [count]

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped


PLACES = [
    (PromptLookup, "begin", 3),  # in the warm-up
    (PromptLookup, "begin", 5),
    (PromptLookup, "begin", 9),
    (PromptLookup, "begin", 14),
    (RecordFile, "add", 1),
    (RecordFile, "add", 2),
    (RecordFile, "add", 3),
    (RecordFile, "add", 8),
    (RecordFile, "line", 1),
    (RecordFile, "line", 2),
    (RecordFile, "end", 1),
    (Runner, "_score", 1),
]


@pytest.mark.parametrize(("where", "name", "count"), PLACES)
def test_an_interrupted_run_goes_on_where_it_stopped(data, tmp_path, calls, monkeypatch, where, name, count):
    plan = plan_of(data, LOOKUP, temperatures=[0.0, 1.0])
    expected = tokens_of(run(plan, tmp_path / "whole")[1])
    output = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, name, after(count, getattr(where, name)))
        run(plan, output)
    before = Records.read(*output.glob("*.jsonl"))
    done = {(s.key, s.sample) for s in before.samples}
    calls.clear()
    path, found = run(plan, output)
    assert list(output.glob("*.jsonl")) == [path]
    assert found.complete
    assert tokens_of(found) == expected
    measured = [call for call in calls if call.stream != "warm-up"]
    finished = Counter((before.keys[key].temperature, name) for key, name in done)
    assert len(measured) == 2 * (10 - sum(count == 2 for count in finished.values()))
    assert [row["samples"] for row in rows(found)] == [5] * 4
    assert all(row["speedup"] is not None and row["verdict"] == "exact" for row in rows(found))


def test_an_interruption_within_the_audit_does_not_lose_it(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Auditor, "audit", after(2, Auditor.audit))
        foreign(data, tmp_path / "out", "other")
    found, row = foreign(data, tmp_path / "out", "other")
    assert (row["verdict"], row["divergences"]) == ("lossy", 5)
    assert len({(a.sample, a.round) for a in found.audits}) >= 5


def test_a_torn_line_is_no_obstacle(data, tmp_path, monkeypatch):
    plan = plan_of(data, LOOKUP)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecordFile, "add", after(4, RecordFile.add))
        run(plan, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    path.write_bytes(path.read_bytes() + '{"kind": "sample", "text": "ü'.encode()[:-1])
    again, found = run(plan, tmp_path / "out")
    assert again == path
    assert [row["samples"] for row in rows(found)] == [5, 5]


def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(data, tmp_path, monkeypatch):
    plan = plan_of(data, LOOKUP)
    real, left = os.fsync, [6]

    def full(fd):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(fd)

    with monkeypatch.context() as patch, pytest.raises(BenchError, match="No space left"):
        patch.setattr(os, "fsync", full)
        run(plan, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert len(Records.read(path).samples) == 3
    again, found = run(plan, tmp_path / "out")
    assert again == path
    assert [row["samples"] for row in rows(found)] == [5, 5]


def test_a_source_is_resolved_once_and_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "resolve_source", lambda wanted, cards: {"gsm8k": str(data)})
    unfinished(plan_of("auto"), tmp_path / "out", monkeypatch)
    monkeypatch.setattr(task, "resolve_source", interrupt)
    _, found = run(plan_of("auto"), tmp_path / "out")
    assert row_of(found, "vanilla")["data_source"] == "questions.jsonl"


def test_a_finished_run_is_not_gone_on_with(data, tmp_path):
    first, _ = run(plan_of(data), tmp_path / "out")
    before = first.read_bytes()
    second, _ = run(plan_of(data), tmp_path / "out")
    assert second != first
    assert first.read_bytes() == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"limit": 4}, {"max_new_tokens": 5}, {"temperatures": [1.0]}])
def test_another_plan_is_another_record(data, tmp_path, monkeypatch, change):
    unfinished(plan_of(data), tmp_path / "out", monkeypatch)
    run(plan_of(data, **change), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 2


def test_what_changed_meanwhile_is_measured_anew(tmp_path, monkeypatch, calls):
    data = write(tmp_path, ["One?", "Two?"])
    unfinished(plan_of(data), tmp_path / "out", monkeypatch)
    write(tmp_path, ["One?", "Three?"])
    calls.clear()
    _, found = run(plan_of(data), tmp_path / "out")
    assert len([call for call in calls if call.stream != "warm-up"]) == 2
    assert len(rows(found)) == 2


@pytest.mark.parametrize("content", [b"[]\n", b'{"id": 1}\n', b"no json\n", b"\xff\xfe\n", b"", b"\n"])
def test_other_files_in_the_folder_do_not_matter(data, tmp_path, content):
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "zzz.jsonl"
    other.write_bytes(content)
    _, found = run(plan_of(data), tmp_path / "out")
    assert found.complete
    assert other.read_bytes() == content


def test_a_damaged_record_of_the_same_plan_is_said(data, tmp_path, monkeypatch):
    unfinished(plan_of(data), tmp_path / "out", monkeypatch)
    (path,) = (tmp_path / "out").glob("*.jsonl")
    content = path.read_bytes().split(b"\n")
    content[2] = content[2][:-3]
    path.write_bytes(b"\n".join(content))
    with pytest.raises(BenchError, match=r"\.jsonl:3: not a record line"):
        run(plan_of(data), tmp_path / "out")
    assert path.read_bytes() == b"\n".join(content)


# the machine


def test_the_machine_says_what_it_is():
    about = machine.provenance()
    assert about["machine"] == machine.describe()
    assert "cores" in about["machine"]
    assert {"torch", "transformers", "numpy"} <= about["packages"].keys()
    assert machine.peak_memory() > 10_000_000


def test_load_counts_others_and_not_ourselves(monkeypatch):
    clock = {"wall": 0.0, "busy": 100.0, "own": 5.0}
    monkeypatch.setattr(machine, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: clock["own"])
    load = machine.Load()
    clock.update(wall=10.0, busy=118.0, own=15.0)
    assert load.others() == pytest.approx(0.8)
    clock.update(busy=109.0)
    assert load.others() == 0.0


@pytest.mark.parametrize("stat", ["", "cpu\n", "cpu 1 2 3\n", "nonsense and more of it here\n"])
def test_a_strange_proc_stat_is_no_load(monkeypatch, stat):
    monkeypatch.setattr(machine.Path, "read_text", lambda self: stat)
    assert machine._busy_seconds() == 0.0
