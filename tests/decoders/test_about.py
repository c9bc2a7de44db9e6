"""Every decoder of the suite says in a sentence how it drafts, and what it needs."""

import pytest
from documents import ROOT, text_of

from fspad_bench.cli.main import main
from fspad_bench.decoders.about import NEEDS, about, baseline
from fspad_bench.lossless.promises import shipped_baselines
from fspad_bench.util import registry

OWN = [
    name
    for name, value in registry.names(registry.DECODERS).items()
    if value.startswith("fspad_bench.")
]


@pytest.mark.parametrize("name", OWN)
def test_every_own_decoder_is_described(name):
    described = about(name)
    assert described.needs in NEEDS
    assert 20 < len(described.summary) <= 80
    assert not described.summary.endswith(".")


def test_every_baseline_is_a_decoder_of_the_suite():
    assert {path.stem for path in shipped_baselines()} == set(OWN)


def test_a_decoder_of_others_has_no_description():
    assert about("my_decoder:RepeatLast") is None


def test_ls_prints_the_sentence_and_what_is_needed(capsys):
    assert main(["ls", "decoders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  {'vanilla':17} {about('vanilla').summary}" in lines
    assert f"  {'fspad':17} {about('fspad').summary} (a trained head)" in lines


def test_ls_names_the_class_of_a_decoder_of_others(monkeypatch, capsys):
    claims = {"shout": [registry.Claim("acme_decoder:Shout")]}
    monkeypatch.setattr(registry, "claims", lambda _: claims)
    assert main(["ls", "decoders"]) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert " ".join(line.split()) == "shout acme_decoder:Shout"


PUBLISHED = {"figure", "target", "hardware", "baseline", "source"}


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("vanilla", "hybrid")])
def test_published_figures_stand_with_their_circumstances(name):
    published = baseline(name)["published"]
    assert published
    for entry in published:
        assert entry.keys() == PUBLISHED
        assert all(isinstance(value, str) and value for value in entry.values())


@pytest.mark.parametrize("name", [name for name in OWN if name != "vanilla"])
def test_every_own_decoder_has_a_section(name):
    assert f"\n## {name}\n" in text_of(ROOT / "docs" / "decoders.md")
