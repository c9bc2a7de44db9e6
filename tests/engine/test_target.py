"""A target against itself asked one token at a time, against a fresh prefill, and against what it must refuse."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from doubles import ARCHITECTURES, LLAMA3_ROPE, VOCABULARY, random_model, random_tree
from transformers import GemmaConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig

from fspad_bench.core.tree import Tree
from fspad_bench.engine.target import ContextError, TransformersTarget, check_architecture
from fspad_bench.errors import BenchError
from fspad_bench.lossless.scripted import line_of
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def target_of(
    name: str, dtype: torch.dtype = torch.float64, **options: object
) -> TransformersTarget:
    return TransformersTarget(random_model(name, dtype, **options), None)


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def one_by_one(target: TransformersTarget, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The logits after the last of `tokens`, each scored alone."""
    target.prefill(prompt, len(tokens))
    for token in tokens:
        scores = target.score(Tree.root(token))
        target.commit([0])
    return scores.logits[0]


def assert_cache_is_of(
    target: TransformersTarget, tokens: list[int], tolerance: float = 1e-9
) -> None:
    """Every committed row equals that of a fresh prefill of the same tokens."""
    fresh = TransformersTarget(target.model, None)
    fresh.prefill(tokens, 0)
    assert target.length == len(tokens)
    for found, expected in zip(target.cache.layers, fresh.cache.layers, strict=True):
        for name in ("keys", "values"):
            rows = [getattr(layer, name)[:, :, : len(tokens)] for layer in (found, expected)]
            assert_same(*rows, tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tree_in_one_forward_equals_its_paths_token_by_token(name, dtype):
    target, rng = target_of(name, dtype), random.Random(name)
    for prefix, nodes, reach in ((1, 12, 128), (23, 30, 6)):
        prompt, tree = random_tokens(rng, prefix), random_tree(rng, nodes, VOCABULARY, reach=reach)
        target.prefill(prompt, 40)
        logits = target.score(tree).logits
        for node in rng.sample(range(nodes), 8):
            alone = one_by_one(target, prompt, [tree.tokens[i] for i in line_of(tree, node)])
            assert_same(logits[node], alone, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rounds_of_score_and_commit_equal_a_fresh_prefill(name, dtype):
    target, rng, tokens = (
        target_of(name, dtype),
        random.Random(name),
        random_tokens(random.Random(1), 9),
    )
    target.prefill(tokens, 200)
    for nodes in (1, 2, 40, 1, 128, 7):
        tree = random_tree(rng, nodes, VOCABULARY, reach=4)
        target.score(tree)
        path = line_of(tree, rng.randrange(nodes))
        target.commit(path)
        tokens = tokens + [tree.tokens[node] for node in path]
        assert_cache_is_of(target, tokens, TOLERANCE[dtype])
    fresh = TransformersTarget(target.model, None)
    fresh.prefill(tokens, 1)
    pair = [each.score(Tree.chain(3, [4, 5])) for each in (target, fresh)]
    assert_same(pair[0].logits, pair[1].logits, TOLERANCE[dtype])
    assert_same(pair[0].features, pair[1].features, TOLERANCE[dtype])


@torch.inference_mode()
def test_a_prefill_returns_the_last_logits_and_all_features(tiny):
    scores = tiny.prefill(list(range(20)), 4)
    assert scores.logits.shape == (1, 97)
    assert scores.features.shape == (20, 64)
    assert_same(tiny.lm_head(scores.features[-1:]), scores.logits, 1e-12)
    assert not scores.logits.requires_grad


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_the_lm_head_maps_features_to_logits(name):
    target = target_of(name)
    target.prefill([1, 2, 3], 4)
    scores = target.score(Tree([5, 6, 7], [-1, 0, 0]))
    assert_same(target.lm_head(scores.features), scores.logits, 1e-12)
    assert scores.features.shape == (3, 32)


def test_prompts_of_any_size_follow_each_other():
    """The cache grows when it must, and holds nothing of the prompt before."""
    target, rng = target_of("llama"), random.Random(0)
    capacities = []
    for size, room in ((3, 2), (60, 30), (5, 100), (120, 80), (2, 2), (200, 1)):
        prompt = random_tokens(rng, size)
        first = target.prefill(prompt, room)
        tree = random_tree(rng, 128, VOCABULARY)
        last = target.score(tree)
        path = line_of(tree, 127)
        target.commit(path)
        assert_cache_is_of(target, prompt + [tree.tokens[node] for node in path])
        fresh = target_of("llama")
        assert_same(first.logits, fresh.prefill(prompt, room).logits)
        assert_same(last.logits, fresh.score(tree).logits)
        capacities.append(target.cache.capacity)
    assert capacities == sorted(capacities)


def test_every_forward_is_counted(tiny):
    before = tiny.forwards
    tiny.prefill([1, 2], 5)
    tiny.score(Tree.chain(3, [4, 5]))
    tiny.commit([0])
    tiny.score(Tree.root(3))
    assert tiny.forwards == before + 3
    assert tiny.length == 3  # what is not committed does not count
    tiny.prefill([1], 1)


class TestRefusals:
    @pytest.fixture(scope="class")
    def target(self):
        return target_of("llama", max_position_embeddings=40)

    def test_score_twice(self, target):
        target.prefill([1, 2], 8)
        target.score(Tree.root(1))
        with pytest.raises(RuntimeError, match="before the last tree was committed"):
            target.score(Tree.root(1))
        target.prefill([1, 2], 8)
        target.score(Tree.root(1))

    @pytest.mark.parametrize(
        "tree", [Tree.root(VOCABULARY), Tree.chain(0, [VOCABULARY]), Tree.chain(0, [3, -1])]
    )
    def test_a_token_outside_the_vocabulary(self, target, tree):
        target.prefill([1, 2], 8)
        with pytest.raises(BenchError, match="outside the target's vocabulary"):
            target.score(tree)
        assert target.length == 2
        target.score(Tree.chain(0, [VOCABULARY - 1]))

    @pytest.mark.parametrize("prompt", [[1, VOCABULARY], [-1, 2]])
    def test_a_prompt_outside_the_vocabulary(self, target, prompt):
        with pytest.raises(BenchError, match=f"outside the target's vocabulary of {VOCABULARY}"):
            target.prefill(prompt, 8)

    def test_a_tree_of_129_nodes(self, target):
        target.prefill([1, 2], 8)
        with pytest.raises(BenchError, match="129 nodes is too large"):
            target.score(Tree.chain(0, [1] * 128))
        target.score(Tree.chain(0, [1] * 127))

    def test_a_prompt_that_does_not_fit(self, target):
        target.prefill([1] * 30, 10)
        for prompt, room in (([1] * 30, 11), ([1] * 41, 0)):
            with pytest.raises(ContextError, match="exceed the context of 40") as caught:
                target.prefill(prompt, room)
            assert isinstance(caught.value, BenchError)

    def test_an_empty_prompt(self, target):
        with pytest.raises(BenchError, match="empty"):
            target.prefill([], 5)

    @pytest.mark.parametrize(
        ("name", "options", "length"),
        [
            ("mistral", {"sliding_window": 24}, 24),
            ("mistral", {"sliding_window": 1000}, 256),
            ("mistral", {"sliding_window": None}, 256),
            (
                "qwen2",
                {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
                24,
            ),
            (
                "qwen2",
                {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
                256,
            ),
            ("qwen2", {"use_sliding_window": False, "sliding_window": 24}, 256),
            (
                "qwen3",
                {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
                24,
            ),
        ],
    )
    def test_a_sliding_window(self, name, options, length):
        target = target_of(name, **options)
        assert target.max_length == length
        target.prefill([1] * (length - 4), 4)
        with pytest.raises(ContextError, match=f"exceed the context of {length}"):
            target.prefill([1] * (length - 4), 5)

    @pytest.mark.parametrize(
        "config", [GPT2Config(), GemmaConfig()], ids=lambda config: config.model_type
    )
    def test_an_architecture(self, config):
        with pytest.raises(BenchError, match=f"'{config.model_type}' is not supported"):
            check_architecture(config)

    @pytest.mark.parametrize(
        "rope",
        [
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            {
                "rope_type": "longrope",
                "factor": 2.0,
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 32,
            },
        ],
        ids=lambda rope: rope["rope_type"],
    )
    def test_rotary_embeddings_that_depend_on_the_length(self, rope):
        """A deep node would change the frequencies of the root, hence what the target says."""
        with pytest.raises(BenchError, match="rotary embedding"):
            target_of("llama", rope_parameters=rope)

    def test_rotary_embeddings_that_do_not_are_fine(self):
        check_architecture(LlamaConfig(rope_parameters=LLAMA3_ROPE))

    def test_a_model_that_scales_its_logits(self):
        model = random_model("llama")
        stock = model.forward

        def scaled(*arguments, **options):
            out = stock(*arguments, **options)
            out.logits = out.logits * 0.9
            return out

        model.forward = scaled
        with pytest.raises(BenchError, match="LM head does not map"):
            TransformersTarget(model, None)


@pytest.mark.parametrize(("end", "ids"), [(5, {5}), ([5, 0], {0, 5}), (0, {0}), (None, set())])
def test_stop_ids_are_those_of_the_generation_settings(end, ids):
    model = random_model("llama")
    model.generation_config.eos_token_id = end
    assert TransformersTarget(model, None).stop_ids == ids


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
        assert_same(target.prefill([1, 2, 3], 1).logits, tiny.prefill([1, 2, 3], 1).logits, 1e-12)

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
    def test_what_is_broken_is_named(self, folder, breakage, message):
        breakage(folder)
        with pytest.raises(BenchError, match=message) as caught:
            load_target(str(folder))
        assert caught.value.hint

    def test_a_repository_s_own_code_never_runs(self, folder, monkeypatch):
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
        there = load_target(str(folder), device="auto").dtype
        assert there == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
        assert load_target("tiny", device="auto").device.type == "cpu"
        with pytest.raises(BenchError, match="unknown device 'gpu'"):
            load_target("tiny", device="gpu")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_a_device_that_is_not_there(self, device):
        with pytest.raises(BenchError, match=f"no CUDA device for --device {device}"):
            load_target("tiny", device=device)


def test_room_once_made_is_kept():
    """So that what a device captured stays valid for every prompt that fits."""
    target = target_of("llama", torch.float64)
    target.reserve(200)
    rows = target.cache.rows
    for length in (5, 140, 3):
        target.prefill(random_tokens(random.Random(1), length), 60)
        assert target.cache.rows is rows
    target.prefill(random_tokens(random.Random(1), 190), 60)
    assert target.cache.rows is not rows
