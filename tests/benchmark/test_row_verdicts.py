"""Verdicts of rows, from audits made by hand."""

from dataclasses import replace

import pytest
from by_hand import FAST, VANILLA, differing, records, row_of, sample

from fspad_bench.benchmark.distrust import NO_DRAFTS
from fspad_bench.benchmark.record import Audit
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import failed, rows
from fspad_bench.publishing.facts import caveats
from fspad_bench.publishing.page import page


def test_verdicts_come_from_the_audits():
    tie = differing(1e-6, 1e-6)
    lossy = differing(0.5, 1e-6)
    assert (row_of(tie)["verdict"], row_of(tie)["divergences"]) == ("tie", 1)
    assert (row_of(tie)["max_regret"], row_of(tie)["margin_error"]) == (1e-6, 1e-6)
    assert row_of(lossy)["verdict"] == "lossy"
    assert not failed(tie)
    assert failed(lossy)
    assert "1 outputs differ (lossy); largest regret 0.5" in render(lossy, "text")


OTHERS = {
    "options": {"depth": 4},
    "target_identity": "other",
    "dtype": "float32",
    "forward": "other",
    "threads": 9,
    "machine": "other",
    "version": "other",
    "source_sha256": "other",
    "torch": "other",
}


@pytest.mark.parametrize(
    "change",
    [{}, {"task": "nq"}, {"temperature": 1.0}, *({k: v} for k, v in OTHERS.items())],
    ids=str,
)
def test_other_settings_audits_do_not_judge_a_row(change):
    """A row with a tie is condemned by large regrets of rows that round as it does, and by no
    others.
    """
    other = replace(FAST, **change)
    keys = [VANILLA, FAST, other]
    samples = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", [*range(9), 99], 1.0)]
    audits = [Audit(FAST.hash, "a", 0, "r", 9, [0.0] * 9 + [1e-6], [0.0] * 10, 1e-6)]
    audits += [Audit(other.hash, str(i), 0, "r", 9, [0.5] * 10, [0.0] * 10, 0.5) for i in range(40)]
    table = rows(records(*samples, keys=keys, audits=audits))
    condemned = not change or change.keys() & {"task", "temperature"}
    (row,) = [row for row in table if row["divergences"]]
    assert row["verdict"] == ("lossy" if condemned else "tie")


def test_an_audit_of_another_round_does_not_count():
    assert row_of(differing(1e-6, 1e-6, round_="interrupted"))["verdict"] == "unverified"
    assert "could not be re-scored" in render(differing(1e-6, 1e-6, round_="interrupted"), "text")


def test_a_tie_of_few_prompts_is_explained():
    assert "fewer than 12 prompts differ" in render(differing(1e-6, 1e-6), "text")
    assert "fewer than 12" not in render(differing(0.5, 1e-6), "text")
    names = [str(i) for i in range(12)]
    samples = [
        sample(key, n, [*range(9), key is FAST], 1.0) for n in names for key in (VANILLA, FAST)
    ]
    audits = [Audit(FAST.hash, n, 0, "r", 9, [0.0] * 10, [0.0] * 10, 1e-6) for n in names]
    text = render(rows(records(*samples, audits=audits)), "text")
    assert "12 outputs differ (tie)" in text
    assert "fewer than 12" not in text


def undrafted(key, **more):
    """Records of vanilla and of a decoder whose three steps drafted nothing."""
    plain = sample(VANILLA, "a", 4, 1.0, committed=[1] * 3, drafted=[0] * 3, forwards=3)
    own = {"committed": [1] * 3, "drafted": [0] * 3, "forwards": 3} | more
    return rows(records(plain, sample(key, "a", 4, 1.0, **own), keys=(VANILLA, key)))


def verdict_in_table(table, decoder="fast"):
    lines = [line.split("|") for line in render(table, "markdown").splitlines()]
    (cells,) = [cells for cells in lines if len(cells) > 2 and cells[1].strip() == decoder]
    return cells[2].strip()


def test_a_decoder_that_drafted_nothing_is_exact_without_drafts():
    table = undrafted(FAST)
    row = row_of(table)
    assert (row["verdict"], row["drafted"]) == ("exact", 0)
    assert verdict_in_table(table) == "exact (no drafts)"
    assert verdict_in_table(table, "vanilla") == "exact"
    assert "fast on gsm8k@bundled, greedy: it drafted nothing" in render(table, "text")
    assert any(text.startswith("no drafts: ") for text in caveats(row))
    shown = page(table, [])
    assert "exact (no drafts)" in shown
    assert shown.count(NO_DRAFTS) == 2  # a note and the row's own doubt


@pytest.mark.parametrize(
    ("key", "more"),
    [
        (FAST, {"drafted": [0, 1, 0]}),
        (FAST, {"drafted": []}),  # not known
        (FAST, {"committed": [], "drafted": []}),
        (replace(FAST, verification="foreign"), {"committed": [], "drafted": []}),
        (replace(FAST, decoder="vanilla@again"), {}),
    ],
)
def test_other_rows_are_not_said_to_have_no_drafts(key, more):
    table = undrafted(key, **more)
    assert verdict_in_table(table, key.decoder) == "exact"
    assert "it drafted nothing" not in render(table, "text")
    assert not any(text.startswith("no drafts") for text in caveats(row_of(table, key.decoder)))
