"""Tables from records made by hand, against figures worked out by hand."""

import json
from dataclasses import replace

import pytest
from test_record import KEY

from fspad_bench.benchmark.record import Audit, Records, Sample
from fspad_bench.benchmark.rows import failed, render, rows

CONTRACT = """target task decoder options temperature top_p top_k seed max_new_tokens dtype device samples tokens
    verdict divergences same_tokens speedup speedup_low speedup_high speedup_end_to_end tokens_per_step
    tokens_per_second time_to_first_token peak_memory metric score data_source data_sha256 noisy errors""".split()

VANILLA = KEY
FAST = replace(KEY, decoder="fast", options={"depth": 3})


def sample(key, name, tokens, decode, *, prefill=0.1, turn=0, round_="r", **more):
    """A generation of `tokens` (a list, or how many) in `decode` seconds."""
    tokens = list(range(tokens)) if isinstance(tokens, int) else tokens
    times = {"prefill_seconds": prefill, "decode_seconds": decode}
    return Sample(key.hash, name, turn, round_, tokens=tokens, **times, **more)


def records(*samples, keys=(VANILLA, FAST), audits=(), scores=None):
    """A record of these lines; `scores` go by decoder."""
    by_hash = {key.hash: key for key in keys}
    scored = {
        name: scores[key.decoder] for name, key in by_hash.items() if key.decoder in (scores or {})
    }
    return Records([], by_hash, list(samples), list(audits), scored, True)


def row_of(found, decoder="fast"):
    (row,) = [row for row in found if row["decoder"] == decoder]
    return row


def two_prompts(**more):
    """Vanilla: 10 tokens in 1 s and 20 in 2.5 s; fast: the same tokens in 0.5 s and 1.25 s; prefill 0.1 s each."""
    return [
        sample(VANILLA, "a", 10, 1.0, committed=[1] * 9, forwards=9),
        sample(
            FAST,
            "a",
            10,
            0.5,
            committed=[3, 3, 3],
            drafted=[4, 4, 4],
            forwards=3,
            draft_seconds=0.1,
            **more,
        ),
        sample(
            FAST, "b", 20, 1.25, committed=[4, 4, 4, 4, 2, 1], forwards=6, score_seconds=0.7, **more
        ),
        sample(VANILLA, "b", 20, 2.5, committed=[1] * 19, forwards=19),
    ]


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
        "same_tokens": 1.0,
        "speedup": 2.0,
        "speedup_low": None,
        "speedup_high": None,
        "speedup_end_to_end": 3.7 / 1.95,
        "speedup_spec_bench": ((10 / 0.6 + 20 / 1.35) / 2) / ((10 / 1.1 + 20 / 2.6) / 2),
        "tokens_per_step": 28 / 9,
        "tokens_per_second": 30 / 1.75,
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
    }
    for name, value in expected.items():
        assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_vanillas_own_row():
    row = row_of(rows(records(*two_prompts())), "vanilla")
    assert (row["speedup"], row["tokens_per_step"], row["verdict"]) == (1.0, 1.0, "exact")
    assert row["tokens_per_second"] == pytest.approx(30 / 3.5)
    assert (row["metric"], row["score"], row["scores"], row["peak_memory"]) == (
        None,
        None,
        {},
        None,
    )


def test_speedup_is_a_ratio_of_sums_with_an_interval_around_it():
    made = [sample(VANILLA, str(i), 10, 1.0) for i in range(8)]
    made += [sample(FAST, str(i), 10, 0.4 + 0.05 * i) for i in range(8)]
    row = row_of(rows(records(*made)))
    assert row["speedup"] == pytest.approx(8 / sum(0.4 + 0.05 * i for i in range(8)))
    assert 1 < row["speedup_low"] < row["speedup"] < row["speedup_high"] < 2.5


def test_speedup_is_right_when_a_tie_changes_the_length():
    made = [
        sample(VANILLA, "a", 10, 1.0),
        sample(FAST, "a", [*range(8), 9, 9, 9, 9, 9, 9, 9, 9], 0.8),
    ]
    row = row_of(rows(records(*made)))
    assert row["speedup"] == pytest.approx((1.0 / 10) / (0.8 / 16))
    assert row["same_tokens"] == 0.8


def test_turns_of_a_prompt_are_one_unit():
    made = [sample(key, "a", 10, 1.0, turn=turn) for key in (VANILLA, FAST) for turn in (0, 1)]
    row = row_of(rows(records(*made)))
    assert (row["samples"], row["tokens"], row["speedup"]) == (1, 20, 1.0)
    assert row["speedup_low"] is row["speedup_high"] is None
    assert row["tokens_per_step_low"] is row["tokens_per_step_high"] is None


def test_tokens_a_step_have_an_interval_over_prompts():
    made = [sample(VANILLA, str(i), 10, 1.0) for i in range(8)]
    made += [sample(FAST, str(i), 10, 1.0, committed=[i, 9], forwards=6) for i in range(8)]
    row = row_of(rows(records(*made)))
    assert row["tokens_per_step"] == pytest.approx((28 + 72) / 48)
    assert (
        1.5
        < row["tokens_per_step_low"]
        < row["tokens_per_step"]
        < row["tokens_per_step_high"]
        < 16 / 6
    )


