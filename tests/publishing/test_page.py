"""A page of records: what it shows, what it links, what a stranger's text cannot do in it."""

import re
from dataclasses import replace

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample, two_prompts
from reading import read, table

from fspad_bench.benchmark.record import Finding
from fspad_bench.benchmark.rows import rows
from fspad_bench.publishing.page import is_page, page
from fspad_bench.publishing.sources import Source, row_name

SCRIPT = "</td></script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&amp; \u202e\x1b"

SOURCE = Source("run.jsonl", "ab" * 32, "fspad-bench run --task nq", {"commit": "c0"}, frozenset())


@pytest.fixture(scope="module")
def text(measured):
    held = frozenset(row_name(row) for row in measured)
    return page(measured, [replace(SOURCE, rows=held)])


@pytest.fixture(scope="module")
def root(text):
    return read(text)


def test_every_row_stands_in_the_table_as_in_the_records(root, measured):
    header, lines = table(root)
    assert header[:6] == ["decoder", "task", "sampling", "machine", "verdict", "speedup 95%"]
    assert len(lines) == len(measured) == 18
    line = dict(zip(header, lines[1], strict=True))
    row = measured[1]
    assert line["decoder"] == "fast"
    assert line["task"] == "gsm8k@bundled"
    assert line["verdict"] == "exact"
    low, high = row["speedup_low"], row["speedup_high"]
    assert line["speedup 95%"] == f"2.00 [{low:.2f}, {high:.2f}]"
    assert line["tokens/step 95%"] == "3.00 [3.00, 3.00]"
    assert line["tokens/s"] == f"{row['tokens_per_second']:.1f}"
    assert line["firsttoken"] == "100 ms"
    assert line["score"] == "–"
    assert dict(zip(header, lines[0], strict=True))["speedup 95%"] == "1.00"


def test_a_row_leads_to_its_facts_and_its_command(root, measured):
    links = [a.attributes["href"] for a in root.by_id("table").all("a")]
    assert links == [f"#{row_name(row)}" for row in measured]
    facts = root.by_id(links[1][1:])
    said = facts.text
    assert "fspad-bench run --task nq" in said
    for row_field in ("machineone", "option depth3", "data_sha256abab", "accepted6, 0, 0, 12"):
        assert row_field in said
    (record,) = [a.attributes["href"] for a in facts.all("a")]
    assert "commitc0" in root.by_id(record[1:]).text


