"""Pictures: there, the same bytes each time, and nothing drawn of nothing."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from by_hand import FAST, VANILLA, sample
from small import DRAFTED, PLAIN, small

from fspad_bench.analysis.explain import reports
from fspad_bench.analysis.pictures import draw
from fspad_bench.util.errors import BenchError


@pytest.mark.wide
def test_the_same_record_gives_the_same_pictures(tmp_path):
    """Names of decoders are drawn as they are, not as formulas or tags."""
    odd = replace(FAST, decoder="$x^2$ & <b>")
    every = reports(small(PLAIN, replace(DRAFTED, key=odd.hash), keys=(VANILLA, odd)))
    first = draw(every, tmp_path / "one")
    again = draw(every, tmp_path / "two")
    assert [path.name for path in first] == ["acceptance.svg", "steps.svg", "factors.svg"]
    for one, other in zip(first, again, strict=True):
        content = one.read_bytes()
        assert content == other.read_bytes()
        assert b"<dc:date>" not in content
        assert "$x^2$ & <b>" in "".join(ElementTree.fromstring(content).itertext())


def test_groups_are_numbered_and_nothing_is_drawn_of_nothing(tmp_path):
    """A foreign engine has neither steps nor factors; vanilla's steps alone are drawn."""
    foreign = replace(FAST, verification="foreign", temperature=1.0)
    plain = replace(VANILLA, temperature=1.0)
    samples = [replace(PLAIN, key=plain.hash), sample(foreign, "a", 9, 0.0)]
    written = draw(
        reports(small(PLAIN, *samples, keys=(VANILLA, plain, foreign))), tmp_path / "new"
    )
    assert [path.name for path in written] == ["1-steps.svg", "2-steps.svg"]


def test_a_decoder_that_lacks_a_task_is_drawn_on_its_own(tmp_path):
    nq = replace(VANILLA, task="nq")
    every = reports(small(PLAIN, DRAFTED, replace(PLAIN, key=nq.hash), keys=(VANILLA, FAST, nq)))
    written = draw(every, tmp_path)
    assert [path.name for path in written] == ["acceptance.svg", "steps.svg", "factors.svg"]
    assert "gsm8k@bundled" in written[0].read_text()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BenchError, match="cannot write to"):
        draw(reports(small()), tmp_path / "file" / "folder")
