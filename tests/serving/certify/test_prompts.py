"""Prompts of a file, as token ids or texts."""

import pytest

from fspad_bench.serving.certify.prompts import TEXTS, own_prompts, read_prompts
from fspad_bench.util.errors import BenchError


class Words:
    def encode(self, text):
        return [len(word) for word in text.split(" ")]


def test_token_ids_and_texts_are_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"tokens": [3, 5]}\n\n{"text": "a bcd"}\n')
    assert read_prompts(path, Words()) == ((3, 5), (1, 3))
    assert len(own_prompts(Words())) == len(TEXTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ('{"tokens": []}', "jsonl:1: there are neither token ids nor a text"),
        ('{"tokens": [1.5]}', "neither"),
        ('{"text": "abc"}', "jsonl:1 is a text"),
        ("[1]", "neither"),
        ("{", "not JSON"),
    ],
)
def test_prompts_that_are_none(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(BenchError, match=message):
        read_prompts(path, None)
