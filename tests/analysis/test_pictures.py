"""Pictures: there, the same bytes each time, and nothing drawn of nothing."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from by_hand import FAST, VANILLA, sample
from small import PLAIN, small

from fspad_bench.analysis.explain import reports
from fspad_bench.analysis.pictures import draw
from fspad_bench.errors import BenchError


def test_the_same_record_gives_the_same_pictures(tmp_path):
    every = reports(small())
    first = draw(every, tmp_path / "one")
    again = draw(every, tmp_path / "two")
    assert [path.name for path in first] == ["acceptance.svg", "steps.svg", "factors.svg"]
    for one, other in zip(first, again, strict=True):
        content = one.read_bytes()
        assert content == other.read_bytes()
        assert b"<dc:date>" not in content
        assert ElementTree.fromstring(content).tag.endswith("svg")


def test_pictures_name_their_decoders_as_they_are(tmp_path):
    odd = replace(FAST, decoder="$x^2$ & <b>")
    drafted = sample(odd, "a", 9, 0.5, committed=[4, 4], drafted=[3, 3], forwards=2)
    draw(reports(small(PLAIN, drafted, keys=(VANILLA, odd))), tmp_path)
    text = "".join(ElementTree.parse(tmp_path / "factors.svg").getroot().itertext())
    assert "$x^2$ & <b>" in text


def test_groups_are_numbered_and_nothing_is_drawn_of_nothing(tmp_path):
    """A foreign engine has neither steps nor factors; vanilla's steps alone are drawn."""
    foreign = replace(FAST, verification="foreign", temperature=1.0)
    plain = replace(VANILLA, temperature=1.0)
    samples = [replace(PLAIN, key=plain.hash), sample(foreign, "a", 9, 0.0)]
    written = draw(
        reports(small(PLAIN, *samples, keys=(VANILLA, plain, foreign))), tmp_path / "new"
    )
    assert [path.name for path in written] == ["1-steps.svg", "2-steps.svg"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BenchError, match="cannot write to"):
        draw(reports(small()), tmp_path / "file" / "folder")
