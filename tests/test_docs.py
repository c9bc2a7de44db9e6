"""The documents are true: examples work, names exist. `test_doc_commands` runs the commands."""

import re
from dataclasses import replace

import pytest
from documents import (
    DOCUMENTS,
    OURS,
    ROOT,
    blocks,
    commands,
    examples,
    table_rows,
    text_of,
    write_examples,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from fspad_bench.lossless import certify, identity
from fspad_bench.lossless.certify import MUTATIONS
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer

VARIABLE = re.compile(r"\b(FSPAD_[A-Z_]+|TRITON_INTERPRET)\b")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]+))?\)")
FILE = r"(?:fspad_bench|tests|tasks|baselines|results|docs)/[\w./*-]+"


# examples -------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("label", ["my_decoder:RepeatLast", "n_gram:FollowLastToken"])
def test_the_decoders_of_the_examples_are_lossless(label, tiny, tmp_path, imported, monkeypatch):
    """The checks of `certify --decoder LABEL --quick` that are about the decoder, in small."""
    write_examples(tmp_path)
    imported(tmp_path)
    effort = replace(certify.QUICK, distance=0.3, repeats=1)
    monkeypatch.setattr(identity, "PAIRWISE", identity.PAIRWISE[:25])
    steps = certify.decoder_checks([label], {}, tiny, tiny, effort)
    checks = [check for step in steps for check in step.run()]
    assert {check.name for check in checks} >= {
        "identity",
        "non-vacuity",
        "cache",
        "exact distribution",
    }
    assert [check for check in checks if not check.holds] == []


def test_the_engine_of_the_example_is_exact(tiny, tmp_path, imported, monkeypatch):
    write_examples(tmp_path)
    imported(tmp_path)
    monkeypatch.setattr(identity, "PAIRWISE", identity.PAIRWISE[:25])
    label = "my_engine:WithoutCache"
    steps = certify.decoder_checks([label], {}, tiny, tiny, replace(certify.QUICK, repeats=1))
    checks = [check for step in steps for check in step.run()]
    assert "identity" in {check.name for check in checks}
    assert [check for check in checks if not check.holds] == []


def test_every_example_class_is_named_by_a_command_that_certifies_it():
    certified = {
        word
        for c in commands()
        if c.arguments[0] == "certify"
        for word in c.arguments
        if ":" in word
    }
    for name, document in OURS.items():
        (example,) = re.findall(r"^class (\w+)", examples()[f"{name}.py"], re.M)
        assert f"{name}:{example}" in certified, document


def test_the_decoder_of_the_readme_takes_at_most_15_lines():
    assert len([line for line in examples()["my_decoder.py"].splitlines() if line.strip()]) <= 15


def test_the_example_from_python_runs(capsys):
    (block,) = blocks("python", [ROOT / "docs" / "command-line.md"])
    assert "smollm2-135m" in block.text
    exec(block.text.replace("smollm2-135m", "tiny"), {})
    assert capsys.readouterr().out


def test_the_examples_inside_transformers_run(capsys, monkeypatch):
    """Those of the document, on the tiny model."""
    first, bound = blocks("python", [ROOT / "docs" / "transformers.md"])
    model = tiny_model()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name: model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: tiny_tokenizer())
    names = {}
    exec(first.text, names)
    committed = names["output"].generation.committed
    assert capsys.readouterr().out.endswith(f"{committed}\n")
    exec(bound.text, names)
    assert "three rivers" in capsys.readouterr().out.lower()


# names ----------------------------------------------------------------------------------------


def test_there_are_exactly_two_commands_to_set_up_everything():
    first = blocks("sh", [ROOT / "README.md"])[0].text.strip().splitlines()
    assert [line.split("#")[0].strip() for line in first] == [
        "pip install . && fspad-bench run --decoder fspad --task gsm8k",
        "pip install tox && tox",
    ]


def test_the_readme_names_every_room_and_no_other():
    tree = re.search(r"```\nfspad_bench/(.*?)```", text_of(ROOT / "README.md"), re.S)[1]
    rooms = {path.parent.name for path in (ROOT / "fspad_bench").glob("*/__init__.py")}
    tops = {"tasks", "baselines", "results", "tests", "docs"}
    parts = {"heads", "cpu", "gpu", "fspad_bench"}
    named = set(re.findall(r"\b([a-z_]+)/", tree))
    assert named - parts == rooms | tops
    assert all((ROOT / name).is_dir() for name in tops)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for file, anchor in LINK.findall(text_of(path)):
        if file.startswith("http"):
            continue
        target = (path.parent / file) if file else path
        assert target.exists(), file
        if anchor:
            assert anchor in anchors(target), f"{file}#{anchor}"


def anchors(path):
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_exist(path):
    text = text_of(path)
    named = re.findall(rf"`({FILE})`", text)
    for excuse in re.findall(r"<!-- not run by tests: (.*?) -->", text):
        named += [name.rstrip(".") for name in re.findall(FILE, excuse)]
    for name in named:
        assert list(ROOT.glob(name)) or "NAME" in name, name


def test_environment_variables_are_those_of_the_code():
    sources = [*(ROOT / "fspad_bench").rglob("*.py")]
    used = {name for path in sources for name in VARIABLE.findall(text_of(path))}
    listed = table_rows(text_of(ROOT / "docs" / "command-line.md"))
    assert {row[0] for row in listed if VARIABLE.fullmatch(row[0])} == used


def test_the_number_of_wrong_rules_is_what_documents_say():
    assert len(MUTATIONS) == 41
    assert "41 known mistakes" in " ".join(text_of(ROOT / "README.md").split())
    assert "forty-one times" in " ".join(text_of(ROOT / "docs" / "losslessness.md").split())


def test_every_verdict_is_explained():
    text = text_of(ROOT / "docs" / "reading-a-row.md")
    for verdict in ("exact", "tie", "law", "unverified", "lossy"):
        assert re.search(rf"^- `{verdict}`: ", text, re.M)
