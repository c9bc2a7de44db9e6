"""Names to classes: built-in, third-party, unregistered and wrong ones; options from text."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fspad_bench.benchmark import tasks as task
from fspad_bench.decoders import registry
from fspad_bench.decoders.registry import DECODERS, TASKS, options_of, resolve
from fspad_bench.errors import BenchError

PLUGIN = Path(__file__).parent.parent / "plugin"


@pytest.fixture
def plugin(monkeypatch):
    """The third-party package, installed as far as Python can tell."""
    monkeypatch.syspath_prepend(PLUGIN)
    yield
    sys.modules.pop("acme_decoder", None)


def hint_of(call, *args):
    with pytest.raises(BenchError) as caught:
        call(*args)
    return caught.value.message, caught.value.hint


def test_the_built_in_names_are_there_and_sorted():
    found = registry.names(DECODERS)
    assert list(found) == sorted(found)
    assert {"vanilla", "prompt_lookup", "eagle", "fspad"} <= found.keys()
    assert found["vanilla"] == "fspad_bench.decoders.vanilla:Vanilla"


@pytest.mark.parametrize("name", ["vanilla", "prompt_lookup", "eagle", "fspad"])
def test_every_built_in_name_resolves(name):
    assert isinstance(resolve(DECODERS, name), type)


def test_a_third_party_package_adds_a_decoder(plugin):
    assert registry.names(DECODERS)["acme_echo"] == "acme_decoder:Echo"
    assert resolve(DECODERS, "acme_echo")(None, times=3).times == 3


def test_without_it_the_name_is_unknown():
    message, hint = hint_of(resolve, DECODERS, "acme_echo")
    assert message == "unknown decoder 'acme_echo'"
    assert "acme_echo" not in hint


def test_a_third_party_package_adds_a_task(plugin):
    assert task.card_names()["acme_shout"] == "Say it louder"
    data = task.load(task.load_card("acme_shout"), "bundled", None)
    assert data.questions[0] == task.Question("one", ["Say it louder: hello"], ["HELLO"])


def test_listing_names_imports_nothing(plugin):
    registry.names(DECODERS)
    assert "acme_decoder" not in sys.modules


def test_an_unknown_name_gets_the_near_match(plugin):
    assert hint_of(resolve, DECODERS, "acme_ecco") == (
        "unknown decoder 'acme_ecco'",
        "did you mean 'acme_echo'? known: acme_echo, eagle, fspad, prompt_lookup, vanilla",
    )
    assert hint_of(task.load_card, "acme_shut")[1].startswith("did you mean 'acme_shout'?")


def test_a_name_claimed_twice_is_refused(monkeypatch):
    claims = [EntryPoint("fspad", "one:A", DECODERS), EntryPoint("fspad", "two:B", DECODERS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: claims)
    message, hint = hint_of(registry.names, DECODERS)
    assert message == "the name 'fspad' is claimed by one:A and by two:B"
    assert "uninstall" in hint


def test_the_same_claim_twice_is_one(monkeypatch):
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [EntryPoint("fspad", "one:A", DECODERS)] * 2
    )
    assert registry.names(TASKS) == {"fspad": "one:A"}


def test_a_class_works_unregistered(monkeypatch, tmp_path):
    (tmp_path / "nobody_knows_me.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve(DECODERS, "nobody_knows_me:Mine").__name__ == "Mine"


def test_a_file_of_the_working_directory_is_found(monkeypatch, tmp_path):
    (tmp_path / "beside_me.py").write_text("class Mine:\n    pass\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert resolve(DECODERS, "beside_me:Mine").__name__ == "Mine"


def test_where_a_users_own_module_fails_is_said(monkeypatch, tmp_path):
    (tmp_path / "half_done.py").write_text("import math\nfrom math import no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    message, _ = hint_of(resolve, DECODERS, "half_done:Mine")
    assert "no_such_thing" in message
    assert f"({tmp_path / 'half_done.py'}:2)" in message


@pytest.mark.parametrize(
    "name",
    [
        "no_such_module:A",
        "fspad_bench.core.tree:Shrub",
        "fspad_bench.core.tree:",
        ":Tree",
        ":",
        ".tree:Tree",
        "a b:c",
        "..:x",
    ],
)
def test_what_cannot_be_loaded_is_said(name):
    message, hint = hint_of(resolve, DECODERS, name)
    assert message.startswith(f"cannot load '{name}'")
    assert hint


class Plain:
    def __init__(
        self,
        target,
        length: int = 8,
        *,
        rate: float = 1,
        deep: bool = False,
        head: str = "",
        odd=None,
    ):
        pass


class Typed:
    """Annotations as they are without `from __future__ import annotations`, and as text."""

    def __init__(
        self,
        target,
        *,
        a: int | None = 3,
        b: int | None = None,
        c: "float | None" = None,
        d: str = "x",
        e=2.5,
    ):
        pass


class Needy:
    def __init__(self, target, draft: str, *, length: int = 4, **rest):
        pass


def test_options_are_the_defaults_overridden():
    assert options_of(Plain, {}, "plain") == {
        "length": 8,
        "rate": 1,
        "deep": False,
        "head": "",
        "odd": None,
    }
    found = options_of(
        Plain, {"length": "3", "rate": "0.5", "deep": "TRUE", "head": "a=b", "odd": "x"}, "plain"
    )
    assert found == {"length": 3, "rate": 0.5, "deep": True, "head": "a=b", "odd": "x"}
    assert [type(value) for value in found.values()] == [int, float, bool, str, str]


def test_annotations_of_every_style_are_read():
    found = options_of(Typed, {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}, "typed")
    assert found == {"a": 1, "b": 2, "c": 3.0, "d": "4", "e": 5.0}
    assert [type(value) for value in found.values()] == [int, int, float, str, float]


def test_an_option_without_a_default_must_be_given():
    assert options_of(Needy, {"draft": "d"}, "needy") == {"draft": "d", "length": 4}
    assert hint_of(options_of, Needy, {}, "needy") == (
        "needy needs its option 'draft'",
        "give it with -D needy.draft=VALUE",
    )


def test_an_unknown_option_gets_the_near_match():
    message, hint = hint_of(options_of, Plain, {"lenght": "3"}, "plain")
    assert message == "plain has no option 'lenght'"
    assert hint == "did you mean 'length'? known: deep, head, length, odd, rate"
    assert hint_of(options_of, Needy, {"rest": "3"}, "needy")[0] == "needy has no option 'rest'"
    assert hint_of(options_of, Plain, {"target": "3"}, "plain")[0] == "plain has no option 'target'"


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("length", "three", "plain.length=three is not an integer"),
        ("length", "3.5", "plain.length=3.5 is not an integer"),
        ("length", "", "plain.length= is not an integer"),
        ("rate", "fast", "plain.rate=fast is not a number"),
        ("deep", "1", "plain.deep=1 is neither true nor false"),
        ("deep", "", "plain.deep= is neither true nor false"),
    ],
)
def test_a_wrong_type_is_said(option, text, said):
    message, hint = hint_of(options_of, Plain, {option: text}, "plain")
    assert message == said
    assert hint


def test_what_is_no_class_is_said():
    assert hint_of(options_of, "/", {}, "os:sep")[0] == "os:sep is no decoder but '/'"
