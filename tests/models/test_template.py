"""Chat templates are rendered the same on every day, and tried before they are used."""

from __future__ import annotations

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from fspad_bench.models.chat import user
from fspad_bench.models.template import check_template, render, template_hash, token_ids
from fspad_bench.models.tiny import TEMPLATE, tiny_tokenizer
from fspad_bench.util.errors import BenchError

HELLO = [user("Hello")]
DATED = "\n{{ strftime_now('%d %b %Y') }} {{ strftime_now('%-d.%-m.%y, %A, 100%%') }}\n" + TEMPLATE


def tokenizer(template):
    own = tiny_tokenizer()
    own.chat_template = template
    return own


def test_a_text_is_that_of_transformers():
    own = tokenizer("\n  \n" + TEMPLATE)
    for opened in (True, False):
        expected = own.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=opened)
        assert render(own, HELLO, opened=opened) == expected
        ids = own.apply_chat_template(HELLO, add_generation_prompt=opened, return_dict=True)
        assert token_ids(own, expected) == ids["input_ids"]


@pytest.mark.parametrize("year", [2001, 2026])
def test_a_template_that_prints_the_date_prints_the_same_on_every_day(year, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(year, 2, 3)

    own = tokenizer(DATED)
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    text = own.apply_chat_template(HELLO, tokenize=False)
    assert str(year) in text  # what transformers makes of it
    assert render(own, HELLO, opened=False) == (
        "\n26 Jul 2024 26.7.24, Friday, 100%\nu:Hello<|end|>"
    )
    check_template(own)


def test_macros_of_a_template_see_the_same_date():
    dated = "{% macro day() %}{{ strftime_now('%Y') }}{% endmacro %}{{ day() }}" + TEMPLATE
    assert render(tokenizer(dated), HELLO, opened=False) == "2024u:Hello<|end|>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no such role') }}", "refuses a conversation: no such role"),
        ("{{ messages[7]['content'] }}", "refuses a conversation: "),
        ("{% for m in messages %}", "refuses a conversation: "),
        ("{{ 1 / 0 }}", "refuses a conversation: division by zero"),
        ("{{ messages.pop() }}", "refuses a conversation: "),
        ("{{ range(10 ** 9)|list }}", "refuses a conversation: "),
        ("a:", "leaves the user's words out"),
        (TEMPLATE + "{{ range(9)|random }}", "renders one conversation in several ways"),
        (TEMPLATE + "{{ lipsum(1, False) }}", "renders one conversation in several ways"),
        ({"tool_use": TEMPLATE}, "refuses a conversation: "),
    ],
)
def test_a_template_of_no_use_is_refused_by_name(template, reason):
    with pytest.raises(BenchError, match=reason) as caught:
        check_template(tokenizer(template))
    assert caught.value.hint


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        DATED,
        "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE,
        {"default": TEMPLATE, "tool_use": "a:"},
    ],
)
def test_a_template_that_asks_a_question_is_taken(template):
    check_template(tokenizer(template))


def test_every_text_of_several_templates_is_hashed():
    first = tokenizer({"default": TEMPLATE, "rag": "a"})
    second = tokenizer({"default": TEMPLATE, "rag": "b"})
    assert template_hash(first) != template_hash(second)
    assert len({template_hash(tokenizer(text)) for text in (TEMPLATE, TEMPLATE + " ")}) == 2


@pytest.mark.parametrize("written", ["'\\ud83d'", "'a' + '\\ude00'"])
def test_text_that_the_tokenizer_does_not_take_is_refused(written):
    with pytest.raises(BenchError, match="the tokenizer does not take a text"):
        check_template(tokenizer("{{ " + written + " }}" + TEMPLATE))
