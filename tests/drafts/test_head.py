"""Heads on disk: they come back as they went, and a foreign or damaged one is refused with the reason."""

import json

import pytest
import torch

from fspad_bench.drafts.head import Head, content_hash, load_head
from fspad_bench.errors import BenchError


def changed(folder, tmp_path, **facts):
    """A copy of a head whose head.json says something else."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "head.safetensors").write_bytes((folder / "head.safetensors").read_bytes())
    (copy / "head.json").write_text(
        json.dumps(json.loads((folder / "head.json").read_text()) | facts)
    )
    return copy


def test_round_trip(tiny, heads, tmp_path):
    head = load_head(heads["fspad"], tiny, "fspad")
    Head(head.network, head.vocabulary, head.target, head.identity).save(tmp_path)
    again = load_head(tmp_path, tiny, "fspad")
    assert torch.equal(head.vocabulary, again.vocabulary)
    for name, weight in head.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[name])
    assert content_hash(tmp_path) == content_hash(heads["fspad"])


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"identity": "other", "target": "vicuna"}, "was trained for vicuna"),
        ({"shape": {}}, "not a usable draft head"),
    ],
)
def test_a_foreign_head_is_refused(tiny, heads, tmp_path, facts, says):
    with pytest.raises(BenchError, match=says):
        load_head(changed(heads["eagle"], tmp_path, **facts), tiny, "eagle")


def test_a_head_of_another_kind_is_refused(tiny, heads):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'fspad'"):
        load_head(heads["eagle"], tiny, "fspad")


def test_other_shapes_are_refused(tiny, heads, tmp_path):
    shape = json.loads((heads["eagle"] / "head.json").read_text())["shape"]
    with pytest.raises(BenchError, match="not a usable draft head"):
        load_head(changed(heads["eagle"], tmp_path, shape=shape | {"m": 81}), tiny, "eagle")


def test_a_damaged_file_is_refused(tiny, heads, tmp_path):
    copy = changed(heads["eagle"], tmp_path)
    weights = (copy / "head.safetensors").read_bytes()
    (copy / "head.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BenchError, match="not a usable draft head"):
        load_head(copy, tiny, "eagle")


def test_a_missing_head_says_how_to_get_one(tiny, tmp_path):
    with pytest.raises(BenchError) as raised:
        load_head(tmp_path / "absent", tiny, "eagle")
    assert "no draft head at" in raised.value.message
    assert "fspad-bench train" in raised.value.hint
