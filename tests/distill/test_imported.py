"""Other people's conversations: the shapes they come in, and what is wrong with them."""

import json
import sys
from types import SimpleNamespace

import pytest
from jinja2 import TemplateError

from fspad_bench.distill.imported import read_given, rendered
from fspad_bench.errors import BenchError

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = {
    "id": "x",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}


def given(tmp_path, *rows, listed=False):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(rows) if listed else "".join(json.dumps(row) + "\n" for row in rows))
    return read_given(str(path))


def test_sharegpt_and_messages_say_the_same(tmp_path):
    assert given(tmp_path, SHAREGPT, {"messages": TALK}).scripts == [TALK, TALK]
    assert given(tmp_path, SHAREGPT, SHAREGPT, listed=True).scripts == [TALK, TALK]


def test_what_follows_the_last_answer_is_dropped(tmp_path):
    assert given(tmp_path, {"messages": [*TALK, {"role": "user", "content": "And?"}]}).scripts == [
        TALK
    ]


def test_a_system_message_stays(tmp_path):
    system = {"role": "system", "content": "be brief"}
    assert given(tmp_path, {"messages": [system, *TALK]}).scripts == [[system, *TALK]]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "hm"}, "no messages"),
        ({"messages": []}, "no messages"),
        ([1], "no messages"),
        ({"messages": TALK[:1]}, "nobody answers"),
        ({"messages": TALK[1:]}, "user and assistant do not take turns"),
        ({"messages": [*TALK, TALK[1]]}, "user and assistant do not take turns"),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": "  "}]},
            "an empty message of the assistant",
        ),
        ({"messages": [{"role": "tool", "content": "x"}, TALK[1]]}, "an unknown speaker 'tool'"),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": None}]},
            "a message of the assistant without text",
        ),
        ({"messages": ["Hi", "Hello"]}, "a message that is no object"),
        ({"messages": 5}, "messages is no list"),
        (
            {"messages": [{"role": ["user"], "content": "x"}, TALK[1]]},
            "an unknown speaker ['user']",
        ),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": "a\ud83d"}]},
            "a message of the assistant that is no text",
        ),
    ],
)
def test_rows_that_are_none_are_left_out_and_named(tmp_path, row, why):
    found = given(tmp_path, {"messages": TALK}, row)
    assert found.scripts == [TALK]
    assert found.left_out == [f"{tmp_path / 'given.json'}:2: {why}"] or found.left_out[
        0
    ].startswith(f"{tmp_path / 'given.json'}:2: {why}")


def test_words_are_taken_without_the_blanks_around_them(tmp_path):
    blank = [{"role": m["role"], "content": f"\n\n {m['content']} \n"} for m in TALK]
    assert given(tmp_path, {"messages": blank}).scripts == [TALK]


def test_what_the_template_refuses_is_left_out():
    class Strict:
        def whole(self, script):
            if script[0]["role"] == "system":
                raise TemplateError("System role not supported")
            return [1, 2, 3], [(1, 3)]

    left_out = []
    scripts = [TALK, [{"role": "system", "content": "Be brief."}, *TALK]]
    assert len(list(rendered(Strict(), scripts, left_out))) == 1
    assert left_out == ["'Be brief.': System role not supported"]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(BenchError, match=r"no usable conversation; .*given\.json:1: no messages"):
        given(tmp_path, {"messages": []})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ('{"messages": [\n', "given.json:1: not JSON"),
        ("[1, 2", "given.json: not JSON"),
    ],
)
def test_what_is_no_data_is_an_error(tmp_path, text, said):
    path = tmp_path / "given.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=said):
        read_given(str(path))
    with pytest.raises(BenchError, match="no such data"):
        read_given(str(tmp_path / "absent.json"))


class Rows(list):
    def __init__(self, *rows):
        super().__init__(rows)
        self.column_names = list(rows[0])


@pytest.fixture
def hub(monkeypatch):
    """A local double of `datasets`, and what it was asked for."""
    asked, answers = [], {}

    def load_dataset(name, *, split, revision):
        asked.append((name, split, revision))
        if name not in answers:
            raise ConnectionError("the hub cannot be reached\nat all")
        return answers[name]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked, answers


def test_a_hub_data_set_is_read_at_its_revision(hub):
    asked, answers = hub
    answers["me/talks"] = Rows({"messages": TALK}, {"messages": []})
    found = read_given("hub:me/talks:test@abc")
    assert asked == [("me/talks", "test", "abc")]
    assert (found.scripts, found.left_out) == ([TALK], ["me/talks[1]: no messages"])
    read_given("hub:me/talks@abc")
    assert asked[1] == ("me/talks", "train", "abc")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hub:me/talks", "names no revision"),
        (
            "hub:me/absent@abc",
            "cannot load hub:me/absent@abc from the hub: the hub cannot be reached$",
        ),
        ("hub:me/texts@abc", "has no column of messages, but text"),
    ],
)
def test_hub_errors_say_what_to_do(hub, source, said):
    hub[1]["me/texts"] = Rows({"text": "x"})
    with pytest.raises(BenchError, match=said) as caught:
        read_given(source)
    assert caught.value.hint
