"""Rows from records made by hand, against figures worked out by hand."""

import json
from dataclasses import asdict, replace

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample, two_prompts

from fspad_bench.benchmark.record import SINCE_SCHEMA_2, Audit
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import IDENTITY, failed, rows

CONTRACT = """
    target task decoder options temperature top_p top_k seed max_new_tokens dtype device
    samples tokens verdict divergences same_tokens speedup speedup_low speedup_high
    speedup_end_to_end tokens_per_step tokens_per_second time_to_first_token peak_memory
    metric score data_source data_sha256 noisy errors target_identity forward threads
    machine version verification reset speedup_spec_bench tokens_per_step_low
    tokens_per_step_high draft_share score_share accepted scores max_regret margin_error
    differing_prompts scope source_sha256 template_sha256 tokenizer_sha256 card_sha256 torch
    target_sha256
    partial_forwards drafted
    aa aa_low aa_high aa_divergences noise_floor told_from_noise next_slower speedup_over_next
    speedup_over_next_low speedup_over_next_high prompts_to_tell repeats tokens_per_second_cv
    tokens_per_step_cv speedup_cv speedup_spec_bench_low speedup_spec_bench_high
    tokens_per_step_requests tokens_per_step_categories tokens_per_step_without_last
    tokens_per_drafting_step accepted_per_step acceptance_rate record_key runs
""".split()


def test_golden_row():
    row = row_of(
        rows(records(*two_prompts(peak_memory=5), scores={"fast": {"bleu": 12.5, "chrf": 40.0}}))
    )
    expected = {
        "target": "tiny",
        "task": "gsm8k",
        "options": {"depth": 3},
        "samples": 2,
        "tokens": 30,
        "verdict": "exact",
        "divergences": 0,
        "judged": 2,
        "same_tokens": 1.0,
        "speedup": 2.0,
        "speedup_low": None,
        "speedup_high": None,
        "speedup_end_to_end": 3.7 / 1.95,
        "speedup_spec_bench": ((10 / 0.6 + 20 / 1.35) / 2) / ((10 / 1.1 + 20 / 2.6) / 2),
        "tokens_per_step": 28 / 9,
        "tokens_per_second": 28 / 1.75,
        "time_to_first_token": 0.1,
        "draft_share": 0.2 / 1.75 / 2,
        "score_share": 0.7 / 1.75,
        "accepted": [1, 1, 3, 4],
        "peak_memory": 5,
        "metric": "bleu",
        "score": 12.5,
        "scores": {"bleu": 12.5, "chrf": 40.0},
        "noisy": False,
        "errors": 0,
        "max_regret": None,
        "data_source": "bundled",
        "reset": "per-prompt",
        "scope": "prompt",
        "partial_forwards": 0,
    }
    for name, value in expected.items():
        assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_vanillas_own_row():
    row = row_of(rows(records(*two_prompts())), "vanilla")
    assert (row["speedup"], row["tokens_per_step"], row["verdict"]) == (1.0, 1.0, "exact")
    assert row["tokens_per_second"] == pytest.approx(28 / 3.5)
    assert (row["metric"], row["score"], row["scores"], row["peak_memory"]) == (
        None,
        None,
        {},
        None,
    )


def test_speedup_is_a_ratio_of_sums_with_an_interval_around_it():
    samples = [sample(VANILLA, str(i), 10, 1.0) for i in range(8)]
    samples += [sample(FAST, str(i), 10, 0.4 + 0.05 * i) for i in range(8)]
    row = row_of(rows(records(*samples)))
    assert row["speedup"] == pytest.approx(8 / sum(0.4 + 0.05 * i for i in range(8)))
    assert 1 < row["speedup_low"] < row["speedup"] < row["speedup_high"] < 2.5


def test_speedup_is_right_when_a_tie_changes_the_length():
    samples = [
        sample(VANILLA, "a", 10, 1.0),
        sample(FAST, "a", [*range(8), 9, 9, 9, 9, 9, 9, 9, 9], 0.8),
    ]
    row = row_of(rows(records(*samples)))
    assert row["speedup"] == pytest.approx((1.0 / 9) / (0.8 / 15))
    assert row["same_tokens"] == 0.8