def test_rows_come_vanilla_first_one_a_key_in_order():
    deeper, hot = replace(FAST, options={"depth": 4}), replace(VANILLA, temperature=1.0)
    hot_fast = replace(FAST, temperature=1.0)
    keys = (VANILLA, hot, FAST, hot_fast, deeper)
    found = rows(records(*[sample(key, "a", 10, 1.0) for key in keys], keys=keys))
    assert [(r["temperature"], r["decoder"], r["options"]) for r in found] == [
        (0.0, "vanilla", {}),
        (0.0, "fast", {"depth": 3}),
        (0.0, "fast", {"depth": 4}),
        (1.0, "vanilla", {}),
        (1.0, "fast", {"depth": 3}),
    ]


@pytest.mark.parametrize(
    "field", ["data_source", "data_sha256", "machine", "dtype", "threads", "version", "seed"]
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
    """Vanilla ran twice on "a": in round r alone, and slower in round s, together with the decoder."""
    made = [
        sample(VANILLA, "a", 10, 1.0, round_="r"),
        sample(VANILLA, "a", 10, 3.0, round_="s"),
        sample(FAST, "a", 10, 1.5, round_="s"),
    ]
    found = rows(records(*made))
    assert row_of(found)["speedup"] == 2.0
    vanilla = row_of(found, "vanilla")
    assert (vanilla["samples"], vanilla["tokens"], vanilla["tokens_per_second"]) == (
        1,
        10,
        pytest.approx(10 / 3),
    )


def test_a_decoder_measured_before_keeps_its_old_partner():
    made = [
        sample(VANILLA, "a", 10, 1.0, round_="r"),
        sample(FAST, "a", 10, 0.5, round_="r"),
        sample(VANILLA, "a", [7] * 10, 3.0, round_="s"),
    ]
    row = row_of(rows(records(*made)))
    assert (row["speedup"], row["verdict"], row["divergences"]) == (2.0, "exact", 0)


def test_a_repeated_generation_counts_once():
    made = two_prompts() + [s for s in two_prompts() if s.sample == "a"]
    row = row_of(rows(records(*made)))
    assert (row["samples"], row["tokens"], row["speedup"]) == (2, 30, 2.0)


@pytest.mark.parametrize("who", [VANILLA, FAST])
def test_an_error_drops_its_pair(who):
    made = [
        replace(s, tokens=[], error="ValueError: no") if (s.key, s.sample) == (who.hash, "b") else s
        for s in two_prompts()
    ]
    found = rows(records(*made))
    row = row_of(found)
    assert (row["speedup"], row["verdict"]) == (2.0, "exact")
    assert row["speedup_end_to_end"] == pytest.approx(1.1 / 0.6)
    assert row_of(found, who.decoder)["errors"] == 1
    assert failed(found)


def test_an_error_that_a_later_round_mended_is_none():
    made = [sample(FAST, "a", [], 0.0, error="no"), sample(VANILLA, "a", 10, 1.0)]
    made += [sample(key, "a", 10, 1.0, round_="s") for key in (VANILLA, FAST)]
    found = rows(records(*made))
    assert row_of(found)["errors"] == 0
    assert not failed(found)


def test_where_all_failed_nothing_is_known():
    made = [sample(VANILLA, "a", 10, 1.0), replace(sample(FAST, "a", [], 0.0), error="no")]
    found = rows(records(*made))
    row = row_of(found)
    assert (row["verdict"], row["noisy"]) == ("unverified", False)
    assert (row["samples"], row["tokens"], row["errors"]) == (0, 0, 1)
    unknown = "divergences same_tokens speedup speedup_low speedup_high speedup_end_to_end tokens_per_step"
    unknown += " tokens_per_second time_to_first_token peak_memory metric score"
    assert [row[name] for name in unknown.split()] == [None] * 12
    text = render(found, "text")
    assert "0 of 1 rows identical" in text
    assert "1 generations failed" in text


def test_a_foreign_engine_has_no_decode_only_speedup():
    made = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", 10, 0.0, prefill=0.55)]
    row = row_of(rows(records(*made)))
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


def differing(regret, error, round_="r", **more):
    made = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", [*range(9), 99], 1.0)]
    audit = Audit(FAST.hash, "a", 0, round_, 9, [0.0] * 9 + [regret], [0.0] * 10, error)
    return rows(records(*made, audits=[audit], **more))


def test_verdicts_come_from_the_audits():
    tie, lossy = differing(1e-6, 1e-6), differing(0.5, 1e-6)
    assert (row_of(tie)["verdict"], row_of(tie)["divergences"]) == ("tie", 1)
    assert (row_of(tie)["max_regret"], row_of(tie)["margin_error"]) == (1e-6, 1e-6)
    assert row_of(lossy)["verdict"] == "lossy"
    assert not failed(tie)
    assert failed(lossy)
    assert "1 outputs differ (lossy); largest regret 0.5" in render(lossy, "text")


OTHERS = {
    "options": {"depth": 4}, "target_identity": "other", "dtype": "float32", "forward": "other", "threads": 9,
    "machine": "other", "version": "other",
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{}, {"task": "nq"}, {"temperature": 1.0}, *({k: v} for k, v in OTHERS.items())],
    ids=str,
)
def test_other_settings_audits_do_not_judge_a_row(change):
    """A tie here, and regrets beyond vanilla's errors elsewhere: of this setting they condemn it, of others not."""
    other = replace(FAST, **change)
    keys = [VANILLA, FAST, other]
    made = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", [*range(9), 99], 1.0)]
    audits = [Audit(FAST.hash, "a", 0, "r", 9, [0.0] * 9 + [1e-6], [0.0] * 10, 1e-6)]
    audits += [Audit(other.hash, str(i), 0, "r", 9, [0.5] * 10, [0.0] * 10, 0.5) for i in range(40)]
    found = rows(records(*made, keys=keys, audits=audits))
    condemned = not change or change.keys() & {"task", "temperature"}
    (row,) = [row for row in found if row["divergences"]]
    assert row["verdict"] == ("lossy" if condemned else "tie")


