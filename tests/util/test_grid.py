"""Tables of cells: no cell breaks its table."""

from fspad_bench.util.grid import grid

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
