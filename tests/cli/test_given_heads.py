"""Heads given by the user: one that fits runs, any other is one clear error."""

import json
from dataclasses import replace

import pytest
import torch

from fspad_bench.cli.main import main
from fspad_bench.drafts import drafter
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import architecture
from fspad_bench.drafts.shape import Shape


@pytest.fixture
def head(tiny, tmp_path):
    """`head(...)`: the folder of an untrained head on the tiny target, made wrong by arguments."""

    def head(decoder="fspad", identity=None, vocabulary=range(0, 97, 2), **shape):
        torch.manual_seed(0)
        fitting = Shape.of_target(tiny.config)
        network = architecture(decoder)(replace(fitting, **shape))
        folder = tmp_path / "head"
        Head(network, torch.tensor(vocabulary), tiny.name, identity or tiny.identity, {}).save(
            folder
        )
        return folder

    return head


def test_a_head_that_fits_runs(arguments, capsys, head):
    folder = head()
    assert (
        main(arguments("--decoder", "fspad", "-D", f"fspad.head={folder}", "--format", "json")) == 0
    )
    row = json.loads(capsys.readouterr().out)["rows"][1]
    assert row["verdict"] == "exact"
    assert "head" not in row["options"]  # a head is known by its content, not by its path
    assert len(row["options"]["head_sha256"]) == 64


def with_head(folder, decoder="fspad"):
    return "--decoder", decoder, "-D", f"{decoder}.head={folder}"


def test_a_missing_head_is_refused(arguments, refused, tmp_path, monkeypatch):
    assert "no draft head at" in refused(arguments(*with_head(tmp_path / "nowhere")))
    monkeypatch.setattr(drafter, "shipped", lambda decoder, target: tmp_path / "nowhere")
    error = refused(arguments("--decoder", "fspad"))
    assert "no fspad head is shipped for target 'tiny'" in error
    assert "fspad-bench train --decoder fspad --target tiny" in error


def test_a_head_made_for_another_target_is_refused(arguments, refused, head):
    assert "was trained for tiny, another-mode" in refused(
        arguments(*with_head(head(identity="another-model")))
    )


def test_a_head_of_another_method_is_refused(arguments, refused, head):
    assert "holds the head of 'eagle', not of 'fspad'" in refused(
        arguments(*with_head(head("eagle")))
    )


def test_a_head_of_other_shapes_is_refused(arguments, refused, head, tiny):
    folder = head()
    facts = json.loads((folder / "head.json").read_text())
    facts["shape"]["d"] = 32
    (folder / "head.json").write_text(json.dumps(facts))
    assert "is not a usable draft head" in refused(arguments(*with_head(folder)))
    facts["shape"]["width"] = 1
    (folder / "head.json").write_text(json.dumps(facts))
    assert "is not a usable draft head" in refused(arguments(*with_head(folder)))


@pytest.mark.parametrize("name", ["head.safetensors", "head.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff" * 40, b"{}", None], ids=["empty", "noise", "braces", "half"]
)
def test_a_corrupt_head_is_refused(arguments, refused, head, name, content):
    path = head() / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    assert "is not a usable draft head" in refused(arguments(*with_head(path.parent)))


@pytest.mark.parametrize("name", ["head.safetensors", "head.json"])
def test_half_a_folder_is_no_head(arguments, refused, head, name):
    folder = head()
    (folder / name).unlink()
    assert "no draft head at" in refused(arguments(*with_head(folder)))


@pytest.mark.parametrize("option", ["depth=-1", "nodes=1", "nodes=1000", "top_k=0", "top_k=-4"])
def test_a_tree_out_of_range_is_refused(arguments, refused, head, option):
    assert "is out of range" in refused(arguments(*with_head(head()), "-D", f"fspad.{option}"))


def test_an_exported_head_is_one_that_eagle_and_fspad_publish(arguments, capsys, head, tmp_path):
    folder = head("eagle", vocabulary=range(97))
    assert (
        main(["export", str(folder), "--target", "tiny", "--output", str(tmp_path / "published")])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{tmp_path / 'published'}: a head of 'eagle' for tiny",
        "not kept: the hash of its target, and how it was trained",
    ]
    assert main(arguments(*with_head(tmp_path / "published", "eagle"), "--format", "json")) == 0
    published = json.loads(capsys.readouterr().out)["rows"][1]
    assert main(arguments(*with_head(folder, "eagle"), "--format", "json")) == 0
    own = json.loads(capsys.readouterr().out)["rows"][1]
    assert published["verdict"] == "exact"
    assert published["tokens_per_step"] == own["tokens_per_step"]


def test_a_head_is_exported_without_its_draft_vocabulary(arguments, capsys, head, tmp_path):
    """Its weights do not depend on it: the exported head drafts what one of all tokens drafts."""
    output = tmp_path / "published"
    assert main(["export", str(head()), "--target", "tiny", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "not kept: the draft vocabulary of 49 tokens: all 97 are drafted" in printed
    rows = []
    for folder in (output, head(vocabulary=range(97))):
        assert main(arguments(*with_head(folder), "--format", "json")) == 0
        rows.append(json.loads(capsys.readouterr().out)["rows"][1])
    assert [row["verdict"] for row in rows] == ["exact", "exact"]
    assert rows[0]["accepted"] == rows[1]["accepted"]


def test_an_export_does_not_hide_behind_another_head(refused, head, tmp_path):
    folder = head()
    error = refused(["export", folder, "--target", "tiny", "--output", folder])
    assert "head.json exists: it would be read in place of the exported head" in error
    assert not (folder / "config.json").exists()