def test_turns_of_a_prompt_are_one_unit():
    samples = [sample(key, "a", 10, 1.0, turn=turn) for key in (VANILLA, FAST) for turn in (0, 1)]
    row = row_of(rows(records(*samples)))
    assert (row["samples"], row["tokens"], row["speedup"]) == (1, 20, 1.0)
    assert row["speedup_low"] is row["speedup_high"] is None
    assert row["tokens_per_step_low"] is row["tokens_per_step_high"] is None


def test_tokens_a_step_have_an_interval_over_prompts():
    samples = [sample(VANILLA, str(i), 10, 1.0) for i in range(8)]
    samples += [sample(FAST, str(i), 10, 1.0, committed=[i, 9], forwards=6) for i in range(8)]
    row = row_of(rows(records(*samples)))
    assert row["tokens_per_step"] == pytest.approx((28 + 72) / 48)
    assert (
        1.5
        < row["tokens_per_step_low"]
        < row["tokens_per_step"]
        < row["tokens_per_step_high"]
        < 16 / 6
    )


def test_rows_come_vanilla_first_one_a_key_in_order():
    deeper = replace(FAST, options={"depth": 4})
    hot = replace(VANILLA, temperature=1.0)
    hot_fast = replace(FAST, temperature=1.0)
    keys = (VANILLA, hot, FAST, hot_fast, deeper)
    table = rows(records(*[sample(key, "a", 10, 1.0) for key in keys], keys=keys))
    assert [(r["temperature"], r["decoder"], r["options"]) for r in table] == [
        (0.0, "vanilla", {}),
        (0.0, "fast", {"depth": 3}),
        (0.0, "fast", {"depth": 4}),
        (1.0, "vanilla", {}),
        (1.0, "fast", {"depth": 3}),
    ]


@pytest.mark.parametrize(
    "field",
    [
        "data_source",
        "data_sha256",
        "machine",
        "dtype",
        "threads",
        "version",
        "seed",
        *SINCE_SCHEMA_2,
    ],
)
def test_rows_of_different_settings_never_meet(field):
    other = replace(FAST, **{field: 3 if field in ("threads", "seed") else "other"})
    row = row_of(
        rows(
            records(
                sample(VANILLA, "a", 10, 1.0), sample(other, "a", 10, 0.5), keys=(VANILLA, other)
            )
        )
    )
    assert (row["verdict"], row["speedup"], row["divergences"], row["same_tokens"]) == (
        "unverified",
        None,
        None,
        None,
    )


def test_a_resumed_round_pairs_with_its_own_vanilla():
    """Vanilla ran twice on "a": in round r alone, and slower in round s with the decoder."""
    samples = [
        sample(VANILLA, "a", 10, 1.0, round_="r"),
        sample(VANILLA, "a", 10, 3.0, round_="s"),
        sample(FAST, "a", 10, 1.5, round_="s"),
    ]
    table = rows(records(*samples))
    assert row_of(table)["speedup"] == 2.0
    vanilla = row_of(table, "vanilla")
    assert (vanilla["samples"], vanilla["tokens"], vanilla["tokens_per_second"]) == (
        1,
        10,
        pytest.approx(9 / 3),
    )


def test_a_decoder_measured_before_keeps_its_old_partner():
    samples = [
        sample(VANILLA, "a", 10, 1.0, round_="r"),
        sample(FAST, "a", 10, 0.5, round_="r"),
        sample(VANILLA, "a", [7] * 10, 3.0, round_="s"),
    ]
    row = row_of(rows(records(*samples)))
    assert (row["speedup"], row["verdict"], row["divergences"]) == (2.0, "exact", 0)


def test_a_repeated_generation_counts_once():
    samples = two_prompts() + [s for s in two_prompts() if s.sample == "a"]
    row = row_of(rows(records(*samples)))
    assert (row["samples"], row["tokens"], row["speedup"]) == (2, 30, 2.0)


@pytest.mark.parametrize("key", [VANILLA, FAST])
def test_an_error_drops_its_pair(key):
    samples = [
        replace(s, tokens=[], error="ValueError: no") if (s.key, s.sample) == (key.hash, "b") else s
        for s in two_prompts()
    ]
    table = rows(records(*samples))
    row = row_of(table)
    assert (row["speedup"], row["verdict"]) == (2.0, "exact")
    assert row["speedup_end_to_end"] == pytest.approx(1.1 / 0.6)
    assert row_of(table, key.decoder)["errors"] == 1
    assert failed(table)


