"""Cards of strangers: a value of the wrong kind is named before anything is measured."""

import math

import pytest
import yaml

from fspad_bench.benchmark.cards import read_card
from fspad_bench.benchmark.tasks import load
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import data_folder

GSM8K = yaml.safe_load((data_folder("tasks") / "gsm8k.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def card(tmp_path):
    """`card(**changes)`: the path of gsm8k's card with other values."""

    def card(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(GSM8K | changes), encoding="utf-8")
        return path

    return card


# a text of 9^8 words, by lists that name each other
LAUGHS = (
    b"task:\n  a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(
        b"  %c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 9))
        for name in b"bcdefgh"
    )
    + b"title: x\ndoc_to_text: x\n"
)


def refused(call, *arguments):
    with pytest.raises(BenchError) as raised:
        call(*arguments)
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", 5),
        ("task", ""),
        ("task", "two\nlines"),
        ("title", ["a"]),
        ("doc_to_text", 3),
        ("doc_to_text", []),
        ("doc_to_text", ["{{ a }}", None]),
        ("doc_to_target", 3),
        ("score", {"metric": "x"}),
        ("max_new_tokens", "many"),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("max_new_tokens", 1.5),
        ("bundled", ["a.jsonl"]),
        ("bundled", None),
        ("spec_bench", 5),
        ("dataset_path", 5),
        ("license", None),
        ("metadata", "version 1"),
        ("metadata", {"version": "one"}),
        ("metadata", {"version": math.inf}),
        ("metadata", {"version": math.nan}),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(card, key, value):
    message = refused(read_card, card(**{key: value}))
    assert message.startswith("cannot read the card ")
    assert f"'{key}" in message


def test_one_category_may_be_written_without_a_list(card):
    assert read_card(card(spec_bench="math_reasoning")).spec_bench == ["math_reasoning"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"task: \xff\n", "mine.yaml:1: not UTF-8"),
        (b'task: "\\ud83d"\n', "not YAML"),
        (b"[" * 5000, "cannot read the card"),
        (b"a: &a [*a]\n", "lacks the key 'doc_to_text'"),
        (b'a: !!int ""\n', "not YAML: a value does not fit its tag"),
        (b"a: !!timestamp x\n", "not YAML: a value does not fit its tag"),
        (b"a: !!bool perhaps\n", "not YAML: a value does not fit its tag"),
        (b"a: 2024-99-99\n", "not YAML: month must be in 1..12"),
        (LAUGHS, "'task' is a text, not {'a': "),
        (b"\x00\x01", "cannot read the card"),
    ],
)
def test_a_file_that_is_no_card_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert message in refused(read_card, path)


@pytest.mark.parametrize(
    ("key", "template"),
    [
        ("doc_to_text", "{{ question"),
        ("doc_to_text", "{% for i in range(10 ** 9) %}x{% endfor %}"),
        ("doc_to_text", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        ("doc_to_text", "{{ question.__class__ }}"),
        ("doc_to_text", "  "),
        ("doc_to_text", '{{ "\\ud83d" }}'),
        ("doc_to_target", "answer +"),
        ("doc_to_target", ""),
        ("doc_to_target", "{'a': answer}"),
        ("doc_to_target", "[[answer]]"),
        ("doc_to_target", '"\\ud83d"'),
    ],
)
def test_a_bad_template_names_the_line_of_the_data(card, write, key, template):
    path = write([{"question": "q", "answer": "1"}])
    mine = read_card(card(**{key: template}))
    assert "data.jsonl:1: " in refused(load, mine, str(path), None)
