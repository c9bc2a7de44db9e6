"""Devices and precisions, and the folders that a target is loaded from."""

import io
import json
import shutil

import pytest
import torch

from fspad_bench.benchmark.prompts import Prompts
from fspad_bench.models import digests, load
from fspad_bench.models.digests import files_digest, folder_digest
from fspad_bench.models.load import default_dtype, device_named, devices_named, load_target
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer
from fspad_bench.util.errors import BenchError


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(count)`: pretend that torch sees so many CUDA devices."""

    def gpus(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return gpus


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (1, "cuda"), (2, "cuda")])
def test_auto_is_a_gpu_if_there_is_one(gpus, count, device):
    gpus(count)
    assert device_named("auto") == device


def test_several_devices_are_refused_where_one_is_needed(gpus):
    gpus(2)
    with pytest.raises(BenchError, match="--device cuda:0,cuda:1 names several devices") as caught:
        device_named("cuda:0,cuda:1")
    assert caught.value.hint == "give one of cpu, cuda, cuda:1 or auto"


def test_a_target_may_have_several(gpus):
    gpus(2)
    assert devices_named("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    assert devices_named("cpu:1") == ["cpu"]
    assert devices_named("auto") == ["cuda"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cuda:0,cuda:2", "no CUDA device 2: there are 2"),
        ("cuda:1,cuda:1", "--device cuda:1,cuda:1 names cuda:1 twice"),
        ("cuda,cuda:1", "--device names 'cuda' among several devices, without a number"),
        ("cuda:0,auto", "--device names 'auto' among several devices, without a number"),
        ("0,1", "unknown device '0'"),
        ("cuda:0,", "unknown device ''"),
        ("cuda:0,cpu:0", "--device cuda:0,cpu:0 mixes kinds of devices"),
        ("balanced", "unknown device 'balanced'"),
    ],
)
def test_devices_that_are_not_there_or_not_told_apart_are_refused(gpus, names, message):
    gpus(2)
    with pytest.raises(BenchError, match=message):
        devices_named(names)


def test_a_gpu_beyond_the_last_is_refused(gpus):
    gpus(2)
    assert device_named("cuda:1") == "cuda:1"
    with pytest.raises(BenchError, match="no CUDA device 2: there are 2"):
        device_named("cuda:2")


@pytest.mark.parametrize("name", ["meta", "xla", "vulkan"])
def test_a_device_that_holds_no_numbers_here_is_refused(name):
    with pytest.raises(BenchError, match=f"no device '{name}' here: ") as caught:
        device_named(name)
    assert caught.value.hint == "give one of cpu, cuda, cuda:1 or auto"


def test_a_processor_has_one_name():
    assert device_named("cpu") == device_named("cpu:0") == device_named("cpu:5") == "cpu"


def test_precision_follows_the_device():
    assert default_dtype("cpu") == "float32"
    assert default_dtype("cuda") == default_dtype("cuda:1") == "bfloat16"


def test_training_features_take_the_precision_that_the_processor_multiplies_in(monkeypatch):
    for fast, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(load, "multiplies_bfloat16", lambda fast=fast: fast)
        assert load.training_dtype("smollm2-135m", "cpu") == dtype
        assert load.training_dtype("tiny", "cpu") is None
        monkeypatch.setattr(load, "device_named", lambda device: device)
        assert load.training_dtype("smollm2-135m", "cuda:0") == "bfloat16"
        monkeypatch.undo()


# folders as strangers bring them


@pytest.fixture
def folder(saved_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(saved_tiny, tmp_path / "tiny")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sentencepiece_model_alone_is_a_tokenizer(folder):
    """Vicuna's and LLaMA-2's repositories hold nothing else."""
    pytest.importorskip("google.protobuf")
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    texts = ["".join(map(chr, range(33, 100))), "hello world", "a quiet square"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, vocab_size=85, minloglevel=2
    )
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    tokenizer = load_target(str(folder)).tokenizer
    assert tokenizer.decode(tokenizer("hello world", add_special_tokens=False)["input_ids"]) == (
        "hello world"
    )


@pytest.mark.parametrize("missing", load.SENTENCEPIECE)
def test_a_sentencepiece_model_without_its_packages_names_them(folder, monkeypatch, missing):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(load, "_installed", lambda module: module != missing)
    with pytest.raises(BenchError, match="cannot load target 'tiny'") as caught:
        load_target(str(folder))
    assert caught.value.hint == "its tokenizer.model needs `pip install sentencepiece protobuf`"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b'{"model": {"type": "WordLevel"}}'])
def test_a_damaged_tokenizer_is_named(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(BenchError, match="cannot load target 'tiny'") as caught:
        load_target(str(folder))
    assert caught.value.hint == load.DAMAGED


def test_an_id_beyond_the_embedding_is_found_at_load(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BenchError, match="has the id 97 for '<image>', the model a vocabulary of"):
        load_target(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\ud83d", "[" * 100_000, "\ufeff{}"])
def test_generation_settings_that_cannot_be_read_are_refused(folder, content):
    """transformers would go on without them: with other stop ids."""
    (folder / "generation_config.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(BenchError, match=r"generation_config\.json"):
        load_target(str(folder))


def test_what_a_model_returns_is_not_its_files_choice(folder):
    odd = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    edit(folder / "config.json", **odd)
    config = load_target(str(folder)).config
    assert (config.return_dict, config.output_hidden_states) == (True, False)


def test_a_tokenizer_that_drops_all_words_is_refused(folder):
    drop = {"type": "Replace", "pattern": {"Regex": "[A-Z]"}, "content": ""}
    edit(folder / "tokenizer.json", normalizer=drop)
    target = load_target(str(folder))
    with pytest.raises(BenchError, match="the tokenizer leaves the user's words out"):
        Prompts(target, "tiny")


def test_a_panic_of_a_library_is_one_clear_error(folder, monkeypatch):
    class Panic(BaseException):
        """What Rust libraries raise: no Exception."""

    def panic(*_, **__):
        raise Panic("called unwrap on None")

    monkeypatch.setattr(load.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(BenchError, match="cannot load target 'tiny': Panic: called unwrap on None"):
        load_target(str(folder))


@pytest.mark.parametrize("end", ["96", ["96"], {"id": 96}, 96.5, True, 97, [96, 500], -2])
def test_stop_ids_are_numbers(folder, end):
    edit(folder / "generation_config.json", eos_token_id=end)
    with pytest.raises(BenchError, match=r"eos_token_id|cannot load target"):
        load_target(str(folder))


def test_stop_ids_are_those_of_the_generation_settings_or_else_the_tokenizers(folder):
    def stops(**changes):
        edit(folder / "generation_config.json", **changes)
        target = load_target(str(folder))
        return target.stop_ids, target.stop_source

    assert stops(eos_token_id=-1)[1] == "tokenizer"
    assert stops(eos_token_id=[95, 96]) == (frozenset([95, 96]), "generation settings")
    edit(folder / "config.json", eos_token_id=None)
    assert stops(eos_token_id=None) == (frozenset([96]), "tokenizer")
    edit(folder / "tokenizer_config.json", eos_token=None)
    assert stops(eos_token_id=None) == (frozenset(), "nowhere")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_that_are_not_finite_are_called_so(folder, dtype):
    model = tiny_model().to(torch.float32)
    model.lm_head.weight.data *= float("inf") if dtype == "float32" else 1e5
    model.save_pretrained(folder)
    with pytest.raises(BenchError, match=f"its logits are not finite in torch.{dtype}"):
        load_target(str(folder), dtype=dtype)


def test_every_file_that_decides_a_run_is_in_the_hash(folder):
    seen = {load_target(str(folder)).files_sha256}
    identity = load_target(str(folder)).identity
    for name in (
        "chat_template.jinja",
        "tokenizer.model",
        "merges.txt",
        "vocab.txt",
        "tokenizer.tiktoken",
        "additional_chat_templates/rag.jinja",
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((path.read_bytes() if path.exists() else b"") + b"{# edited #}")
        seen.add(files_digest(folder))
        assert folder_digest(folder) == identity  # a head still fits these weights
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        edit(folder / name, _note="edited")
        seen.add(files_digest(folder))
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    seen.add(files_digest(folder))
    assert len(seen) == 11
    (folder / "README.md").write_text("words")
    (folder / "old.json").mkdir()
    assert files_digest(folder) in seen


def test_an_unchanged_folder_is_not_read_again(folder, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -3600.0)
    first = files_digest(folder)
    monkeypatch.setattr(digests, "_hash", pytest.fail)
    assert files_digest(folder) == first


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "{}",
        '{"model_type": ["llama"]}',
        '{"model_type": "llama", "num_hidden_layers": 0}',
        '{"model_type": "llama", "vocab_size": -1}',
        '{"model_type": "llama", "num_attention_heads": 3}',
        '{"model_type": "llama", "hidden_act": "nosuch"}',
        '{"model_type": "llama", "max_position_embeddings": "8192"}',
        '{"model_type": "llama", "rope_parameters": {"rope_type": "spiral"}}',
        '{"model_type": "llama", "dtype": "float3"}',
        '{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}',
    ],
)
def test_an_odd_configuration_is_refused(folder, text):
    own = json.loads((folder / "config.json").read_text())
    changes = json.loads(text)
    odd = own | changes if isinstance(changes, dict) and changes else changes
    (folder / "config.json").write_text(json.dumps(odd))
    with pytest.raises(BenchError) as caught:
        load_target(str(folder))
    assert caught.value.hint


def test_code_in_weights_does_not_run(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    code = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR."
    (folder / "pytorch_model.bin").write_bytes(code.encode())
    with pytest.raises(BenchError, match="cannot load target 'tiny'"):
        load_target(str(folder))
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_read_are_named(folder, capsys):
    edit(folder / "config.json", num_hidden_layers=1)
    load_target(str(folder))
    assert (
        "note: 'tiny' holds 9 weights that its architecture does not read, model.layers.1."
        in capsys.readouterr().err
    )
