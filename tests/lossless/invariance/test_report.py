"""Findings as a table that groups sizes, a verdict that names operations, and JSON."""

import json
import math

from fspad_bench.lossless.invariance.probe import Company, Finding, kept
from fspad_bench.lossless.invariance.report import KEPT, NOT_ASKED, as_json, render, verdict
from fspad_bench.lossless.invariance.trace import Difference, Operation

ATTENTION = Difference(Operation("attention", 2), 3, 7.0, 0.25)
PRODUCT = Difference(Operation("product 4 -> 8"), 0, math.inf, math.inf)
SAME = [Finding("transformers", False, Company("chain", n), None, 0) for n in (1, 2)]
STOCK = [Finding("transformers", False, Company("chain", n), ATTENTION, 1) for n in (4, 8)]
OURS = Finding("product 4 -> 8", True, Company("rows", 2), PRODUCT, None)


def lines_of(findings):
    return [line.split("  ") for line in render(findings, {"target": "tiny"}).splitlines()]


def test_sizes_with_the_same_first_operation_share_a_line():
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines_of([*SAME, *STOCK])]
    assert ["transformers", "chain", "1, 2", "none: same bits", "0 of 3"] in rows
    assert ["transformers", "chain", "4, 8", "attention", "2", "7", "0.25", "2 of 12"] in rows


def test_what_is_not_ours_is_told_and_changes_no_verdict():
    text = verdict([*SAME, *STOCK])
    assert text.splitlines() == [
        NOT_ASKED,
        "",
        "for information, not what our forward runs here:",
        "- transformers: attention of layer 2 changes row 3 of 4 (chain)",
    ]
    assert kept([*SAME, *STOCK])


def test_what_is_ours_and_changes_is_the_verdict():
    assert verdict([OURS]).splitlines() == [
        "ours: rows do not keep their bits",
        "- product 4 -> 8: changes row 0 of 2 (rows)",
    ]
    assert not kept([*SAME, OURS])


def test_ours_that_keeps_its_bits_says_so():
    same = Finding("our step", True, Company("chain", 4), None, 0)
    assert verdict([same]) == KEPT


def test_the_row_of_a_tree_has_no_number():
    found = Finding("transformers", False, Company("branch", 8), ATTENTION, 1)
    assert "attention of layer 2 changes the row among 8 (branch)" in verdict([found])


def test_the_setting_stands_above():
    text = render(SAME, {"target": "tiny", "threads": 2, "prefix": 200})
    assert text.startswith("tiny · threads 2 · prefix 200\n")


def test_json_holds_every_finding_and_no_infinity():
    told = json.loads(as_json([*SAME[:1], OURS], {"target": "tiny"}))
    assert told["target"] == "tiny"
    assert told["kept"] is False
    assert json.loads(as_json(STOCK, {}))["kept"] is None
    assert [finding["same"] for finding in told["findings"]] == [True, False]
    assert told["findings"][1] == {
        "subject": "product 4 -> 8",
        "own": True,
        "company": "rows",
        "rows": 2,
        "compared": 2,
        "same": False,
        "operation": "product 4 -> 8",
        "layer": None,
        "row": 0,
        "ulps": None,
        "largest_gap": None,
        "other_choices": None,
    }