def test_an_error_that_a_later_round_mended_is_none():
    samples = [sample(FAST, "a", [], 0.0, error="no"), sample(VANILLA, "a", 10, 1.0)]
    samples += [sample(key, "a", 10, 1.0, round_="s") for key in (VANILLA, FAST)]
    table = rows(records(*samples))
    assert row_of(table)["errors"] == 0
    assert not failed(table)


def asked_twice(*outputs):
    """Return the row of a prompt that was asked in several rounds, and what `fast` answered."""
    samples = []
    audits = []
    for round_, tokens in zip("rst", outputs, strict=False):
        samples += [
            sample(VANILLA, "a", 10, 1.0, round_=round_),
            sample(FAST, "a", tokens, 0.5, round_=round_),
        ]
        if tokens != list(range(10)):
            regrets = [0.0] * 9 + [2.5 if tokens[-1] == 99 else 1e-9]
            audits.append(Audit(FAST.hash, "a", 0, round_, 9, regrets, [0.0] * 10, 1e-8))
    return row_of(rows(records(*samples, audits=audits)))


def test_what_a_decoder_did_is_judged_however_often_it_was_asked_again():
    """A process that died, or an earlier record: figures are of the last round, verdicts of all."""
    right = list(range(10))
    wrong = [*range(9), 99]
    for outputs in ([wrong, right], [right, wrong], [wrong, right, right]):
        row = asked_twice(*outputs)
        assert (row["verdict"], row["divergences"], row["max_regret"]) == ("lossy", 1, 2.5)
        assert (row["samples"], row["speedup"]) == (1, 2.0)
        assert [finding["guard"] for finding in row["findings"]] == ["repeats"]


def test_an_equal_tie_in_two_rounds_counts_once():
    tie = [*range(9), 8]
    assert asked_twice(tie, tie)["divergences"] == 1
    assert asked_twice(tie, tie)["verdict"] == asked_twice(tie)["verdict"] == "tie"


def test_a_row_of_failures_alone_has_no_figures():
    samples = [sample(VANILLA, "a", 10, 1.0), replace(sample(FAST, "a", [], 0.0), error="no")]
    table = rows(records(*samples))
    row = row_of(table)
    assert (row["verdict"], row["noisy"]) == ("unverified", False)
    assert (row["samples"], row["tokens"], row["errors"]) == (0, 0, 1)
    unknown = "divergences same_tokens speedup speedup_low speedup_high speedup_end_to_end"
    unknown += " tokens_per_step tokens_per_second time_to_first_token peak_memory metric score"
    assert [row[name] for name in unknown.split()] == [None] * 12
    text = render(table, "text")
    assert "0 of 1 rows identical" in text
    assert "1 generations failed" in text


def test_a_foreign_engine_has_no_decode_only_speedup():
    samples = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", 10, 0.0, prefill=0.55)]
    row = row_of(rows(records(*samples)))
    assert row["speedup_end_to_end"] == pytest.approx(2.0)
    unknown = (
        "speedup",
        "speedup_low",
        "tokens_per_step",
        "tokens_per_second",
        "time_to_first_token",
    )
    assert [row[name] for name in unknown] == [None] * 5
    assert row["verdict"] == "exact"


def test_answers_of_the_prefills_token_alone_have_no_decode_speed():
    samples = [sample(key, "a", 1, 1e-6) for key in (VANILLA, FAST)]
    row = row_of(rows(records(*samples)))
    assert [row[name] for name in ("speedup", "tokens_per_second", "tokens_per_step")] == [None] * 3
    assert (row["verdict"], row["speedup_end_to_end"]) == ("exact", 1.0)
    document = json.loads(render(rows(records(*samples)), "json"))
    assert document["rows"][1]["speedup"] is None
    longer = [sample(VANILLA, "b", 10, 1.0), sample(FAST, "b", 10, 0.5)]
    row = row_of(rows(records(*samples, *longer)))
    assert (row["speedup"], row["tokens_per_second"]) == (2.0, pytest.approx(9 / 0.500001))


def test_json_has_every_name_of_the_contract():
    document = json.loads(render(rows(records(*two_prompts())), "json"))
    assert list(document) == ["rows"]
    assert len(document["rows"]) == 2
    for row in document["rows"]:
        assert set(CONTRACT) <= row.keys()


