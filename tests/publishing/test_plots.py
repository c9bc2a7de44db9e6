"""Panels: the same bytes each time, in the page's colours, apart from other panels."""

import re
import xml.etree.ElementTree as ElementTree

from fspad_bench.publishing.plots import PARTS, VARIABLES, Dot, bars, dots

HOSTILE = "<script>alert(1)</script> $\\frac{$ ]]>"


def panel(name="a", title="gsm8k", names=("one", "two")):
    return dots(name, title, names, [Dot(2.0, 1.5, 2.5, 1.8), Dot(1.2)], (0.5, 3.0))


def test_the_same_figures_are_the_same_bytes():
    assert panel() == panel()
    assert "<metadata" not in panel()


def test_panels_of_one_page_share_no_name():
    names = [set(re.findall(r'\bid="([^"]+)"', panel(name))) for name in ("a", "b")]
    assert names[0]
    assert not names[0] & names[1]
    for name, own in zip("ab", names, strict=True):
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', panel(name))
        assert set(used) <= own


def test_colours_are_the_pages():
    svg = panel() + bars("b", "t", ["one"], [[1, 2, 3, 4, 5, 6]], "%")
    assert "var(--accent)" in svg and "var(--part-6)" in svg
    assert not any(colour in svg for colour in VARIABLES)
    assert re.findall(r"#[0-9a-f]{6}", svg) == []


def test_labels_are_text_and_never_markup_or_formulas():
    svg = panel(title=HOSTILE, names=(HOSTILE, "\x1b\u202e" + "x" * 200))
    assert "<script" not in svg
    tree = ElementTree.fromstring(svg)
    texts = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert HOSTILE[:21] + "…" in texts
    assert max(map(len, texts)) == 22
    assert r"\x1b\u202e" + "x" * 11 + "…" in texts
    assert tree.attrib["aria-label"] == HOSTILE
    assert tree.attrib["role"] == "img"


def test_a_figure_is_drawn_where_it_is():
    """Twice the speedup is twice as far from the left end of an axis that begins at 0."""
    svg = dots("a", "t", ["one", "two"], [Dot(1.5), Dot(3.0)], (0.0, 4.0))
    dots_of = [use for use in re.findall(r"<use [^>]*>", svg) if "--accent" in use]
    first, second = (float(re.search(r' x="([\d.]+)"', use)[1]) for use in dots_of)
    (vanilla,) = re.findall(r'd="M ([\d.]+) [^"]*" [^>]*stroke-dasharray', svg)
    left = 2 * first - second
    assert abs((float(vanilla) - left) / (first - left) - 1 / 1.5) < 1e-3


def test_parts_of_a_bar_lie_side_by_side():
    svg = bars("b", "t", ["one"], [[1.0, 3.0]], "%")
    ends = []
    for part in (1, 2):
        (path,) = re.findall(rf'd="([^"]*)"[^>]*fill: var\(--part-{part}\)', svg)
        xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)]
        ends.append((min(xs), max(xs)))
    (a, b), (c, d) = ends
    assert abs(b - c) < 1e-3
    assert abs((d - c) / (b - a) - 3) < 1e-3
    assert len(PARTS) == 6
