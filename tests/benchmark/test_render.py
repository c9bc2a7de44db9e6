"""Rows as text, Markdown, CSV and JSON."""

import csv
import io
import json
import re
from dataclasses import fields, replace

import pytest
from by_hand import FAST, VANILLA, differing, records, row_of, sample, two_prompts
from test_rows import CONTRACT

from fspad_bench.benchmark.means import over_tasks
from fspad_bench.benchmark.record import Finding
from fspad_bench.benchmark.render import HEADER, render
from fspad_bench.benchmark.rows import failed, rows


def test_markdown_is_a_table_a_setting():
    keys = [replace(key, temperature=t) for t in (0.0, 1.0) for key in (VANILLA, FAST)]
    text = render(
        rows(records(*[sample(key, "a", 10, 1.0) for key in keys], keys=keys)), "markdown"
    )
    assert text.count("**gsm8k@bundled") == 2
    assert text.count("|:---") >= 2
    assert "| fast " in text


def test_numbers_that_are_not_finite_are_null():
    row = row_of(rows(records(*two_prompts(), scores={"fast": {"bleu": 12.5}})))
    row |= {"max_regret": float("nan"), "speedup": float("inf"), "options": {"x": [-float("inf")]}}
    text = render([row], "json")
    back = json.loads(text, parse_constant=pytest.fail)["rows"][0]
    assert (back["max_regret"], back["speedup"], back["options"]) == (None, None, {"x": [None]})
    (cells,) = csv.DictReader(io.StringIO(render([row], "csv")))
    assert (cells["max_regret"], cells["speedup"], cells["options"]) == ("", "", '{"x": [null]}')
    assert "nan" not in render([row], "text")
    assert "inf" not in render([row], "text")


def test_csv_reads_back():
    table = rows(records(*two_prompts()))
    back = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["decoder"] for row in back] == ["vanilla", "fast"]
    assert json.loads(back[1]["options"]) == {"depth": 3}
    assert float(back[1]["speedup"]) == 2.0
    assert back[1]["score"] == ""
    assert set(CONTRACT) <= back[0].keys()


def test_several_tasks_get_a_mean_in_which_they_weigh_the_same():
    keys = [replace(key, task=task) for task in ("gsm8k", "nq") for key in (VANILLA, FAST)]
    samples = [
        sample(keys[0], "a", 10, 1.0),
        sample(keys[1], "a", 10, 0.5, committed=[9], forwards=3),
    ]
    samples += [sample(keys[2], str(i), 10, 1.0) for i in range(5)]
    samples += [sample(keys[3], str(i), 10, 1.0, committed=[9], forwards=9) for i in range(5)]
    text = render(rows(records(*samples, keys=keys)), "text")
    means = text[text.index("mean of the tasks") :]
    assert [line.split() for line in means.split("\n") if "fast" in line] == [
        ["greedy", "fast", "2", "2.00", "1.50", "1.42"]
    ]
    one_task = render(rows(records(*samples[:2], keys=keys[:2])), "text")
    assert "mean of the tasks" not in one_task


def test_settings_of_one_name_have_names_and_means_of_their_own():
    deep = replace(FAST, options={"depth": 4})
    head = replace(FAST, options={"depth": 3, "head_sha256": "ab" * 32})
    keys = [
        replace(key, task=task) for task in ("gsm8k", "nq") for key in (VANILLA, FAST, deep, head)
    ]
    samples = [
        sample(key, "a", 10, 1.0, committed=[9], forwards=forwards)
        for key, forwards in zip(keys, (9, 3, 4, 5, 9, 3, 4, 5), strict=True)
    ]
    text = render(rows(records(*samples, keys=keys)), "text")
    means = text[text.index("mean of the tasks") :]
    steps = {
        "fast (depth=3)": "3.00",
        "fast (depth=4)": "2.25",
        "fast (depth=3, head=abababab)": "1.80",
    }
    for name, expected in steps.items():
        assert text.count(name + " ") == 3
        (line,) = [line for line in means.split("\n") if name + " " in line]
        assert line.replace(name, "").split()[:3] == ["greedy", "2", expected]


BOTH = ("vanilla", "fast")


