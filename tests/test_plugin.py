"""A package of others, installed by pip: its decoder, task and metric are there like the suite's.

Broken packages, and two that claim one name, harm nothing but the use of that name.
"""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from documents import blocks

from fspad_bench.benchmark import scoring, tasks
from fspad_bench.benchmark.record import Records
from fspad_bench.cli.main import main
from fspad_bench.decoders.options import decoder_labels
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError
from fspad_bench.util.registry import DECODERS, METRICS, TASKS

PACKAGE = Path(__file__).parent / "plugin"
INSTALL = "pip install -q --no-deps --no-index --no-build-isolation --disable-pip-version-check"


def installed(package, folder):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", *INSTALL.split(), "--target", folder, package]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    return installed(PACKAGE, tmp_path_factory.mktemp("site-packages"))


@pytest.fixture
def plugin(site_packages, monkeypatch):
    """Install the package for one test."""
    monkeypatch.syspath_prepend(site_packages)
    yield
    sys.modules.pop("acme_decoder", None)


@pytest.fixture
def also_claimed(monkeypatch):
    """`also_claimed(group, name, value)`: one more name that a package claims."""
    declared = registry._declared.__wrapped__

    def also_claimed(group, name, value):
        def more(path):
            return EntryPoints([*declared(path), EntryPoint(name, value, group)])

        monkeypatch.setattr(registry, "_declared", more)

    return also_claimed


def test_its_names_resolve(plugin):
    assert registry.names(DECODERS)["acme_echo"] == "acme_decoder:Echo"
    assert registry.resolve(DECODERS, "acme_echo")(None, times=3).times == 3
    assert tasks.card_names()["acme_shout"] == "Say it louder"
    data = tasks.load(tasks.load_card("acme_shout"), "bundled", None)
    assert data.questions[0] == tasks.Question("one", ["Say it louder: hello"], ["HELLO"])


def test_listing_names_imports_nothing(plugin):
    registry.names(DECODERS)
    assert "acme_decoder" not in sys.modules


def test_a_misspelt_name_of_its_gets_the_near_match(plugin):
    with pytest.raises(BenchError) as raised:
        registry.resolve(DECODERS, "acme_ecco")
    assert raised.value.hint.startswith("did you mean 'acme_echo'?")
    with pytest.raises(BenchError) as raised:
        tasks.load_card("acme_shut")
    assert raised.value.hint.startswith("did you mean 'acme_shout'?")
    with pytest.raises(BenchError) as raised:
        scoring.score("acme_loudnes", ["x"], [["x"]])
    assert raised.value.hint.startswith("did you mean 'acme_loudness'?")


def test_without_the_package_its_names_are_unknown():
    with pytest.raises(BenchError, match="unknown decoder 'acme_echo'") as raised:
        registry.resolve(DECODERS, "acme_echo")
    assert "acme_echo" not in raised.value.hint


def test_ls_says_where_names_come_from(plugin, capsys):
    assert main(["ls"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "acme_echo acme_decoder:Echo (acme-decoder 0.1)" in lines
    assert "acme_shout Say it louder (acme-decoder 0.1)" in lines
    assert "acme_loudness acme_decoder:loudness (acme-decoder 0.1)" in lines
    assert sum("acme" in line for line in lines) == 3


def test_its_decoder_runs_on_its_task_and_is_scored_by_its_metric(plugin, quick_runs, tmp_path):
    run = "run --target tiny --decoder acme_echo --task acme_shout --data bundled --no-aa"
    assert main([*run.split(), "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.jsonl")
    records = Records.read(path)
    assert [key.decoder for key in records.keys.values()] == ["vanilla", "acme_echo"]
    scores = list(records.scores.values())
    assert len(scores) == 2
    assert scores[0] == scores[1]
    assert list(scores[0]) == ["loudness", "right"]


def test_a_broken_decoder_is_left_out_of_all(also_claimed, capsys):
    also_claimed(DECODERS, "acme_broken", "no_such_module:A")
    labels = decoder_labels("all")
    assert "acme_broken" not in labels
    assert "fspad" in labels
    assert capsys.readouterr().err.startswith("note: left out: cannot load 'acme_broken'")


def test_a_broken_task_is_left_out_of_the_list(also_claimed, capsys):
    also_claimed(TASKS, "acme_broken", "math:pi")
    names = tasks.card_names()
    assert "acme_broken" not in names
    assert "gsm8k" in names
    assert "'acme_broken' stands for 3.14" in capsys.readouterr().err


def test_a_decoder_that_two_packages_claim_stands_in_the_list(also_claimed, capsys):
    also_claimed(DECODERS, "fspad", "acme_decoder:Echo")
    assert main(["ls", "decoders"]) == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line[2:].startswith("fspad")
    ]
    assert "in dispute: fspad_bench.decoders.fspad:Fspad (fspad-bench " in line
    assert "and acme_decoder:Echo; uninstall one" in line


@pytest.mark.parametrize(
    ("figures", "message"),
    [({}, "not percentages"), ({"x": 101}, "not percentages"), (None, "AttributeError"),
     ({"x": float("nan")}, "not percentages"), ({"x": "much"}, "could not convert")],
)  # fmt: skip
def test_a_metric_that_returns_no_percentages_is_named(monkeypatch, also_claimed, figures, message):
    also_claimed(METRICS, "acme_broken", "acme_decoder:loudness")
    monkeypatch.setattr(registry, "resolve", lambda *_: lambda outputs, references: figures)
    with pytest.raises((BenchError, ValueError), match=message):
        scoring.score("acme_broken", ["x"], [["x"]])


def test_the_documents_package_registers_its_decoder(tmp_path, monkeypatch):
    """Its `pyproject.toml` beside its module is all that pip needs."""
    package = tmp_path / "package"
    package.mkdir()
    (module,) = [own.text for own in blocks("python") if own.text.startswith("# n_gram.py")]
    (project,) = [own.text for own in blocks("toml") if "[build-system]" in own.text]
    (package / "n_gram.py").write_text(module)
    (package / "pyproject.toml").write_text(project)
    monkeypatch.syspath_prepend(installed(package, tmp_path / "site-packages"))
    assert registry.names(DECODERS)["n_gram"] == "n_gram:FollowLastToken"
    assert registry.resolve(DECODERS, "n_gram").__name__ == "FollowLastToken"
    sys.modules.pop("n_gram")