def test_a_row_has_every_field_of_its_key():
    row = row_of(rows(records(*two_prompts())))
    assert set(IDENTITY) <= row.keys()
    assert {name: row[name] for name in IDENTITY} == asdict(FAST)


def test_a_row_of_schema_1_does_not_know_its_source():
    keys = [replace(key, **dict.fromkeys(SINCE_SCHEMA_2, "")) for key in (VANILLA, FAST)]
    table = rows(records(*[sample(key, "a", 10, 1.0) for key in keys], keys=keys))
    assert [row_of(table)[name] for name in SINCE_SCHEMA_2] == [None] * len(SINCE_SCHEMA_2)
    note = (
        "records of schema 1: options are as given, not as resolved, and the source is not recorded"
    )
    assert render(table, "text").splitlines()[-1] == note
    assert "schema 1" not in render(rows(records(*two_prompts())), "text")


def test_partial_forwards_are_summed():
    samples = [sample(FAST, name, 10, 1.0, partial_forwards=3, forwards=9) for name in "ab"]
    assert row_of(rows(records(*samples)))["partial_forwards"] == 6


def test_shares_are_unknown_where_the_parts_are_not_timed():
    """A loop on a device and an external engine report the whole time alone.

    Old records have 0 for what is not known.
    """
    samples = [sample(key, "a", 10, 1.0, forwards=9, committed=[1] * 9) for key in (VANILLA, FAST)]
    for draft, score, shares in (
        (0.0, 0.0, (None, None)),
        (None, None, (None, None)),
        (0.0, 0.5, (None, 0.5)),
        (None, 0.5, (None, 0.5)),
        (0.2, 0.5, (0.2, 0.5)),
    ):
        samples[1] = replace(samples[1], draft_seconds=draft, score_seconds=score)
        row = row_of(rows(records(*samples)))
        assert (row["draft_share"], row["score_share"]) == shares


def test_a_share_of_which_one_generation_does_not_tell_is_unknown():
    samples = [sample(FAST, name, 10, 1.0, draft_seconds=0.2, score_seconds=0.5) for name in "ab"]
    assert row_of(rows(records(*samples)))["draft_share"] == pytest.approx(0.2)
    samples[1] = replace(samples[1], draft_seconds=None)
    row = row_of(rows(records(*samples)))
    assert (row["draft_share"], row["score_share"]) == (None, 0.5)


def test_a_decoder_that_learns_across_prompts_is_marked():
    learner = replace(FAST, scope="run")
    samples = [sample(key, "a", 10, 1.0) for key in (VANILLA, learner)]
    table = rows(records(*samples, keys=(VANILLA, learner)))
    assert (row_of(table)["reset"], row_of(table)["verdict"]) == ("per-run", "exact")
    assert "fast: it learns across prompts" in render(table, "text")


def test_json_has_null_for_unknown_figures_and_never_nan():
    samples = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", 10, 0.5)]
    text = render(rows(records(*samples)), "json")

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads(text, parse_constant=refuse)["rows"][1]
    assert (row["speedup"], row["speedup_low"], row["score"]) == (2.0, None, None)


def test_noisy_rows_are_marked():
    quiet, noisy = (rows(records(*two_prompts(other_load=load))) for load in (0.04, 0.06))
    assert not row_of(quiet)["noisy"]
    assert row_of(noisy)["noisy"]
    assert not row_of(noisy, "vanilla")["noisy"]
    assert "~" not in render(quiet, "text")
    samples = two_prompts()
    samples[0] = replace(
        samples[0], other_load=1.0
    )  # vanilla's: it would flatter whoever is compared with it
    assert row_of(rows(records(*samples)))["noisy"]
    text = render(noisy, "text")
    assert "~2.00" in text
    assert "do not quote these speeds" in text


def test_load_is_weighed_by_time():
    samples = [
        sample(FAST, "a", 10, 9.9, other_load=0.0),
        sample(FAST, "b", 10, 0.1, prefill=0.0, other_load=1.0),
    ]
    assert not row_of(rows(records(*samples)))["noisy"]
    samples = [sample(FAST, "a", 10, 9.9, other_load=0.06), sample(FAST, "b", 10, 0.1, prefill=0.0)]
    assert row_of(rows(records(*samples)))["noisy"]
