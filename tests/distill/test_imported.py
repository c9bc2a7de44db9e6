"""Given conversations are read in all their forms, and unusable rows are named."""

import json
import sys
from types import SimpleNamespace

import pytest
from jinja2 import TemplateError

from fspad_bench.distill.imported import read_given, rendered
from fspad_bench.util.errors import BenchError

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = {
    "id": "x",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}


def given(tmp_path, *rows, listed=False):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(rows) if listed else "".join(json.dumps(row) + "\n" for row in rows))
    return read_given(str(path))


def test_sharegpt_and_messages_are_equal(tmp_path):
    assert given(tmp_path, SHAREGPT, {"messages": TALK}).scripts == [TALK, TALK]
    assert given(tmp_path, SHAREGPT, SHAREGPT, listed=True).scripts == [TALK, TALK]


def test_what_follows_the_last_answer_is_dropped(tmp_path):
    assert given(tmp_path, {"messages": [*TALK, {"role": "user", "content": "And?"}]}).scripts == [
        TALK
    ]


def test_a_system_message_stays(tmp_path):
    system = {"role": "system", "content": "be brief"}
    assert given(tmp_path, {"messages": [system, *TALK]}).scripts == [[system, *TALK]]


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "given.json"
    for content in (json.dumps([SHAREGPT]), json.dumps({"messages": TALK})):
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_given(str(path)).scripts == [TALK]


@pytest.mark.parametrize("content", ["", "  \n"])
def test_an_empty_message_of_the_system_is_none(tmp_path, content):
    system = {"role": "system", "content": content}
    read = given(tmp_path, {"messages": [system, *TALK]}, {"system": content, "messages": TALK})
    assert read.scripts == [TALK, TALK]
    assert read.left_out == []


def test_a_rows_own_system_comes_first(tmp_path):
    system = {"role": "system", "content": "be brief"}
    both = {"system": "be brief", "messages": [system, *TALK]}
    read = given(tmp_path, SHAREGPT | {"system": " be brief "}, both)
    assert read.scripts == [[system, *TALK], [system, *TALK]]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "hm"}, "no messages"),
        ({"messages": []}, "no messages"),
        ([1], "no messages"),
        ({"messages": TALK[:1]}, "no assistant message"),
        ({"messages": TALK[1:]}, "user and assistant do not take turns"),
        ({"messages": [*TALK, TALK[1]]}, "user and assistant do not take turns"),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": "  "}]},
            "an empty message of the assistant",
        ),
        ({"messages": [{"role": "tool", "content": "x"}, TALK[1]]}, "an unknown role 'tool'"),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": None}]},
            "a message of the assistant without text",
        ),
        ({"messages": ["Hi", "Hello"]}, "a message that is not an object"),
        ({"messages": 5}, "messages is not a list"),
        ({"messages": TALK, "system": 5}, "a message of the system without text"),
        (
            {"messages": [{"role": "system", "content": "x"}, *TALK], "system": "y"},
            "two messages of the system",
        ),
        (
            {"messages": [{"role": ["user"], "content": "x"}, TALK[1]]},
            "an unknown role ['user']",
        ),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": "a\ud83d"}]},
            "a message of the assistant with half a surrogate pair",
        ),
    ],
)
def test_unusable_rows_are_left_out_and_named(tmp_path, row, why):
    read = given(tmp_path, {"messages": TALK}, row)
    assert read.scripts == [TALK]
    (reason,) = read.left_out
    assert reason.startswith(f"{tmp_path / 'given.json'}:2: {why}")


def test_contents_are_stripped(tmp_path):
    blank = [{"role": m["role"], "content": f"\n\n {m['content']} \n"} for m in TALK]
    assert given(tmp_path, {"messages": blank}).scripts == [TALK]


def test_conversations_the_template_refuses_are_left_out():
    class Strict:
        def whole(self, script):
            if script[0]["role"] == "system":
                raise TemplateError("System role not supported")
            return [1, 2, 3], [(1, 3)]

    left_out = []
    scripts = [TALK, [{"role": "system", "content": "Be brief."}, *TALK]]
    assert len(list(rendered(Strict(), scripts, left_out))) == 1
    assert left_out == ["'Be brief.': System role not supported"]


def test_no_usable_conversation_is_an_error(tmp_path):
    with pytest.raises(BenchError, match=r"no usable conversation; .*given\.json:1: no messages"):
        given(tmp_path, {"messages": []})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ('{"messages": [\n', "given.json:1: not JSON"),
        ("[1, 2", "given.json: not JSON"),
    ],
)
def test_a_source_without_data_is_an_error(tmp_path, text, message):
    path = tmp_path / "given.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        read_given(str(path))
    with pytest.raises(BenchError, match="no such data"):
        read_given(str(tmp_path / "absent.json"))


class Rows(list):
    """A double of a data set, whose rows can be read once the column `image` is left out."""

    def __init__(self, *rows):
        super().__init__(rows)
        self.column_names = list(rows[0])

    def select_columns(self, names):
        return Rows(*({name: row[name] for name in names} for row in list.__iter__(self)))

    def __iter__(self):
        if "image" in self.column_names:
            raise ImportError("Pillow decodes images")
        return super().__iter__()


@pytest.fixture
def hub(monkeypatch):
    """A double of `datasets`: the requests it got, and the data sets it has."""
    requests = []
    data_sets = {}

    def load_dataset(name, *, split, revision):
        requests.append((name, split, revision))
        if name not in data_sets:
            raise ConnectionError("the hub cannot be reached\nat all")
        return data_sets[name]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return requests, data_sets


def test_a_hub_data_set_is_read_at_its_revision(hub):
    requests, data_sets = hub
    data_sets["me/talks"] = Rows({"messages": TALK}, {"messages": []})
    read = read_given("hub:me/talks:test@abc")
    assert requests == [("me/talks", "test", "abc")]
    assert read.scripts == [TALK]
    assert read.left_out == ["me/talks[1]: no messages"]
    read_given("hub:me/talks@abc")
    assert requests[1] == ("me/talks", "train", "abc")


def test_columns_without_text_are_not_decoded(hub):
    hub[1]["me/talks"] = Rows({"image": b"", "system": "Be brief.", "messages": TALK})
    (script,) = read_given("hub:me/talks@abc").scripts
    assert script == [{"role": "system", "content": "Be brief."}, *TALK]


def test_a_hub_data_set_that_cannot_be_read_is_one_clear_error(hub, monkeypatch):
    hub[1]["me/talks"] = Rows({"messages": TALK})

    def select_columns(self, names):
        raise OSError("No space left on device\nat all")

    monkeypatch.setattr(Rows, "select_columns", select_columns)
    with pytest.raises(BenchError, match=r"cannot load hub:me/talks@abc .*: No space left on dev"):
        read_given("hub:me/talks@abc")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:me/talks", "names no revision"),
        (
            "hub:me/absent@abc",
            "cannot load hub:me/absent@abc from the hub: the hub cannot be reached$",
        ),
        ("hub:me/texts@abc", "has no column of messages, but text"),
    ],
)
def test_hub_errors_say_what_to_do(hub, source, message):
    hub[1]["me/texts"] = Rows({"text": "x"})
    with pytest.raises(BenchError, match=message) as caught:
        read_given(source)
    assert caught.value.hint
