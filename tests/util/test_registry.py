"""Names resolve to objects: built-in, third-party, unregistered and wrong ones."""

import math
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError
from fspad_bench.util.registry import DECODERS, resolve

GROUPS = (DECODERS, "fspad_bench.architectures")


@pytest.fixture
def claimed(monkeypatch):
    """`claimed(name=[values])`: what packages claim, in place of what is installed."""

    def claimed(**values):
        entries = [EntryPoint(name, value, DECODERS) for name, of in values.items() for value in of]
        monkeypatch.setattr(registry, "_declared", lambda path: EntryPoints(entries))

    return claimed


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


def test_an_unknown_name_gets_the_near_match():
    known = ", ".join(registry.names(DECODERS))
    assert error_of(resolve, DECODERS, "egle") == (
        "unknown decoder 'egle'",
        f"did you mean 'eagle'? known: {known}",
    )


def test_a_name_claimed_twice_is_refused_where_it_is_used(claimed):
    claimed(fspad=["one:A", "two:B"], eagle=["math:pi"])
    message, hint = error_of(resolve, DECODERS, "fspad")
    assert message == "the name 'fspad' is claimed by one:A and by two:B"
    assert "uninstall" in hint
    assert registry.names(DECODERS) == {"eagle": "math:pi"}
    assert resolve(DECODERS, "eagle") == math.pi


def test_an_equal_claim_twice_counts_once(claimed):
    claimed(fspad=["one:A", "one:A"])
    assert registry.names(DECODERS) == {"fspad": "one:A"}


def test_what_cannot_be_used_is_left_out_with_a_note(claimed, capsys):
    claimed(broken=["no_such_module:A"], disputed=["one:A", "two:B"], whole=["math:pi"])
    assert registry.usable(DECODERS) == {"whole": math.pi}
    notes = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0][:45] for line in notes] == [
        "note: left out: cannot load 'broken' from no_",
        "note: left out: the name 'disputed' is claime",
    ]


def test_what_packages_declare_is_read_once_for_all_groups(monkeypatch, tmp_path):
    readings = []
    read = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda: readings.append(1) or read())
    monkeypatch.syspath_prepend(tmp_path)  # a path that was not read before
    assert all(registry.names(group) for group in GROUPS)
    assert readings == [1]


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
    ("content", "name", "hint"),
    [
        ("", "gone_decoder:Mine", "install its package, or run where gone_decoder.py lies"),
        ("import torhc_geometric\n", "{own}:Mine", "it imports torhc_geometric: install that"),
        ("class Mine:\n    pass\n", "{own}:Mien", "is its name right? did you mean 'Mine'?"),
        ("import math\nmath.sine(1)\n", "{own}:Mine", "mend that line"),
        ("class Mine(:\n", "{own}:Mine", "mend that line"),
    ],
)
def test_what_to_do_about_a_module_follows_from_what_is_wrong(
    monkeypatch, tmp_path, content, name, hint
):
    own = f"strange_{abs(hash((content, name)))}"
    (tmp_path / f"{own}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    assert hint in error_of(resolve, DECODERS, name.format(own=own))[1]


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


def test_a_files_name_is_told_how_to_be_written():
    with pytest.raises(BenchError, match=r"'my_decoder\.py:Mine' names a file") as caught:
        registry.resolve(registry.DECODERS, "my_decoder.py:Mine")
    assert caught.value.hint.startswith("write my_decoder:Mine")
