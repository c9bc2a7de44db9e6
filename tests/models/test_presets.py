"""The meaning of a target's name, its identity, and Vicuna's template to the letter."""

from __future__ import annotations

import re

import jinja2
import pytest

from fspad_bench.models import smollm2
from fspad_bench.models.presets import PRESETS, VICUNA, Checkpoint, resolve
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util.errors import BenchError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TWO_TURNS = [
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("vicuna-7b", "lmsys/vicuna-7b-v1.5"),
        ("vicuna-33b", "lmsys/vicuna-33b-v1.3"),
        ("llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("llama3-70b", "meta-llama/Meta-Llama-3-70B-Instruct"),
    ],
)
def test_the_paper_s_targets(name, hub):
    checkpoint = resolve(name)
    assert checkpoint == Checkpoint(name, hub, hub, checkpoint.template)
    assert bool(checkpoint.template) == name.startswith("vicuna")


def test_tiny_needs_no_files():
    assert resolve("tiny") == Checkpoint("tiny", None, "tiny-1")


def test_smollm2_is_known_by_its_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "model_folder", lambda: tmp_path)
    assert resolve("smollm2-135m") == Checkpoint("smollm2-135m", str(tmp_path), smollm2.SHA256)


def test_any_hub_id():
    assert resolve("owner/name") == Checkpoint("owner/name", "owner/name", "owner/name")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smollm2", "smollm2-135m"),
        ("vicuna-7", "vicuna-7b"),
        ("Tiny", "tiny"),
        ("llama3_8b", "llama3-8b"),
    ],
)
def test_a_near_match_is_suggested(name, meant):
    with pytest.raises(BenchError, match=f"unknown target '{name}'") as caught:
        resolve(name)
    assert f"did you mean '{meant}'?" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["zzzzzz", "/no/such/folder", "a/b/c", "./owner", "~/no-such", "~no-such-user/x"]
)
def test_anything_else_lists_what_is_known(name):
    with pytest.raises(BenchError, match=re.escape(f"unknown target '{name}'")) as caught:
        resolve(name)
    assert all(preset in caught.value.hint for preset in PRESETS)


class TestFolder:
    def test_is_named_by_its_last_part(self, folder, monkeypatch):
        assert resolve(str(folder)).name == "my-model"
        assert resolve(f"{folder}/").name == "my-model"
        monkeypatch.chdir(folder)
        assert resolve(".").name == "my-model"

    def test_wins_over_a_hub_id(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent.parent)
        name = f"{folder.parent.name}/{folder.name}"
        assert resolve(name).path == name
        assert len(resolve(name).identity) == 64

    def test_without_a_configuration_is_refused(self, tmp_path):
        with pytest.raises(BenchError, match=r"holds no config\.json"):
            resolve(str(tmp_path))

    def test_identity_is_that_of_configuration_and_weights(self, folder):
        identity = resolve(str(folder)).identity
        (folder / "README.md").write_text("words")
        assert resolve(str(folder)).identity == identity
        seen = {identity}
        (folder / "model.safetensors").write_bytes(b"Weights")
        seen.add(resolve(str(folder)).identity)
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        seen.add(resolve(str(folder)).identity)
        (folder / "config.json").write_text("{ }")
        seen.add(resolve(str(folder)).identity)
        assert len(seen) == 4

    def test_identity_is_that_of_the_content_alone(self, folder):
        identity = resolve(str(folder)).identity
        assert resolve(str(folder.rename(folder.parent / "renamed"))).identity == identity


class TestVicuna:
    """FastChat's vicuna_v1.1: a blank after system line and question, </s> after an answer."""

    def rendered(self, messages, **names):
        return jinja2.Environment().from_string(VICUNA).render(messages=messages, **names)

    def test_two_turns(self):
        assert self.rendered(TWO_TURNS, add_generation_prompt=True) == (
            f"{SYSTEM} USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
        )

    def test_one_turn(self):
        assert (
            self.rendered(TWO_TURNS[:1], add_generation_prompt=True)
            == f"{SYSTEM} USER: Q1 ASSISTANT:"
        )

    def test_an_answered_turn(self):
        assert (
            self.rendered(TWO_TURNS[:2], add_generation_prompt=False)
            == f"{SYSTEM} USER: Q1 ASSISTANT: A1</s>"
        )

    def test_begins_as_the_tokenizer_would(self):
        """Rendering adds no special tokens, so the template writes the opening one."""
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = "^"
        tokenizer.chat_template = VICUNA
        ids = tokenizer.apply_chat_template(
            TWO_TURNS, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        expected = f"^{SYSTEM} USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
        assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
