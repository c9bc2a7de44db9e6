"""Loading a target: a folder, its precision and device, and the checkpoints that are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer
from fspad_bench.util.errors import BenchError


class TestLoad:
    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("models") / "some-model"
        tiny_model().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    @pytest.fixture
    def folder(self, saved, tmp_path):
        return shutil.copytree(saved, tmp_path / "some-model")

    @staticmethod
    def edit(folder, **changes):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    def test_a_folder(self, folder, tiny):
        target = load_target(str(folder), dtype="float64")
        assert target.name == "some-model"
        assert len(target.identity) == 64
        assert target.stop_ids == tiny.stop_ids
        assert target.tokenizer.chat_template == tiny.tokenizer.chat_template
        logits = [each.session(3).prefill([1, 2, 3]).logits for each in (target, tiny)]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-12)

    def test_dtypes(self, folder):
        assert load_target("tiny").dtype == torch.float64
        assert load_target("tiny", dtype="float32").dtype == torch.float32
        assert load_target(str(folder)).dtype == torch.float32
        assert load_target(str(folder), dtype="bfloat16").dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("breakage", "message"),
        [
            (lambda f: (f / "model.safetensors").unlink(), "cannot load target 'some-model'"),
            (
                lambda f: (f / "model.safetensors").write_bytes(b"cut"),
                "cannot load target 'some-model'",
            ),
            (lambda f: (f / "config.json").write_text("{"), "cannot load target 'some-model'"),
            (
                lambda f: [path.unlink() for path in f.glob("tokenizer*")],
                "cannot load target 'some-model'",
            ),
            (lambda f: TestLoad.edit(f, model_type="no-such"), "cannot load target 'some-model'"),
            (lambda f: TestLoad.edit(f, intermediate_size=96), "cannot load target 'some-model'"),
            (lambda f: TestLoad.edit(f, num_hidden_layers=3), r"lacks 9 weights, model\.layers\.2"),
            (
                lambda f: GPT2LMHeadModel(
                    GPT2Config(n_embd=8, n_layer=1, n_head=1)
                ).save_pretrained(f),
                "'gpt2' is not supported",
            ),
        ],
        ids=[
            "no weights",
            "cut weights",
            "config",
            "no tokenizer",
            "unknown",
            "shape",
            "a layer short",
            "gpt2",
        ],
    )
    def test_broken_checkpoints_are_named(self, folder, breakage, message):
        breakage(folder)
        with pytest.raises(BenchError, match=message) as caught:
            load_target(str(folder))
        assert caught.value.hint

    def test_a_repositorys_own_code_never_runs(self, folder, monkeypatch):
        (folder / "modeling.py").write_text(
            f"open({str(folder / 'ran')!r}, 'w')\nfrom transformers import *\n"
        )
        names = {
            "AutoConfig": "modeling.LlamaConfig",
            "AutoModelForCausalLM": "modeling.LlamaForCausalLM",
        }
        self.edit(folder, model_type="no-such", auto_map=names)
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        with pytest.raises(BenchError, match="custom code"):
            load_target(str(folder))
        assert not (folder / "ran").exists()

    def test_devices(self, folder):
        dtype = load_target(str(folder), device="auto").dtype
        assert dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
        assert load_target("tiny", device="auto").device.type == "cpu"
        with pytest.raises(BenchError, match="unknown device 'gpu'"):
            load_target("tiny", device="gpu")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_a_missing_device_is_refused(self, device):
        with pytest.raises(BenchError, match=f"no CUDA device for --device {device}"):
            load_target("tiny", device=device)
