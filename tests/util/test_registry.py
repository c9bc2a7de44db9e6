"""Names resolve to objects: built-in, third-party, unregistered and wrong ones."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from fspad_bench.benchmark import tasks
from fspad_bench.errors import BenchError
from fspad_bench.util import registry
from fspad_bench.util.registry import DECODERS, resolve

PLUGIN = Path(__file__).parent.parent / "plugin"
GROUPS = (DECODERS, "fspad_bench.architectures")


@pytest.fixture
def plugin(monkeypatch):
    """Put the third-party package on the path, installed as far as Python can tell."""
    monkeypatch.syspath_prepend(PLUGIN)
    yield
    sys.modules.pop("acme_decoder", None)


@pytest.fixture
def working_directory(monkeypatch, tmp_path):
    """Change to an empty folder, with a module path as the console script has it."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(call, *args):
    """Return the message and the hint of the BenchError that a call raises."""
    with pytest.raises(BenchError) as raised:
        call(*args)
    return raised.value.message, raised.value.hint


def test_the_built_in_names_are_there_and_sorted():
    names = registry.names(DECODERS)
    assert list(names) == sorted(names)
    assert {"vanilla", "prompt_lookup", "eagle", "fspad"} <= names.keys()
    assert names["vanilla"] == "fspad_bench.decoders.vanilla:Vanilla"


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in GROUPS for name in registry.names(group)]
)
def test_every_registered_name_resolves_to_a_class(group, name):
    assert isinstance(resolve(group, name), type)


def test_a_third_party_package_adds_a_decoder(plugin):
    assert registry.names(DECODERS)["acme_echo"] == "acme_decoder:Echo"
    assert resolve(DECODERS, "acme_echo")(None, times=3).times == 3


def test_without_the_package_its_name_is_unknown():
    message, hint = error_of(resolve, DECODERS, "acme_echo")
    assert message == "unknown decoder 'acme_echo'"
    assert "acme_echo" not in hint


def test_a_third_party_package_adds_a_task(plugin):
    assert tasks.card_names()["acme_shout"] == "Say it louder"
    data = tasks.load(tasks.load_card("acme_shout"), "bundled", None)
    assert data.questions[0] == tasks.Question("one", ["Say it louder: hello"], ["HELLO"])


def test_listing_names_imports_nothing(plugin):
    registry.names(DECODERS)
    assert "acme_decoder" not in sys.modules


def test_an_unknown_name_gets_the_near_match(plugin):
    known = ", ".join(registry.names(DECODERS))
    assert error_of(resolve, DECODERS, "acme_ecco") == (
        "unknown decoder 'acme_ecco'",
        f"did you mean 'acme_echo'? known: {known}",
    )
    assert error_of(tasks.load_card, "acme_shut")[1].startswith("did you mean 'acme_shout'?")


def test_a_name_claimed_twice_is_refused(monkeypatch):
    claims = [EntryPoint("fspad", "one:A", DECODERS), EntryPoint("fspad", "two:B", DECODERS)]
    monkeypatch.setattr(registry, "_declared", lambda group, path: EntryPoints(claims))
    message, hint = error_of(registry.names, DECODERS)
    assert message == "the name 'fspad' is claimed by one:A and by two:B"
    assert "uninstall" in hint


def test_an_equal_claim_twice_counts_once(monkeypatch):
    claims = [EntryPoint("fspad", "one:A", DECODERS)] * 2
    monkeypatch.setattr(registry, "_declared", lambda group, path: EntryPoints(claims))
    assert registry.names(DECODERS) == {"fspad": "one:A"}


def test_an_unregistered_class_resolves(monkeypatch, tmp_path):
    (tmp_path / "unregistered.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve(DECODERS, "unregistered:Mine").__name__ == "Mine"


def test_a_file_of_the_working_directory_is_importable(working_directory):
    (working_directory / "local_decoder.py").write_text("class Mine:\n    pass\n")
    assert resolve(DECODERS, "local_decoder:Mine").__name__ == "Mine"


def test_the_working_directory_comes_last_and_shadows_nothing(working_directory):
    """A file named like a module that is not imported yet, of Python or installed, is not taken."""
    (working_directory / "json.py").write_text("raise RuntimeError('shadowed')\n")
    (working_directory / "antigravity.py").write_text("raise RuntimeError('shadowed')\n")
    (working_directory / "local_too.py").write_text(
        "import importlib.util\n\nPLACE = importlib.util.find_spec('json').origin\n"
        "OTHER = importlib.util.find_spec('antigravity').origin\n"
    )
    before = list(sys.path)
    place = resolve(DECODERS, "local_too:PLACE")
    other = resolve(DECODERS, "local_too:OTHER")
    assert sys.path == [*before, str(working_directory)]
    assert Path(place).parent.name == "json"
    assert Path(other).parent != working_directory


def test_a_registered_name_leaves_the_module_path_alone(working_directory):
    before = list(sys.path)
    resolve(DECODERS, "vanilla")
    assert sys.path == before


def test_the_failing_line_of_a_users_own_module_is_named(monkeypatch, tmp_path):
    (tmp_path / "half_written.py").write_text("import math\nfrom math import no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    message, _ = error_of(resolve, DECODERS, "half_written:Mine")
    assert "no_such_thing" in message
    assert f"({tmp_path / 'half_written.py'}:2)" in message


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
def test_a_name_that_cannot_be_loaded_is_an_error(name):
    message, hint = error_of(resolve, DECODERS, name)
    assert message.startswith(f"cannot load '{name}'")
    assert hint
