"""A draft model is loaded as its target is, and refused where its ids mean other tokens."""

import json
import shutil

import pytest
import torch

from fspad_bench.models import draft_model
from fspad_bench.models.draft_model import load_draft_model
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer
from fspad_bench.util.errors import BenchError


@pytest.fixture
def with_tokenizer(saved_tiny, tmp_path):
    """`with_tokenizer(edit)`: a copy of the tiny target with another tokenizer."""

    def with_tokenizer(edit):
        folder = tmp_path / "copy"
        shutil.copytree(saved_tiny, folder)
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return str(folder)

    return with_tokenizer


def swap(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def lower(content):
    content["normalizer"] = {"type": "Lowercase"}


def shorten(content):
    del content["model"]["vocab"]["~"]


def test_self_is_the_target(tiny):
    assert load_draft_model("self", tiny) is tiny


def test_a_draft_has_the_targets_precision_and_device(tiny, saved_tiny):
    assert load_draft_model(str(saved_tiny), tiny).dtype == torch.float64
    target = load_target(str(saved_tiny))
    draft = load_draft_model("tiny", target)
    assert (draft.dtype, draft.device) == (torch.float32, target.device)
    assert draft is not target


def test_a_vocabulary_of_another_size_is_fine_where_ids_agree(tiny, tmp_path, saved_tiny):
    folder = tmp_path / "wide"
    model = tiny_model()
    model.resize_token_embeddings(128)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert load_draft_model(str(folder), tiny).config.vocab_size == 128


def test_tokens_that_only_one_of_them_has_do_no_harm(tiny, with_tokenizer):
    assert load_draft_model(with_tokenizer(shorten), tiny).config.vocab_size == 97


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap, "has another tokenizer than tiny: its id 65 is 'b', 'a' there"),
        (lower, "has another tokenizer than tiny: it splits 'The quick brown fox "),
    ],
)
def test_another_tokenizer_of_the_same_size_is_refused_before_weights_are_read(
    tiny, with_tokenizer, monkeypatch, edit, message
):
    folder = with_tokenizer(edit)

    def no_weights(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(draft_model, "load_target", no_weights)
    with pytest.raises(BenchError) as caught:
        load_draft_model(folder, tiny)
    assert caught.value.message.startswith("draft model: '")
    assert message in caught.value.message
    assert "tokenizer" in caught.value.hint


def test_a_draft_that_is_not_there_is_refused(tiny):
    with pytest.raises(BenchError, match="draft model: unknown target 'tinny'"):
        load_draft_model("tinny", tiny)


def test_a_target_without_a_tokenizer_is_refused():
    target = load_target("tiny")
    target.tokenizer = None
    with pytest.raises(BenchError, match="no tokenizer to compare"):
        load_draft_model("tiny", target)