def test_no_two_elements_share_an_id_and_every_link_leads_somewhere(text):
    ids = re.findall(r'(?<![\w-])id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_the_page_needs_nothing_else(text):
    assert not re.findall(r"(?:src|href)=\"(?!#)", text)
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_same_records_give_the_same_page():
    first, second = (page(rows(records(*two_prompts())), [SOURCE]) for _ in range(2))
    assert first == second


def test_filters_offer_what_differs(root):
    selects = {select.attributes["name"]: select for select in root.all("select")}
    values = {name: [o.text for o in select.all("option")][1:] for name, select in selects.items()}
    assert values["task"] == ["gsm8k@bundled", "nq@bundled"]
    assert values["sampling"] == ["greedy", "T=1"]
    assert [value.rpartition(" · ")[2] for value in values["machine"]] == ["one", "two"]
    assert "target" not in values  # all rows have the same
    assert "hidden" in root.by_id("filters").attributes  # until the script shows it


def test_means_and_pictures_stand_by_setting(root):
    means = root.by_id("means")
    assert [h.text.split(" ")[0] for h in means.all("h3")] == ["greedy", "T=1", "greedy"]
    first = [cell.text for cell in list(means.all("tr"))[1].parts if not isinstance(cell, str)]
    assert first[0] == "fast"
    assert first[1].startswith("1.50 [")
    titles = [b.text for b in root.by_id("pictures").all("b")]
    each = ["Speedup by task.", "Tokens a step commits.", "Where the time of a token goes."]
    assert titles == each * 3
    assert len(list(root.by_id("pictures").all("svg"))) == 3 * 4


def test_verdicts_are_explained(root):
    words = root.by_id("reading").text
    for verdict in ("exact", "tie", "law", "unverified", "lossy"):
        assert verdict in words


def test_a_row_of_a_changed_target_is_not_said_to_differ():
    made = records(*two_prompts())
    made.findings.append(Finding(FAST.hash, "target", "its weights were changed"))
    table_rows = rows(made)
    said = read(page(table_rows, [])).by_id(row_name(row_of(table_rows))).text
    assert "unverified: Nothing here can tell: " in said
    assert "the target was changed during the run" in said


def test_noisy_rows_are_marked_and_doubted():
    table_rows = rows(records(*two_prompts(other_load=1.0)))
    root = read(page(table_rows, []))
    header, lines = table(root)
    line = dict(zip(header, lines[1], strict=True))
    assert line["speedup 95%"] == "~2.00 [±?]"
    assert line["tokens/step 95%"] == "3.11 [±?]"
    assert line["tokens/s"].startswith("~")
    assert "do not quote its times" in root.by_id(row_name(row_of(table_rows))).text


def test_loops_have_a_column_where_an_output_loops():
    looping = [
        sample(key, f"p{n}", [7] * 40, seconds, committed=[3] * 13, forwards=13)
        for key, seconds in ((VANILLA, 1.0), (FAST, 0.5))
        for n in range(2)
    ]
    header, lines = table(read(page(rows(records(*looping)), [])))
    assert dict(zip(header, lines[1], strict=True))["speedup,no loops"] == "–"
    assert "speedup,no loops" not in table(read(page(rows(records(*two_prompts())), [])))[0]


def test_published_figures_have_a_table_of_their_own():
    eagle = replace(FAST, decoder="mine=eagle@paper")
    samples = [sample(VANILLA, "a", 10, 1.0), sample(eagle, "a", 10, 0.5)]
    root = read(page(rows(records(*samples, keys=(VANILLA, eagle))), []))
    published = root.by_id("published").text
    assert "Nothing here was measured" in published
    assert "2.36x" in published and "A100" in published
    assert "2.36x" not in root.by_id("rows").text
    without = page(rows(records(*two_prompts())), [])
    assert 'id="published"' not in without


def test_a_strangers_text_is_text():
    """Every text of a record, as markup, quotes and control characters."""
    names = ("target", "task", "machine", "forward", "dtype", "device", "torch", "version")
    vanilla = replace(VANILLA, **{name: SCRIPT + name for name in names})
    fast = replace(vanilla, decoder=f"fast{SCRIPT}", options={SCRIPT: SCRIPT})
    other = [replace(key, task="nq") for key in (vanilla, fast)]
    keys = (vanilla, fast, *other)
    made = records(
        *[sample(k, SCRIPT, 10, 1.0, committed=[9], forwards=1) for k in keys], keys=keys
    )
    made.findings.append(Finding(fast.hash, "files", SCRIPT))
    made.scores[fast.hash] = {SCRIPT: 1.0}
    table_rows = rows(made)
    held = frozenset(row_name(row) for row in table_rows)
    source = Source(SCRIPT, "ab" * 32, SCRIPT, {SCRIPT: SCRIPT}, held)
    text = page(table_rows, [source], [SCRIPT])
    root = read(text)
    assert len(list(root.all("script"))) == 1
    assert not list(root.all("img"))
    assert not set(text.replace("\n", "")) & set("\x1b\u202e\t")
    shown = SCRIPT.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")
    assert table(root)[1][1][0].startswith(f"fast{shown}"[:40])
    assert shown in root.by_id("records").text


def test_a_long_name_may_wrap():
    long = [row | {"decoder": f"{'n' * 300}=fast"} for row in rows(records(*two_prompts()))[1:]]
    root = read(page(long, []))
    heads = [th for th in root.by_id("table").all("th") if th.attributes.get("scope") == "row"]
    assert {th.attributes["class"] for th in heads} == {"long"}
    assert {th.text for th in heads} == {"n" * 300}


def test_lines_left_out_are_named():
    measured = rows(records(*two_prompts()))
    assert (
        "run.jsonl:4: torn" in read(page(measured, [], ["run.jsonl:4: torn"])).by_id("records").text
    )


def test_a_page_knows_its_own(text, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(text)
    assert is_page(path)
    path.write_text("<html>")
    assert not is_page(path)