def test_places_have_means_of_their_own_and_a_task_counts_once():
    keys = [
        replace(key, task=task, dtype=dtype, max_new_tokens=length)
        for dtype, length in (("float64", 8), ("float64", 9), ("float32", 8))
        for task in ("gsm8k", "nq")
        for key in (VANILLA, FAST)
    ]
    samples = [sample(key, "a", 10, 1.0, committed=[9], forwards=3) for key in keys]
    text = render(rows(records(*samples, keys=keys)), "text")
    assert text.count("mean of the tasks · tiny · ") == 2
    lines = [
        line.split()
        for line in text[text.index("mean of the tasks") :].split("\n")
        if line.startswith("greedy")
    ]
    of_float64 = [["greedy,", f"max_new_tokens={n}", name, "2"] for n in (8, 9) for name in BOTH]
    of_float32 = [["greedy", name, "2"] for name in BOTH]
    assert sorted(line[:-3] for line in lines) == sorted(of_float64 + of_float32)


def test_a_task_measured_on_two_sets_of_questions_is_two_tasks():
    keys = [
        replace(key, task=task, data_sha256=data)
        for data in ("few", "many")
        for task in ("gsm8k", "nq")
        for key in (VANILLA, FAST)
    ]
    text = render(rows(records(*[sample(key, "a", 10, 1.0) for key in keys], keys=keys)), "text")
    means = [
        line.split()
        for line in text[text.index("mean of the tasks") :].split("\n")
        if line.startswith("greedy")
    ]
    assert [line[2] for line in means] == ["2"] * 4


@pytest.mark.parametrize("repeated", [("gsm8k", "nq"), ("gsm8k",)])
def test_tasks_measured_with_two_seeds_have_a_mean_of_each(repeated):
    """Their questions and lengths differ by task, which tells no two measurements apart."""
    keys = [
        replace(
            key, task=task, data_sha256=task, card_sha256=task, max_new_tokens=length, seed=seed
        )
        for seed in (0, 1)
        for task, length in (("gsm8k", 64), ("nq", 32))
        if not seed or task in repeated
        for key in (VANILLA, FAST)
    ]
    text = render(rows(records(*[sample(key, "a", 10, 1.0) for key in keys], keys=keys)), "text")
    means = text.partition("mean of the tasks")[2].splitlines()
    lines = [line.split() for line in means if line.startswith("greedy")]
    seeds = ["seed=0", "seed=1"][: len(repeated)]  # of the other the mean would be of one task
    expected = [["greedy,", seed, name, "2"] for name in ("fast", "vanilla") for seed in seeds]
    assert sorted(line[:4] for line in lines) == sorted(expected)


def test_decoders_measured_with_one_seed_stand_beside_those_of_two():
    """A mean says which seed it is of as soon as any decoder has two."""
    keys = [
        replace(key, task=task, seed=seed)
        for task in ("gsm8k", "nq")
        for key, seeds in ((VANILLA, (0, 1)), (FAST, (1,)))
        for seed in seeds
    ]
    table = rows(records(*[sample(key, "a", 10, 1.0) for key in keys], keys=keys))
    found = [(group.sampling, group.rows[0]["decoder"]) for group in over_tasks(table)]
    assert sorted(found) == [
        ("greedy, seed=0", "vanilla"),
        ("greedy, seed=1", "fast"),
        ("greedy, seed=1", "vanilla"),
    ]


def test_a_quick_try_of_one_task_is_in_no_mean_with_the_others():
    """Its questions are fewer than those of the run that measured every task."""
    sizes = {"few": 1, "many": 3}
    measured = [("gsm8k", "few"), ("gsm8k", "many"), ("nq", "many")]
    keys = [
        replace(key, task=task, data_sha256=data)
        for task, data in measured
        for key in (VANILLA, FAST)
    ]
    samples = [sample(key, f"{i}", 10, 1.0) for key in keys for i in range(sizes[key.data_sha256])]
    groups = over_tasks(rows(records(*samples, keys=keys)))
    together = [[row["samples"] for row in group.rows] for group in groups]
    assert sorted(together) == [[1], [1], [3, 3], [3, 3]]


