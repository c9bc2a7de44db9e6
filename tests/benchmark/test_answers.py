"""Records as Spec-Bench's answer files, read again by a few lines written after its description."""

import json
from dataclasses import replace

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample, two_prompts

from fspad_bench.benchmark.answers import Asked, accept_lengths, answer_files, category
from fspad_bench.benchmark.record import Records, Sample
from fspad_bench.benchmark.rows import rows
from fspad_bench.util.errors import BenchError

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem")
MT_BENCH += ("humanities",)


def spec_bench_speed(lines, baseline, task="overall"):
    """Return Spec-Bench's two figures of answer files: mean accepted tokens and speedup.

    Its script pools the accept lengths of all questions, sums a question's turns before it divides
    tokens by time, and averages over questions. It counts the baseline's tokens by its texts, which
    here hold one word a token.
    """

    def belongs(line):
        return task == "overall" or line["category"] in (MT_BENCH if task == "mt_bench" else task)

    accepted, speeds, base_speeds = [], [], []
    for line in filter(belongs, map(json.loads, lines)):
        choice = line["choices"][0]
        accepted += choice["accept_lengths"]
        speeds.append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
    for line in filter(belongs, map(json.loads, baseline)):
        choice = line["choices"][0]
        words = sum(len(text.split()) for text in choice["turns"])
        base_speeds.append(words / sum(choice["wall_time"]))
    speedup = (sum(speeds) / len(speeds)) / (sum(base_speeds) / len(base_speeds))
    return sum(accepted) / len(accepted), speedup


def words(key, sample):
    return " ".join(map(str, sample.tokens))


def written(every):
    """Return the lines of each file by its name."""
    return {f.name: [json.dumps(line) for line in f.lines] for f in answer_files(every, words)}


def two_turns(key, decode, committed):
    """Return three questions of two turns by a decoder."""
    return [
        sample(
            key,
            str(81 + 10 * number),
            1 + sum(committed),
            decode * (1 + number + turn),
            turn=turn,
            committed=committed,
            forwards=len(committed),
        )
        for number in range(3)
        for turn in range(2)
    ]


VANILLA_MT = replace(VANILLA, task="mt_bench")
FAST_MT = replace(FAST, task="mt_bench")


def test_spec_benchs_reader_finds_our_figures():
    samples = [*two_turns(VANILLA_MT, 1.0, [1] * 9), *two_turns(FAST_MT, 0.45, [4, 4, 1])]
    every = records(*samples, keys=(VANILLA_MT, FAST_MT))
    files = written(every)
    vanilla = files["tiny-vanilla-float64-temperature-0"]
    for name, lines in files.items():
        accepted, speedup = spec_bench_speed(lines, vanilla, "mt_bench")
        row = row_of(rows(every), name.split("-")[1])
        assert accepted == pytest.approx(row["tokens_per_step"])
        assert speedup == pytest.approx(row["speedup_spec_bench"])
    assert spec_bench_speed(files["tiny-fast-float64-temperature-0"], vanilla)[0] == 3.0


def test_the_lines_of_a_file():
    every = records(*two_turns(FAST_MT, 1.0, [4, 1]), keys=(FAST_MT,))
    every.started = "2026-11-22T12:16:24+00:00"
    (file,) = answer_files(every, words)
    assert (file.name, file.left_out, file.mean_accepted) == (
        "tiny-fast-float64-temperature-0",
        [],
        2.5,
    )
    first = file.lines[0]
    assert list(first) == "question_id category answer_id model_id choices tstamp".split()
    assert (first["question_id"], first["category"]) == (81, "writing")
    assert first["model_id"] == file.name
    assert first["tstamp"] == 1795349784.0
    assert first["choices"] == [
        {
            "index": 0,
            "turns": ["0 1 2 3 4 5", "0 1 2 3 4 5"],
            "decoding_steps": [2, 2],
            "new_tokens": [6, 6],
            "wall_time": [1.1, 2.1],
            "accept_lengths": [4, 1, 4, 1],
        }
    ]
    assert len({line["answer_id"] for line in file.lines}) == 3


@pytest.mark.parametrize(
    ("committed", "forwards", "lengths"),
    [
        ([3, 2, 1], 3, [3, 2, 1]),
        ([3, 2], 4, [3, 2, 0, 0]),  # forwards of the drafter's own
        ([3, 2, 1], 2, [3, 3]),  # steps that shared a forward
        ([], 2, []),  # an engine that does not tell its steps
        ([], 0, []),  # an answer of one token: the prefill's
        ([3, 2], 0, []),  # an engine that does not tell its forwards
    ],
)
def test_accept_lengths_have_our_mean(committed, forwards, lengths):
    answer = Sample("key", "a", 0, "r", committed=committed, forwards=forwards)
    assert accept_lengths(answer) == lengths
    row = row_of(rows(records(sample(FAST, "a", 9, 1.0, committed=committed, forwards=forwards))))
    mean = sum(lengths) / len(lengths) if lengths else None
    assert row["tokens_per_step"] == (pytest.approx(mean) if mean is not None else None)


