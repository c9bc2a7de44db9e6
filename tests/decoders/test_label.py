"""Labels of decoders in their parts, and options read from text by their annotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Optional

import pytest

from fspad_bench.decoders import options as given
from fspad_bench.decoders.label import Label, read_options
from fspad_bench.util.errors import BenchError

if TYPE_CHECKING:
    from nowhere import OnlyForATypeChecker


def error_of(call, *args):
    """Return the message and the hint of the BenchError that a call raises."""
    with pytest.raises(BenchError) as raised:
        call(*args)
    return raised.value.message, raised.value.hint


@pytest.mark.parametrize(
    ("text", "label", "shown", "prefixes"),
    [
        ("fspad", Label("", "fspad", ""), "fspad", ("fspad", "fspad")),
        ("fspad@paper", Label("", "fspad", "paper"), "fspad@paper", ("fspad", "fspad@paper")),
        ("deep=fspad", Label("deep", "fspad", ""), "deep", ("deep",)),
        ("deep=fspad@paper", Label("deep", "fspad", "paper"), "deep", ("deep",)),
        ("mine=a.b:C", Label("mine", "a.b:C", ""), "mine", ("mine",)),
    ],
)
def test_a_label_in_its_parts(text, label, shown, prefixes):
    assert Label.of(text) == label
    assert Label.of(text).shown == shown
    assert Label.of(text).option_prefixes == prefixes


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
    """Annotations are text here, as with every `from __future__ import annotations`."""

    def __init__(
        self,
        target,
        *,
        a: int | None = 3,
        b: int | None = None,
        c: "float | None" = None,  # noqa: UP037
        d: str = "x",
        e=2.5,
        f: Optional[int] = None,  # noqa: UP045
        g: Optional[bool] = None,  # noqa: UP045
        h: int | str = 1,
    ):
        pass


class Checked:
    """The target's annotation cannot be resolved, as is usual for a name that nothing needs."""

    def __init__(
        self,
        target: OnlyForATypeChecker,
        *,
        size: Optional[int] = None,  # noqa: UP045
        rate: float | None = None,
        mode: Literal["fast", "slow"] = "fast",
        other: OnlyForATypeChecker | None = None,
        count: OnlyForATypeChecker = 3,
    ):
        pass


class Choosy:
    def __init__(
        self,
        target,
        *,
        mode: Literal["fast", "slow"] = "fast",
        level: Literal[1, 2, "auto"] = 1,
        maybe: Literal["a", "b"] | None = None,
    ):
        pass


class Listing:
    def __init__(
        self,
        target,
        *,
        sizes: list[int] = (),
        names: Sequence[str] | None = None,
        pairs: dict = {},  # noqa: B006
        either: str | list[int] = "",
    ):
        pass


class Needy:
    def __init__(self, target, draft: str, *, length: int = 4, **rest):
        pass


class Bare:
    """Has no constructor of its own."""


def test_options_are_the_defaults_overridden():
    assert read_options(Plain, {}, "plain") == {
        "length": 8,
        "rate": 1,
        "deep": False,
        "head": "",
        "odd": None,
    }
    raw = {"length": "3", "rate": "0.5", "deep": "TRUE", "head": "a=b", "odd": "x"}
    options = read_options(Plain, raw, "plain")
    assert options == {"length": 3, "rate": 0.5, "deep": True, "head": "a=b", "odd": "x"}
    assert [type(value) for value in options.values()] == [int, float, bool, str, str]


def test_annotations_of_every_style_are_read():
    raw = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5", "f": "6", "g": "true", "h": "7"}
    options = read_options(Typed, raw, "typed")
    assert options == {"a": 1, "b": 2, "c": 3.0, "d": "4", "e": 5.0, "f": 6, "g": True, "h": 7}
    kinds = [int, int, float, str, float, int, bool, int]
    assert [type(value) for value in options.values()] == kinds


@pytest.mark.parametrize("text", ["none", "None", "NONE"])
def test_none_is_read_where_the_annotation_has_it(text):
    options = read_options(Typed, {"a": text, "c": text, "f": text, "d": text}, "typed")
    assert options["a"] is options["c"] is options["f"] is None
    assert options["d"] == text