def test_a_mean_needs_a_figure_of_every_task():
    keys = [replace(key, task=task) for task in ("gsm8k", "nq") for key in (VANILLA, FAST)]
    samples = [sample(key, "a", 10, 1.0, committed=[9], forwards=3) for key in keys[:3]]
    samples.append(sample(keys[3], "a", [], 0.0, error="it broke"))
    means = render(rows(records(*samples, keys=keys)), "text").partition("mean of the tasks")[2]
    (line,) = [line for line in means.split("\n") if "fast" in line]
    assert line.split() == ["greedy", "fast", "2", "-", "-", "-"]


def test_a_row_of_fewer_prompts_shows_their_number():
    text = render(rows(records(*two_prompts())), "text")
    assert "2 prompts" in text
    assert "fast (" not in text
    samples = two_prompts()
    text = render(rows(records(samples[0], samples[1], samples[3])), "text")
    assert "fast (1 prompts)" in text


@pytest.mark.parametrize("style", ["text", "markdown", "latex", "csv", "json"])
def test_every_style_renders_every_kind_of_row(style):
    cases = [
        two_prompts(),
        two_prompts(other_load=1.0),
        [sample(FAST, "a", [], 0.0, error="x")],
        [],
    ]
    for samples in cases:
        assert render(rows(records(*samples)), style)
    assert render(differing(0.5, 0.1), style)
    assert isinstance(render([], style), str)


def test_a_table_is_a_pure_function_of_its_lines():
    assert rows(records(*two_prompts())) == rows(records(*two_prompts()))


OTHER = replace(FAST, verification="rejection", temperature=1.0)


def sampled_records(tokens, rule="rejection"):
    """Return records of a rule that does not promise identity."""
    other = replace(OTHER, verification=rule)
    return records(
        sample(replace(VANILLA, temperature=1.0), "a", [1, 2, 3], 1.0),
        sample(other, "a", tokens, 1.0),
        keys=(replace(VANILLA, temperature=1.0), other),
    )


def test_a_rule_that_keeps_the_distribution_is_no_divergence_to_explain():
    table = rows(sampled_records([3, 2, 1]))
    assert row_of(table)["verdict"] == "law"
    assert not failed(table)
    note = render(table, "text").splitlines()[-1]
    assert note == (
        "fast on gsm8k@bundled, T=1: its tokens are not vanilla's, but rejection keeps vanilla's "
        "distribution; no evidence is recorded"
    )
    assert "outputs differ" not in render(table, "text")


@pytest.mark.parametrize("rule", ["own", "foreign"])
def test_an_unknown_rule_is_unverified(rule):
    table = rows(sampled_records([3, 2, 1], rule))
    assert row_of(table)["verdict"] == "unverified"
    text = render(table, "text")
    assert (
        "1 outputs differ (unverified); it verifies by a rule of its own, "
        "whose distribution `certify` tests" in text
    )
    assert "keeps vanilla's distribution" not in text


def test_rules_of_verification_share_a_table():
    text = render(rows(sampled_records([3, 2, 1])), "text")
    assert text.count("T=1\n") == 1
    assert text.index("vanilla ") < text.index("fast ")


def test_equal_outputs_are_exact_by_any_rule():
    assert row_of(rows(sampled_records([1, 2, 3])))["verdict"] == "exact"


def test_greedy_every_rule_must_be_identical():
    greedy = replace(OTHER, temperature=0.0)
    table = rows(
        records(sample(VANILLA, "a", 3, 1.0), sample(greedy, "a", 4, 1.0), keys=(VANILLA, greedy))
    )
    assert row_of(table)["verdict"] == "unverified"


def test_the_text_of_a_table():
    table = rows(
        records(*two_prompts(), scores={"vanilla": {"accuracy": 50.0}, "fast": {"accuracy": 50.0}})
    )
    assert render(table, "text") == (
        """\
gsm8k@bundled · tiny · float64 · cpu, 1 thread · 2 prompts · 16 tokens · greedy

decoder    verdict      tokens/step  speedup (95%)      end to end    tokens/s    first token    accuracy
---------  ---------  -------------  ---------------  ------------  ----------  -------------  ----------
vanilla    exact               1.00  1.00                     1.00         8.0         100 ms       50.0%
fast       exact               3.11  2.00  [±?]               1.90        16.0         100 ms       50.0%

1 of 1 rows identical to vanilla, token for token
speedup: vanilla's decode seconds per token over the decoder's, paired by prompt
end to end: the same with the prefill
tokens/step counts the bonus token"""  # noqa: E501
    )


