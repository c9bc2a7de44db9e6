"""Tables of cells: no cell breaks its table."""

from fspad_bench.util.grid import booktabs, grid

ESCAPE = "\x1b[31mred"


def test_a_cell_is_one_line():
    assert grid([["a\nb", 1], [ESCAPE, None]], ["x\r", "y"]).splitlines() == [
        r"x\r          y",
        "-----------  ----",
        r"a\nb         1",
        r"\x1b[31mred  None",
    ]


def test_a_cell_of_markdown_is_one_cell():
    text = grid([["a|b", r"c\|d"], ["e\nf", ""]], ["x", "y|"], is_markdown=True)
    header, _, first, second = text.splitlines()
    assert header.split() == ["|", "x", "|", r"y\|", "|"]
    assert first.split() == ["|", r"a\|b", "|", r"c\\\|d", "|"]
    assert second.split() == ["|", r"e\\nf", "|", "|"]


def test_columns_are_aligned_by_their_sides():
    assert grid([["1", "2"]], ["one", "two"], sides=["right", "left"]).splitlines()[2] == (
        "    1  2"
    )
    assert grid([["1"]], ["one"], side="right").splitlines()[2] == "    1"


def test_a_cell_of_latex_is_text():
    lines = booktabs([[r"50% & a_b \{$#^~}", "a\nb"], ["[1]", "*"]], ["x", "y_z"]).splitlines()
    assert lines[0] == r"\begin{tabular}{ll}"
    assert lines[2].split() == ["x", "&", r"y\_z", r"\\"]
    escaped = (
        r"50\% \& a\_b \textbackslash{}\{\$\#\^{}\textasciitilde{}\} & a\textbackslash{}nb  \\"
    )
    assert lines[4].strip() == escaped
    assert lines[5].split() == ["{}[1]", "&", "*", r"\\"]
