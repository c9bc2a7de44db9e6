"""Rendered conversations: the user's prefix and the answers' spans, for several templates."""

import copy

import pytest
from tokenizers import normalizers

from fspad_bench.models.chat import Chat, assistant, tokenizer_hash, user, vocabulary_hash
from fspad_bench.models.tiny import END, tiny_tokenizer
from fspad_bench.util.errors import BenchError

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
THINKING = (  # as Qwen3's
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '" + END + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
REASONING = (  # as R1's
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '" + END + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>' }}{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] + '" + END + "' }}{% endif %}{% endfor %}"
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


@pytest.mark.parametrize(
    ("template", "prompted", "whole"),
    [
        (STRIPPING, [], ["So." + END]),
        (THINKING, ["Yes?" + END], ["Yes?" + END, "<think></think>So." + END]),
        (REASONING, [], []),
        (INST, ["Yes?" + END], ["Yes?" + END, "So." + END]),
    ],
    ids=["stripping", "thinking", "reasoning", "inst"],
)
def test_answers_that_can_be_located_are_used(template, prompted, whole):
    """Templates may write the last answer otherwise than earlier ones, or not open it."""

    def texts(rendered):
        decode = own.tokenizer.decode
        return [decode(rendered.tokens[start:end]) for start, end in rendered.answers]

    own = chat(template)
    assert texts(own.prompt(TALK[:3])) == prompted
    if whole:
        assert texts(own.whole(TALK)) == whole
    else:
        with pytest.raises(BenchError, match="writes answers otherwise than it asks for them"):
            own.whole(TALK)


def test_what_a_template_refuses_is_named():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    own = chat(strict + CHATML)
    with pytest.raises(BenchError, match="refuses a conversation: no system"):
        own.prompt([{"role": "system", "content": "Be brief."}, *TALK[:1]])
    assert own.prompt(TALK[:1]).tokens


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(BenchError, match="no chat template"):
        Chat(tokenizer, STOP)


def test_a_template_that_leaves_the_users_words_out_is_refused():
    with pytest.raises(BenchError, match="leaves the user's words out"):
        chat("{{ 'x' }}{% if add_generation_prompt %}a:{% endif %}").user_prefix([])


def test_the_hash_of_a_tokenizer_is_that_of_all_that_decides_ids():
    """Merges, normalisers and added tokens decide ids; the vocabulary alone what they stand for."""
    plain = tiny_tokenizer()
    lower = tiny_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert tokenizer_hash(plain) == tokenizer_hash(tiny_tokenizer())
    assert tokenizer_hash(plain) != tokenizer_hash(lower)
    assert vocabulary_hash(plain) == vocabulary_hash(lower)
    more = tiny_tokenizer()
    more.add_tokens(["<more>"])
    assert vocabulary_hash(more) != vocabulary_hash(plain)
