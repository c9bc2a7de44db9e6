"""What leaves a machine: base names, never folders, addresses, users or hosts."""

import json

import pytest

from fspad_bench.publishing.every_eval_ever import Evaluator, document
from fspad_bench.publishing.hub_results import Published, result_files
from fspad_bench.publishing.private import base_name, base_names, decoder_name

SECRETS = ("alice", "gpu-box", "my secret", "Jane", "10.0.0.7")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/alice/heads/mine", "mine"),
        ("~/heads/mine/", "mine"),
        ("C:\\Users\\Jane Doe\\heads\\mine", "mine"),
        ("/home/Jane Doe/my head", "my head"),
        ("http://gpu-box:8000/v1", "(address)"),
        ("http://10.0.0.7", "(address)"),
        ("gpu-box:8000", "(address)"),
        ("alice@gpu-box:head", "(address)"),
        ("cuda:8000", "(address)"),
        ("cuda:0", "cuda:0"),
        ("cuda:0,cuda:1", "cuda:0,cuda:1"),
        ("fixed", "fixed"),
        ("gsm8k@bundled", "gsm8k@bundled"),
        ("", ""),
    ],
)
def test_the_last_part_of_a_path_is_kept(text, kept):
    assert base_name(text) == kept


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        ("mine=/home/alice/d.py:Class@x", "mine=d.py:Class@x"),
        ("../d.py:Class", "d.py:Class"),
        ("package.module:Class", "package.module:Class"),
        ("fspad@paper", "fspad@paper"),
        ("served:http://gpu-box", "served:(address)"),
        ("served:http://gpu-box:8000/v1", "served:(address)"),
        ("mine=served:http://gpu-box:8000/v1", "mine=served:(address)"),
    ],
)
def test_a_decoder_keeps_its_name(label, kept):
    assert decoder_name(label) == kept


def test_texts_anywhere_in_a_value_are_reduced():
    value = {"heads": ["/home/alice/a", {"/home/alice/b": 1}], "depth": 3, "on": None}
    assert base_names(value) == {"heads": ["a", {"b": 1}], "depth": 3, "on": None}


def test_no_folder_user_host_or_text_leaves_with_a_record(facts):
    options = {"head": "/home/alice/heads/mine", "server": "http://gpu-box:8000/v1", "depth": 2}
    of_alice = facts(
        options=options,
        decoder="/home/alice/d.py:Class",
        finding="it read /home/alice/answers",
        data_source="alice/data.jsonl",
        score=50.0,
    )
    texts = [json.dumps(document(of_alice, Evaluator("a lab"), 1).content)]
    texts += [
        json.dumps(file) for file in result_files(of_alice, Published(benchmark="lab/speeds"))
    ]
    assert len(texts) == 2
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text]
        assert "d.py:Class" in text
    assert json.loads(options_of(texts[0])) == {"depth": 2, "head": "mine", "server": "(address)"}


def options_of(text):
    """The options of the last result of a document: those of the decoder."""
    return json.loads(text)["evaluation_results"][-1]["generation_config"]["additional_details"][
        "options"
    ]