def test_an_audit_of_another_round_proves_nothing():
    assert row_of(differing(1e-6, 1e-6, round_="interrupted"))["verdict"] == "unverified"
    assert "could not be re-scored" in render(differing(1e-6, 1e-6, round_="interrupted"), "text")


def test_a_tie_of_few_prompts_says_what_it_cannot_show():
    assert "fewer than 12 prompts differ" in render(differing(1e-6, 1e-6), "text")
    assert "fewer than 12" not in render(differing(0.5, 1e-6), "text")
    names = [str(i) for i in range(12)]
    made = [sample(key, n, [*range(9), key is FAST], 1.0) for n in names for key in (VANILLA, FAST)]
    audits = [Audit(FAST.hash, n, 0, "r", 9, [0.0] * 10, [0.0] * 10, 1e-6) for n in names]
    text = render(rows(records(*made, audits=audits)), "text")
    assert "12 outputs differ (tie)" in text
    assert "fewer than 12" not in text


def test_json_has_every_name_of_the_contract():
    document = json.loads(render(rows(records(*two_prompts())), "json"))
    assert list(document) == ["rows"]
    assert len(document["rows"]) == 2
    for row in document["rows"]:
        assert set(CONTRACT) <= row.keys()


def test_json_says_null_for_what_is_unknown_and_never_nan():
    made = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", 10, 0.5)]
    text = render(rows(records(*made)), "json")

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
    made = two_prompts()
    made[0] = replace(
        made[0], other_load=1.0
    )  # vanilla's: it would flatter whoever is compared with it
    assert row_of(rows(records(*made)))["noisy"]
    text = render(noisy, "text")
    assert "~2.00" in text
    assert "do not quote these speeds" in text


def test_load_is_weighed_by_time():
    made = [
        sample(FAST, "a", 10, 9.9, other_load=0.0),
        sample(FAST, "b", 10, 0.1, prefill=0.0, other_load=1.0),
    ]
    assert not row_of(rows(records(*made)))["noisy"]
    made = [sample(FAST, "a", 10, 9.9, other_load=0.06), sample(FAST, "b", 10, 0.1, prefill=0.0)]
    assert row_of(rows(records(*made)))["noisy"]


def test_text_is_what_a_reader_sees():
    found = rows(
        records(*two_prompts(), scores={"vanilla": {"accuracy": 50.0}, "fast": {"accuracy": 50.0}})
    )
    assert render(found, "text") == (
        """\
gsm8k@bundled · tiny · float64 · cpu, 1 threads · 2 prompts · 16 tokens · greedy

decoder    verdict      tokens/step  speedup (95%)      tokens/s    first token    accuracy
---------  ---------  -------------  ---------------  ----------  -------------  ----------
vanilla    exact               1.00  1.00                    8.6         100 ms       50.0%
fast       exact               3.11  2.00  [±?]             17.1         100 ms       50.0%

1 of 1 rows identical to vanilla, token for token
speedup: vanilla's decode seconds a token over the decoder's, paired by prompt
tokens/step counts the bonus token"""
    )


def test_the_title_names_the_law_and_the_source():
    hot = [
        replace(key, temperature=0.7, top_p=0.9, top_k=20, data_source="hub")
        for key in (VANILLA, FAST)
    ]
    title = render(
        rows(records(*[sample(key, "a", 10, 1.0) for key in hot], keys=hot)), "text"
    ).split("\n")[0]
    assert title.startswith("gsm8k · tiny")
    assert title.endswith("T=0.7 top-k 20 top-p 0.9")
    assert "[±?]" in render(
        rows(records(*[sample(key, "a", 10, 1.0) for key in hot], keys=hot)), "text"
    )
