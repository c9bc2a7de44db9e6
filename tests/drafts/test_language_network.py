"""A draft model made of the target's layers: its outputs are those of plain transformers."""

import copy
import json
import random
from dataclasses import replace

import pytest
import torch
from doubles import random_target
from safetensors.torch import load_file, save_file

from fspad_bench.core.protocols import Context
from fspad_bench.core.sampling import Sampler
from fspad_bench.drafts.head import Head, load_head
from fspad_bench.drafts.language_model import LanguageModel
from fspad_bench.drafts.language_network import (
    LanguageNetwork,
    as_target,
    spread_layers,
    trained_model,
)
from fspad_bench.drafts.shape import Shape
from fspad_bench.util.errors import BenchError

LAYERS = 5
TEXT = [5, 9, 1, 30, 30, 2, 17]
NAMES = [
    "llama",
    "llama-multi-head",
    "llama-multi-query",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "not fused",
]


def deep_target(name="llama"):
    return random_target(name, num_hidden_layers=LAYERS)


def trained(target, layers=3, vocabulary=None, facts=None):
    """Return a head of three layers whose weights are no longer the target's."""
    shape = replace(Shape.of_target(target.config), layers=layers)
    network = LanguageNetwork.build(shape, target)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    ids = torch.arange(target.config.vocab_size) if vocabulary is None else vocabulary
    return Head(network, ids, target.name, target.identity, facts or {})


def plain_model(target, head):
    """Return a fresh transformers model of these layers, with the weights copied by their names."""
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(head.network.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    config._attn_implementation = "sdpa"
    model = type(target.model)(config).to(torch.float64).eval()
    weights = {
        name: weight
        for name, weight in target.model.state_dict().items()
        if not name.startswith("model.layers.")
    }
    own = {f"model.{name}": weight for name, weight in head.network.state_dict().items()}
    model.load_state_dict(weights | own)
    return model


@torch.inference_mode()
def plain_logits(model, tokens):
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_network_equals_plain_transformers_with_these_layers(name):
    """Row i has read tokens 0 to i + 1, and all levels are the same."""
    target = deep_target(name)
    head = trained(target)
    e = target.embedding(torch.tensor([TEXT]))
    rows = torch.ones(1, len(TEXT) - 1, dtype=torch.bool)
    out = head.network(e[:, 1:], e[:, :-1], rows)
    expected = plain_logits(plain_model(target, head), TEXT)[1:]
    assert_close(target.lm_head(out.h_logit), expected)
    for level in head.network.unrolled(e[:, 1:], e[:, :-1], 2):
        assert_close(target.lm_head(level.h_logit[0]), expected)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("vocabulary", ["prompt", "head"])
@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_every_step_has_the_logits_of_plain_transformers(name, vocabulary):
    """Over the draft vocabulary, which the text's own tokens join unless it was trained alone."""
    dice = random.Random(name)
    target = deep_target(name)
    base = torch.arange(0, target.config.vocab_size, 3)
    head = trained(target, vocabulary=base, facts={"recipe": {"vocabulary": vocabulary}})
    plain = plain_model(target, head)
    draft = LanguageModel.of(target, head, skip=0.0)
    context = Context(list(TEXT), len(TEXT), Sampler())
    draft.begin()
    for step in range(5):
        draft.follow(context, 30)
        absorbed = draft.absorb()
        ids = base.tolist()
        if vocabulary == "prompt":
            ids += sorted(set(context.tokens) - set(ids))
        assert draft.ids.tolist() == ids
        tokens = [dice.randrange(target.config.vocab_size) for _ in range(3)]
        expanded = draft.expand(tokens, [0, 0, 0])
        below = draft.expand([4, 8], [1, 2])
        paths = [[], *([t] for t in tokens), [tokens[1], 4], [tokens[2], 8]]
        for path, logits in zip(paths, torch.cat([absorbed, expanded, below]), strict=True):
            assert_close(logits, plain_logits(plain, [*context.tokens, *path])[-1, ids])
        context.tokens += [*paths[step % len(paths)], dice.randrange(target.config.vocab_size)]


def test_a_new_text_starts_without_the_tokens_of_the_last_one():
    target = deep_target()
    draft = LanguageModel.of(target, trained(target, vocabulary=torch.arange(3)), skip=0.0)
    for tokens in ([9, 7], [8]):
        draft.begin()
        draft.follow(Context(tokens, len(tokens), Sampler()), 9)
        assert draft.ids.tolist() == [0, 1, 2, *sorted(tokens)]


def test_it_begins_with_the_targets_own_layers_evenly_spread():
    target = deep_target()
    shape = replace(Shape.of_target(target.config), layers=3)
    network = LanguageNetwork.build(shape, target)
    for own, index in zip(network.layers, (0, 2, 4), strict=True):
        theirs = target.model.base_model.layers[index].state_dict()
        for name, weight in own.state_dict().items():
            assert torch.equal(weight, theirs[name])
            assert weight.data_ptr() != theirs[name].data_ptr()
    assert [spread_layers(count, 30) for count in (1, 2, 4)] == [[0], [0, 29], [0, 10, 19, 29]]


def test_the_embedding_is_the_targets_and_stands_in_no_file(tmp_path):
    target = deep_target()
    before = {name: weight.clone() for name, weight in target.model.state_dict().items()}
    head = trained(target)
    model = as_target(head, target)
    assert model.embedding.weight.data_ptr() == target.embedding.weight.data_ptr()
    for name, weight in target.model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert target.embedding.weight.requires_grad
    head.save(tmp_path)
    names = load_file(tmp_path / "head.safetensors").keys()
    assert not [name for name in names if "embed" in name or "lm_head" in name]


def test_a_saved_one_is_drafted_with_as_it_was(tmp_path):
    target = deep_target()
    head = trained(target)
    head.save(tmp_path)
    again = trained_model(str(tmp_path), target)
    assert again.network.shape.layers == 3
    for name, weight in head.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], weight.bfloat16().double())
    draft = LanguageModel.of(target, again, skip=0.0)
    assert draft.settings() == {
        "model": "trained, 3 of 5 layers",
        "model_identity": target.identity,
        "model_sha256": again.sha256,
    }
    assert len(again.sha256) == 64


