"""Tables that documents print are what the records say."""

import re

import pytest
from documents import ROOT, table_rows, text_of
from served import printed

from fspad_bench.analysis.explain import reports
from fspad_bench.analysis.text import render
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.cli.main import main


@pytest.fixture(scope="module")
def quoted():
    """The record that the README and the first tables of results/README quote."""
    return Records.read(*(ROOT / "results" / "bfloat16-all").glob("*.jsonl"))


@pytest.fixture(scope="module")
def measured(quoted):
    return rows(quoted)


def cells(text):
    return {tuple(row) for row in table_rows(text)}


def of(measured, **wanted):
    """The rows with these values, sorted by task."""
    chosen = [row for row in measured if all(row[k] == v for k, v in wanted.items())]
    return sorted(chosen, key=lambda row: row["task"])


def mean(group, name):
    return sum(row[name] for row in group) / len(group)


def test_the_table_of_the_readme_is_its_record(capsys):
    assert main(["table", str(ROOT / "results" / "bfloat16-all"), "--format", "markdown"]) == 0
    title = re.escape("**gsm8k@spec-bench · ") + r".* · greedy.*\*\*\n\n(?:\|.*\n)+"
    table = re.search(title, capsys.readouterr().out)[0]
    assert table in text_of(ROOT / "README.md")


def test_the_means_of_the_readme_are_its_record(measured):
    known = cells(text_of(ROOT / "README.md"))
    for decoder in ("vanilla", "fspad", "eagle", "prompt_lookup"):
        parts = [of(measured, decoder=decoder, temperature=heat) for heat in (0.0, 1.0)]
        figures = [f"{mean(p, n):.2f}" for p in parts for n in ("tokens_per_step", "speedup")]
        assert (decoder, *figures) in known


def test_the_example_of_explaining_is_its_record(quoted):
    greedy = [name for name, key in quoted.keys.items() if key.temperature == 0]
    samples = [sample for sample in quoted.samples if sample.key in greedy]
    keys = {name: quoted.keys[name] for name in greedy}
    record = Records(keys=keys, samples=samples, costs=quoted.costs)
    printed_text = render(reports(record, ["fspad", "eagle"]), "markdown")
    text = text_of(ROOT / "docs" / "explaining.md")
    example = [row for row in table_rows(text) if row[0] == "all tasks"]
    assert len(example) == 5
    assert {tuple(row) for row in example} <= cells(printed_text)
    assert printed_text.splitlines()[-1] in " ".join(text.split())


def test_speeds_of_results_are_their_record(measured):
    known = cells(text_of(ROOT / "results" / "README.md"))
    for heat in (0.0, 1.0):
        for decoder in ("fspad", "eagle", "prompt_lookup"):
            by_task = of(measured, decoder=decoder, temperature=heat)
            speeds = [f"{row['speedup']:.2f}" for row in by_task]
            speed = mean(by_task, "speedup")
            steps = mean(by_task, "tokens_per_step")
            share = f"{speed / steps:.2f} of {steps:.2f}"
            assert (f"{heat:g}", decoder, *speeds, f"{speed:.2f}", share) in known


@pytest.mark.parametrize(
    ("script", "record", "names"),
    [
        ("variants.py", "float32-arms", None),
        ("variants.py", "float32-heads", None),
        ("variants.py", "bfloat16-all", {"eagle", "fspad"}),
        ("trees.py", "bfloat16-trees", None),
    ],
)
def test_tables_of_results_are_what_the_scripts_print(script, record, names):
    tables = table_rows(printed(ROOT / "results" / script, ROOT / "results" / record))
    known = table_rows(text_of(ROOT / "results" / "README.md"))
    figures = [row for row in tables if re.search(r"\d", row[-1])]
    assert len(figures) >= 6
    for row in figures:
        if names is None or row[0] in names:
            assert any(within(row, line) for line in known), row


def within(part, whole):
    """Whether the cells of `part` stand in `whole` in this order, others between them."""
    rest = iter(whole)
    return all(cell in rest for cell in part)


def test_the_anchors_speeds_are_its_record():
    records = Records.read(*(ROOT / "results" / "bfloat16-anchor").glob("*.jsonl"))
    table = rows(records)
    shown = table_rows(text_of(ROOT / "results" / "README.md"))
    for name in ("vanilla", "fspad", "llama.cpp"):
        own = [row for row in table if row["decoder"].partition("=")[0] == name]
        speeds = [row["speedup_end_to_end"] for row in sorted(own, key=lambda row: row["task"])]
        assert [name, *(f"{x:.2f}" for x in (*speeds, sum(speeds) / 6))] in shown
        assert not any(row["noisy"] for row in own)


def test_the_speeds_of_the_field_are_its_record():
    records = Records.read(*sorted((ROOT / "results" / "bfloat16-field").glob("*.jsonl")))
    table = rows(records)
    known = cells(text_of(ROOT / "results" / "README.md"))
    assert {row["verdict"] for row in table} == {"exact"}
    for heat in (0.0, 1.0):
        names = {row["decoder"] for row in of(table, temperature=heat)} - {"vanilla"}
        assert len(names) == 10
        for name in names:
            by_task = of(table, temperature=heat, decoder=name)
            speeds = [row["speedup"] for row in by_task]
            steps = f"{mean(by_task, 'tokens_per_step'):.2f}"
            figures = [f"{x:.2f}" for x in (*speeds, sum(speeds) / 6)]
            assert (f"{heat:g}", name, *figures, steps) in known


def test_the_speeds_of_sized_and_fixed_trees_are_their_record():
    table = rows(Records.read(*(ROOT / "results" / "bfloat16-sized").glob("*.jsonl")))
    known = cells(text_of(ROOT / "results" / "README.md"))
    pairs = {
        "prompt_lookup": "lookups",
        "suffix": "suffixes",
        "token_recycling": "recycling",
        "aded": "trigrams",
    }
    for name, fixed in pairs.items():
        chosen = [of(table, decoder=name), of(table, decoder=f"{fixed}={name}")]
        figures = [
            f"{mean(group, figure):.2f}"
            for figure in ("tokens_per_step", "speedup")
            for group in chosen
        ]
        assert (name, *figures) in known


def test_records_that_results_mention_are_there():
    text = text_of(ROOT / "results" / "README.md")
    folders = {path.name for path in (ROOT / "results").iterdir() if path.is_dir()}
    mentioned = set(re.findall(r"`((?:bfloat16-|float32-|h100|h200|served)[\w-]*)`", text))
    assert mentioned == folders


def test_the_leaderboard_is_what_its_own_command_prints():
    text = text_of(ROOT / "results" / "LEADERBOARD.md")
    script, record = re.search(
        r"^python (\S+) (\S+) > results/LEADERBOARD.md$", text, re.M
    ).groups()
    assert printed(ROOT / script, ROOT / record) == text


def test_the_leaderboard_ranks_by_the_means_of_the_record(measured):
    ranked = [
        row
        for row in table_rows(text_of(ROOT / "results" / "LEADERBOARD.md"))
        if row[1][0].isdigit()
    ]
    greedy = next(row for row in ranked if row[0] == "eagle")
    eagle = of(measured, decoder="eagle", temperature=0.0)
    assert greedy[1].split(" [")[0] == f"{mean(eagle, 'speedup'):.2f}"
    assert greedy[4:-1] == [f"{row['speedup']:.2f}" for row in eagle]
    half = len(ranked) // 2
    for part in (ranked[:half], ranked[half:]):
        speeds = [float(row[1].split(" ")[0]) for row in part]
        assert speeds == sorted(speeds, reverse=True)
