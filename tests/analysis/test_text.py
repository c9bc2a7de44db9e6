"""Reports as text, Markdown and JSON."""

import json
from dataclasses import replace

import pytest
from by_hand import FAST, VANILLA
from small import DRAFTED, PLAIN, before_schema_4, small

from fspad_bench.analysis.explain import reports
from fspad_bench.analysis.text import render


def lines(*wanted, every=None, style="text"):
    return render(reports(every or small(), wanted), style).splitlines()


def cells(lines, decoder, number):
    """The cells of a decoder's line in one of the tables, without its task."""
    of_decoder = [line.split() for line in lines if line.split()[1:2] == [decoder]]
    return of_decoder[number][2:]


def test_the_tables_hold_the_figures_of_paper():
    text = lines("fast", "slow")
    assert text[0] == "tiny · float64 · cpu, 1 thread · greedy"
    assert cells(text, "fast", 0) == [
        *["2.67", "0.66", "0.87", "0.93", "0.93", "1.33"],  # the factors and their product
        *["-", "1.83", "1.90"],  # modelled, with a perfect draft, with a free one
    ]
    assert " ".join(cells(text, "fast", 1)) == (
        "5.7 60.00 (30%) 100.00 (50%) 20.00 (10%) 20.00 (10%) 200.00"
    )
    assert " ".join(cells(text, "fast", 2)) == "100% of 3 67% of 3 0% of 1"
    assert cells(text, "fast", 3) == ["60.0%", "40.0%"]
    assert cells(text, "fast", 4) == ["0.0%", "33.3%", "66.7%"]
    assert cells(text, "fast", 5) == ["2.67"]
    assert text[-1].startswith("fast commits 33% more tokens a step than slow; ")


def test_what_is_missing_is_said_once_with_the_decoders_it_concerns():
    old = [replace(FAST, decoder=name) for name in ("one", "two")]
    samples = [before_schema_4(replace(DRAFTED, key=key.hash)) for key in old]
    text = lines(every=small(PLAIN, *samples, keys=(VANILLA, *old)))
    (trees,) = [line for line in text if "which nodes were accepted" in line]
    assert trees.startswith("one, two: ")
    assert not [line for line in text if line.startswith("accepted tokens by rank")]
    assert any("≥ 67% of 3" in line for line in text)


def test_markdown_has_tables_of_pipes():
    text = lines("fast", "slow", style="markdown")
    assert text[0] == "**tiny · float64 · cpu, 1 thread · greedy**"
    assert any(line.startswith("| gsm8k@bundled | fast") for line in text)


def test_json_holds_every_figure_by_name():
    content = json.loads(render(reports(small(), ["fast", "slow"]), "json"))
    (report,) = content["explanations"]
    assert (report["sampling"], len(report["decoders"])) == ("greedy", 3)
    fast = report["decoders"][1]
    assert (fast["decoder"], fast["task"], fast["gaps"]) == ("fast", "gsm8k@bundled", [])
    assert fast["acceptance_by_depth"][1] == {
        "depth": 2,
        "offered": 3,
        "accepted": 2,
        "rate": pytest.approx(2 / 3),
    }
    assert fast["accepted_by_rank"] == [3, 2]
    assert fast["speedup"] == pytest.approx(4 / 3)
    assert fast["perfect_draft_speedup"] == pytest.approx(11 / 6)
    assert fast["step"]["parts"]["draft"] == pytest.approx(0.06)
    (comparison,) = report["comparisons"]
    assert comparison["speedup"] == pytest.approx(2 / 3)
    assert comparison["sentence"].endswith("slower.")


def test_names_of_strangers_control_no_terminal():
    odd = replace(FAST, decoder="a\x1b[2Jb")
    text = render(
        reports(small(PLAIN, replace(DRAFTED, key=odd.hash), keys=(VANILLA, odd))), "text"
    )
    assert "\x1b" not in text
    assert r"\x1b" in text