def test_any_other_name_is_no_trained_model(tmp_path):
    target = deep_target()
    assert trained_model("self", target) is None
    assert trained_model(str(tmp_path), target) is None


def edited(folder, **facts):
    about = json.loads((folder / "head.json").read_text())
    about["shape"] |= facts.pop("shape", {})
    (folder / "head.json").write_text(json.dumps(about | facts))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"identity": "abc", "target": "vicuna-7b"}, "was trained for vicuna-7b, abc; not for"),
        ({"shape": {"layers": 6}}, "its shape states 6 of 5 layers"),
        ({"shape": {"layers": 10**9}}, "its shape states 1000000000 of 5 layers"),
        ({"shape": {"layers": 0}}, "its shape states 0 of 5 layers"),
        ({"shape": {"layers": -1}}, "its shape's layers is -1, not a count"),
        ({"shape": {"layers": 2}}, "not a usable draft head: "),
        ({"architecture": "eagle"}, "not a usable draft head: "),
    ],
)
def test_a_foreign_or_damaged_one_is_refused(tmp_path, facts, message):
    target = deep_target()
    trained(target).save(tmp_path)
    edited(tmp_path, **facts)
    with pytest.raises(BenchError, match=message):
        trained_model(str(tmp_path), target)


def test_one_of_a_deeper_target_is_refused_by_its_name(tmp_path):
    """Before its layers are compared with the target's."""
    trained(deep_target(), layers=4).save(tmp_path)
    edited(tmp_path, target="deep", identity="of the deep one")
    other = random_target("qwen3")
    with pytest.raises(BenchError, match="was trained for deep, of the deep"):
        trained_model(str(tmp_path), other)


def test_the_head_of_another_decoder_is_refused(tiny, heads):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'draft_model'"):
        trained_model(str(heads["eagle"]), tiny)


def test_a_weight_that_is_not_finite_is_refused(tmp_path):
    target = deep_target()
    trained(target).save(tmp_path)
    weights = load_file(tmp_path / "head.safetensors")
    weights["norm.weight"] /= 0
    save_file(weights, tmp_path / "head.safetensors")
    with pytest.raises(BenchError, match=r"norm\.weight holds numbers that are not finite"):
        load_head(tmp_path, target)


def test_the_shipped_one_is_a_layer_of_tiny(tiny):
    head = trained_model("shipped", tiny)
    assert (head.target, head.identity, head.network.shape.layers) == ("tiny", "tiny-1", 1)
    assert head.facts["decoder"] == "draft_model"
    assert sum(p.numel() for p in head.network.parameters()) == head.facts["parameters"]
    assert len(head.vocabulary) == 80


def test_a_target_without_a_shipped_one_is_refused():
    with pytest.raises(BenchError, match="no draft model is shipped for target 'model'") as raised:
        trained_model("shipped", deep_target())
    assert "train --decoder draft_model" in raised.value.hint


def test_a_target_of_one_layer_has_no_smaller_draft():
    with pytest.raises(BenchError, match="has a single layer"):
        LanguageNetwork.shape_for(random_target("llama", num_hidden_layers=1).config)
