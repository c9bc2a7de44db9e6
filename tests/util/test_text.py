"""The one door for text: UTF-8 with or without a byte order mark, and nothing that is no text."""

import pytest

from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import is_text, json_file, json_lines, json_object, json_value, text_file

HALF = r'{"turns": ["Cut off here \ud83d"]}'


@pytest.fixture
def file(tmp_path):
    def file(content):
        path = tmp_path / "file.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def refused(read, *arguments):
    with pytest.raises(BenchError) as raised:
        result = read(*arguments)
        list(result)
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value.message


def test_lines_are_read_with_their_places(file):
    path = file(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[2]\n"\xc3\xa4"')
    assert list(json_lines(path)) == [
        (f"{path}:1", {"a": 1}),
        (f"{path}:4", [2]),
        (f"{path}:5", "ä"),
    ]


def test_a_whole_pair_is_text_and_half_of_one_is_not(file):
    path = file(r'["\ud83e\udd86", "\\ud83d", "\u00e4"]')
    assert list(json_lines(path)) == [(f"{path}:1", ["🦆", "\\ud83d", "ä"])]
    for value in (HALF, r'{"\udfff": 1}', r'[[{"a": "\uDE00\uD83D"}]]'):
        message = refused(json_lines, file("1\n" + value + "\n"))
        assert message.startswith(f"{path}:2: half of a surrogate pair (\\u")


def test_half_a_pair_in_bytes_is_not_utf_8(file):
    message = refused(json_lines, file(b'"fine"\n"\xed\xa0\xbd"'))
    assert "file.jsonl:2: not JSON: not UTF-8: byte 0xed at 1" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_other_encodings_are_named_not_guessed(file, encoding):
    path = file('{"a": "ä"}\n'.encode(encoding))
    for read in (json_lines, text_file, lambda path: json_file(path, "hint")):
        message = refused(read, path)
        assert message.startswith(f"{path}")


def test_text_that_is_not_utf_8_names_its_line(file):
    path = file(b"a: 1\nb: \xff\n")
    assert refused(text_file, path) == f"{path}:2: not UTF-8: byte 0xff at 8"
    assert text_file(file(b"\xef\xbb\xbfa: 1")) == "a: 1"


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "nope", '{"a": 1} {"b": 2}', "9" * 5000])
def test_what_is_no_json_is_one_clear_error(file, content):
    message = refused(json_lines, file(content))
    assert "file.jsonl:1: not JSON" in message


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": 1}', {"a": 1}), ("{}", {}), ("[1]", None), ("{", None), ("", None), ("NaN", None)],
)
def test_an_object_is_told_from_what_is_none(text, value):
    assert json_object(text) == value


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path):
    assert "cannot read" in refused(text_file, tmp_path)
    assert "No such file" in refused(text_file, tmp_path / "gone")


def test_the_callers_own_check_may_stand_in(file):
    value = json_value(HALF.encode(), is_strict=False)
    assert not is_text(value["turns"][0])
    with pytest.raises(ValueError, match="surrogate"):
        json_value(HALF.encode())
    assert is_text("🦆")
    assert not is_text(5)