def test_a_table_of_latex_is_complete():
    slow = replace(FAST, decoder="[slow_one]=fast_100%")
    samples = two_prompts()
    more = [replace(s, key=slow.hash) for s in samples if s.key == FAST.hash]
    text = render(rows(records(*samples, *more, keys=(VANILLA, FAST, slow))), "latex")
    assert text.startswith("% \\usepackage{booktabs}\n\n% gsm8k@bundled · tiny")
    table = text[text.index("\\begin") : text.index("\\end{tabular}")].splitlines()
    assert table[0] == r"\begin{tabular}{llrlrrrr}"
    assert [table[1], table[3], table[-1]] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert [line.count("&") for line in table if "&" in line] == [7] * 4
    assert all(line.endswith(r" \\") for line in table if "&" in line)
    assert r" speedup (95\%) " in table[2]
    assert table[6].startswith(r" {}[slow\_one] ")
    assert "2.00  [±?]" in table[6]
    rest = text[text.index("\\end{tabular}") :].splitlines()[1:]
    assert all(line.startswith("% ") for line in rest if line)


def test_the_title_names_the_sampling_and_the_source():
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


HOSTILE = "\x1b[2J\r\u202ea|b\n\tc"


@pytest.fixture
def hostile():
    """The rows of records whose every text controls a terminal."""
    texts = [f.name for f in fields(VANILLA) if isinstance(getattr(VANILLA, f.name), str)]
    texts = [name for name in texts if name not in ("decoder", "verification", "scope")]
    of_both = {name: HOSTILE + name for name in texts}
    vanilla = replace(VANILLA, **of_both)
    fast = replace(vanilla, decoder=f"fast{HOSTILE}", options={HOSTILE: HOSTILE})
    slow = replace(fast, options={HOSTILE: 2})
    elsewhere = [replace(key, task="gsm8k") for key in (vanilla, fast, slow)]
    keys = (vanilla, fast, slow, *elsewhere)
    made = records(*[sample(key, HOSTILE, 10, 1.0) for key in keys], keys=keys)
    made.findings.append(Finding(fast.hash, "files", f"it wrote {HOSTILE}"))
    made.scores[fast.hash] = {HOSTILE: 1.0}
    return rows(made)


@pytest.mark.parametrize("style", ["text", "markdown", "latex", "csv", "json"])
def test_no_style_holds_what_a_terminal_obeys(hostile, style):
    text = render(hostile, style)
    assert not set(text.replace("\n", "")) & set("\x1b\r\u202e\t")
    assert r"\u202ea" in text


def test_a_table_is_as_many_lines_as_its_rows_whatever_they_hold(hostile):
    text = render(hostile, "text")
    tables = [part.splitlines() for part in text.split("\n\n")]
    assert [len(lines) for lines in tables[:6]] == [1, 5, 1, 5, 1, 5]
    assert [line for line in tables[-1] if "it wrote" in line] == [
        line for line in tables[-1] if line.endswith(r"it wrote \x1b[2J\r\u202ea|b\n\tc")
    ]


def test_every_line_of_a_markdown_table_has_as_many_cells(hostile):
    lines = [line for line in render(hostile, "markdown").splitlines() if line.startswith("|")]
    bars = {re.sub(r"\\\\|\\[|]", "", line).count("|") for line in lines if "·" not in line}
    assert bars == {len(HEADER) + 2, 7}


def test_a_csv_of_hostile_texts_reads_back(hostile):
    back = list(csv.DictReader(io.StringIO(render(hostile, "csv"), newline="")))
    assert len(back) == 6
    assert back[0]["task"] == "\\x1b[2J\\r\\u202ea|b\n\\tctask"
    assert json.loads(back[1]["options"]) == {HOSTILE: HOSTILE}
