"""Rendered conversations: the user's prefix and the answers' spans, for several templates."""

import copy

import pytest

from fspad_bench.errors import BenchError
from fspad_bench.models.chat import Chat, assistant, user
from fspad_bench.models.tiny import END, tiny_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '"
    + END
    + "' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ 'be kind" + END + "' }}{% endif %}" + CHATML
STRIPPING = (
    "{% for m in messages %}{{ m['role'][0] + ':' }}"
    "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% else %}...{% endif %}{{ '"
    + END
    + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
TALK = [user("Hi!"), assistant("Yes?"), user("Why?"), assistant("So.")]
STOP = frozenset([96])


def chat(template=None):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    return Chat(tokenizer, STOP)


@pytest.mark.parametrize("template", [None, CHATML, SYSTEM])
def test_answers_are_the_assistants_words_with_their_end(template):
    template_chat = chat(template)
    tokens, answers = template_chat.whole(TALK)
    texts = [template_chat.tokenizer.decode(tokens[start:end]) for start, end in answers]
    assert texts == ["Yes?" + END, "So." + END]


@pytest.mark.parametrize("template", [None, CHATML, SYSTEM])
def test_a_prompt_is_the_beginning_of_the_whole(template):
    template_chat = chat(template)
    tokens, answers = template_chat.prompt(TALK[:3])
    whole = template_chat.whole(TALK)
    assert tokens == whole.tokens[: whole.answers[1][0]]
    assert answers == whole.answers[:1]


@pytest.mark.parametrize("template", [None, CHATML, SYSTEM])
@pytest.mark.parametrize("earlier", [[], TALK[:2]])
def test_the_prefix_ends_where_the_users_words_begin(template, earlier):
    template_chat = chat(template)
    tokenizer = template_chat.tokenizer
    text = tokenizer.decode(template_chat.user_prefix(earlier) + tokenizer("Hm")["input_ids"])
    whole = tokenizer.apply_chat_template([*earlier, user("Hm")], tokenize=False)
    assert whole.startswith(text)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    with pytest.raises(BenchError, match="writes earlier turns differently"):
        chat(STRIPPING).whole(TALK)
    assert chat(STRIPPING).whole(TALK[:2]).answers


def test_a_template_without_a_generation_prompt_is_refused():
    with pytest.raises(BenchError, match="no generation prompt"):
        chat("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(BenchError, match="no chat template"):
        Chat(tokenizer, STOP)


def test_a_template_that_leaves_the_users_words_out_is_refused():
    with pytest.raises(BenchError, match="leaves the user's words out"):
        chat("{{ 'x' }}{% if add_generation_prompt %}a:{% endif %}").user_prefix([])