def test_tokens_beyond_the_limit_are_new_tokens():
    every = records(sample(FAST, "a", 9, 1.0, overshoot=2, committed=[5, 5], forwards=2))
    (choice,) = answer_files(every, words)[0].lines[0]["choices"]
    assert (choice["new_tokens"], choice["accept_lengths"]) == ([11], [5, 5])


def test_a_question_with_a_failed_or_missing_turn_is_left_out():
    samples = two_turns(FAST_MT, 1.0, [4, 1])
    samples[1] = replace(samples[1], error="ValueError: no", tokens=[])
    every = records(*samples[:-1], *two_turns(VANILLA_MT, 1.0, [1]), keys=(VANILLA_MT, FAST_MT))
    vanilla, fast = answer_files(every, words)
    assert [line["question_id"] for line in vanilla.lines] == [81, 91, 101]
    assert [line["question_id"] for line in fast.lines] == [91]
    assert fast.left_out == [Asked("mt_bench", "81"), Asked("mt_bench", "101")]


def test_a_decoder_that_always_failed_has_no_lines():
    every = records(sample(FAST, "a", [], 0.0, error="no"), sample(VANILLA, "a", 9, 1.0))
    vanilla, fast = answer_files(every, words)
    assert (len(vanilla.lines), fast.lines, fast.mean_accepted) == (1, [], None)


def test_a_question_that_was_asked_again_counts_once():
    samples = two_prompts()
    (vanilla, fast) = answer_files(records(*samples, *samples), words)
    assert len(vanilla.lines) == len(fast.lines) == 2


def test_tasks_share_a_file_and_settings_do_not():
    other_task = replace(FAST, task="nq", data_sha256="cd" * 32, max_new_tokens=64)
    deeper = replace(FAST, options={"depth": 4})
    hot = replace(FAST, temperature=0.5)
    keys = (FAST, other_task, deeper, hot)
    samples = [sample(key, str(number), 5, 1.0) for number, key in enumerate(keys)]
    files = answer_files(records(*samples, keys=keys), words)
    assert [len(file.lines) for file in files] == [2, 1, 1]
    names = [file.name for file in files]
    assert len(set(names)) == 3
    assert names[2] == "tiny-fast-float64-temperature-0.5"
    assert names[0].rpartition("-")[0] == names[1].rpartition("-")[0] == names[2][:-2]
    assert [line["category"] for line in files[0].lines] == ["math_reasoning", "qa"]


def test_one_question_of_two_runs_is_refused():
    longer = replace(FAST, max_new_tokens=64)
    keys = (FAST, longer)
    every = records(*[sample(key, "7", 5, 1.0) for key in keys], keys=keys)
    with pytest.raises(BenchError, match="question 7 of gsm8k was answered in two rows"):
        answer_files(every, words)


@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        ("mt_bench", "81", "writing"),
        ("mt_bench", "95", "roleplay"),
        ("mt_bench", "160", "humanities"),
        ("mt_bench", "bundled-3", "writing"),
        ("mt_bench", "5", "writing"),
        ("wmt", "161", "translation"),
        ("rag", "560", "rag"),
        ("acme", "161", "acme"),
    ],
)
def test_categories_are_spec_benchs(task, name, expected):
    assert category(Asked(task, name)) == expected


def test_a_key_of_schema_1_is_known_by_the_hash_in_its_file():
    """Its fields have another hash today."""
    every = Records(keys={"0123": FAST}, samples=[replace(sample(FAST, "a", 5, 1.0), key="0123")])
    (file,) = answer_files(every, words)
    assert len(file.lines) == 1


@pytest.mark.parametrize("started", ["", "yesterday"])
def test_a_run_without_a_time_has_the_time_0(started):
    every = replace(records(sample(FAST, "a", 5, 1.0)), started=started)
    assert answer_files(every, words)[0].lines[0]["tstamp"] == 0.0


def test_an_id_of_more_digits_than_a_number_has_stays_a_text():
    name = "9" * 5000
    every = records(sample(VANILLA, name, 3, 1.0), sample(VANILLA, "12", 3, 1.0), keys=(VANILLA,))
    (lines,) = written(every).values()
    assert [json.loads(line)["question_id"] for line in lines] == [name, 12]


def test_of_repeats_the_first_is_written():
    samples = [
        sample(VANILLA, "1", tokens, 1.0, repeat=repeat, round_=str(repeat))
        for repeat, tokens in enumerate([4, 5])
    ]
    (file,) = answer_files(records(*samples, keys=(VANILLA,)), lambda key, answer: "text")
    ((choice,),) = [line["choices"] for line in file.lines]
    assert choice["new_tokens"] == [4]
