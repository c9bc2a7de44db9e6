"""The page in a browser: its script sorts and filters by what the address says."""

import shutil
import subprocess

import pytest
from reading import read, table

from fspad_bench.publishing.page import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def opened(measured, tmp_path_factory):
    """The page of one machine after its script has run, sorted by speedup, of one task."""
    if CHROMIUM is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)}")
    folder = tmp_path_factory.mktemp("browser")
    single = [row for row in measured if row["machine"] == "one"]
    (folder / "index.html").write_text(page(single, []), encoding="utf-8")
    address = (folder / "index.html").as_uri() + "?sort=speedup&order=desc&task=gsm8k%40bundled"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return read(done.stdout)


@pytest.mark.wide
def test_rows_are_sorted_and_filtered(opened):
    header, _ = table(opened)
    shown = [row for row in opened.by_id("table").all("tr") if "hidden" not in row.attributes][1:]
    cells = [[cell.text for cell in [*row.all("th"), *row.all("td")]] for row in shown]
    lines = [dict(zip(header, line, strict=True)) for line in cells]
    assert {line["task"] for line in lines} == {"gsm8k@bundled"}
    decoders = [line["decoder"] for line in lines]
    assert decoders == ["fast", "fast", "vanilla", "vanilla", "slow", "slow"]
    speeds = [line["speedup 95%"].split()[0] for line in lines]
    assert speeds == ["2.00", "2.00", "1.00", "1.00", "0.50", "0.50"]
    assert opened.by_id("count").text == "6 of 12 rows"
    sorted_by = [th.text for th in opened.by_id("table").all("th") if "aria-sort" in th.attributes]
    assert sorted_by == ["speedup 95%"]


@pytest.mark.wide
def test_what_is_filtered_out_is_hidden_everywhere(opened):
    details = list(opened.by_id("facts").all("details"))
    hidden = [d for d in details if "hidden" in d.attributes]
    assert {d.attributes["data-task"] for d in hidden} == {"nq@bundled"}
    assert len(hidden) == len(details) // 2


def test_the_controls_show_and_heads_are_buttons(opened):
    assert "hidden" not in opened.by_id("filters").attributes
    heads = [th for th in opened.by_id("table").all("th") if "data-sort" in th.attributes]
    assert all(len(list(th.all("button"))) == 1 for th in heads)
    chosen = {s.attributes["name"] for s in opened.all("select")}
    assert chosen == {"task", "sampling"}