def test_an_annotation_that_cannot_be_resolved_does_not_hide_the_others():
    raw = {"size": "3", "rate": "2", "mode": "slow", "other": "x", "count": "4"}
    options = read_options(Checked, raw, "checked")
    assert options == {"size": 3, "rate": 2.0, "mode": "slow", "other": "x", "count": 4}
    assert [type(value) for value in options.values()] == [int, float, str, str, int]
    assert error_of(read_options, Checked, {"mode": "quick"}, "checked")[0] == (
        "checked.mode=quick is not allowed"
    )


@pytest.mark.parametrize(
    ("option", "kind"), [("sizes", "list[int]"), ("names", "Sequence[str]"), ("pairs", "dict")]
)
def test_an_option_that_no_text_gives_is_refused(option, kind):
    message, hint = error_of(read_options, Listing, {option: "1,2"}, "listing")
    assert message.startswith(f"listing.{option} is annotated as ")
    assert kind in message
    assert "int, float, Literal" in hint


def test_an_option_that_may_be_text_is_read_as_text():
    options = read_options(Listing, {"names": "none", "either": "1,2"}, "listing")
    assert options == {"sizes": (), "names": None, "pairs": {}, "either": "1,2"}


def test_literals_are_read_as_what_they_stand_for():
    options = read_options(Choosy, {"mode": "slow", "level": "2", "maybe": "b"}, "choosy")
    assert options == {"mode": "slow", "level": 2, "maybe": "b"}
    assert read_options(Choosy, {"level": "auto"}, "choosy")["level"] == "auto"
    assert read_options(Choosy, {"maybe": "none"}, "choosy")["maybe"] is None


@pytest.mark.parametrize("option", ["mode", "level", "maybe"])
def test_an_unknown_literal_gets_the_near_match(option):
    message, hint = error_of(read_options, Choosy, {option: "slwo"}, "choosy")
    assert message == f"choosy.{option}=slwo is not allowed"
    assert "known: " in hint
    assert (option != "mode") or hint.startswith("did you mean 'slow'?")


def test_an_option_without_a_default_must_be_given():
    assert read_options(Needy, {"draft": "d"}, "needy") == {"draft": "d", "length": 4}
    assert error_of(read_options, Needy, {}, "needy") == (
        "needy needs its option 'draft'",
        "give it with -D needy.draft=VALUE",
    )


def test_an_unknown_option_gets_the_near_match():
    message, hint = error_of(read_options, Plain, {"lenght": "3"}, "plain")
    assert message == "plain has no option 'lenght'"
    assert hint == "did you mean 'length'? known: deep, head, length, odd, rate"
    for decoder, name, raw in ((Needy, "needy", {"rest": "3"}), (Plain, "plain", {"target": "3"})):
        (option,) = raw
        message, _ = error_of(read_options, decoder, raw, name)
        assert message == f"{name} has no option '{option}'"


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("length", "three", "plain.length=three is not an integer"),
        ("length", "3.5", "plain.length=3.5 is not an integer"),
        ("length", "", "plain.length= is not an integer"),
        ("rate", "fast", "plain.rate=fast is not a number"),
        ("rate", "nan", "plain.rate=nan is out of range"),
        ("rate", "-inf", "plain.rate=-inf is out of range"),
        ("rate", "1e300", "plain.rate=1e300 is out of range"),
        ("length", "9" * 30, f"plain.length={'9' * 30} is out of range"),
        ("length", "9" * 400, f"plain.length={'9' * 40} is out of range"),
        ("length", "9" * 5000, f"plain.length={'9' * 40} is not an integer"),
        ("deep", "1", "plain.deep=1 is neither true nor false"),
        ("deep", "", "plain.deep= is neither true nor false"),
    ],
)
def test_a_text_of_the_wrong_type_is_refused(option, text, message):
    refused, hint = error_of(read_options, Plain, {option: text}, "plain")
    assert refused == message
    assert hint


def test_a_class_without_a_constructor_has_no_options():
    assert read_options(Bare, {}, "bare") == {}


def test_an_object_that_is_no_class_is_refused():
    message, _ = error_of(read_options, "/", {}, "os:sep")
    assert message == "os:sep is not a decoder class: '/'"


def test_two_values_of_one_option_are_refused():
    twice = ["fspad.depth=3", "fspad.depth=4"]
    message, hint = error_of(given.read_options, twice)
    assert (message, hint) == ("-D fspad.depth is given as 3 and as 4", "give it once")
    assert given.read_options(["fspad.depth=3"] * 2) == {"fspad": {"depth": "3"}}
