"""Heads in the layout of EAGLE's and FSPAD's releases: every weight finds its place, and back."""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from releases import LLAMA3, VOCABULARY, D, release

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.fused import FusedNetwork
from fspad_bench.drafts.head import Head, export_head, load_head
from fspad_bench.drafts.network import architecture
from fspad_bench.drafts.published import write_published
from fspad_bench.drafts.shape import Shape
from fspad_bench.util.errors import BenchError


@pytest.mark.parametrize("name", ["eagle", "fspad", "feature-sampling", "partial-alignment"])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_every_weight_finds_its_place(tiny, publish, name, file):
    weights = release(name)
    head = load_head(publish(weights, file=file), tiny, architecture(name))
    assert head.network.architecture == name
    assert head.network.shape.eps == 1e-6
    assert head.network.shape.rope_theta == 10000.0
    assert len(head.vocabulary) == VOCABULARY
    loaded = [weight for weight in head.network.state_dict().values() if weight.dim() == 2]
    published = [
        weight for name, weight in weights.items() if weight.dim() == 2 and "embed" not in name
    ]
    assert sorted(float(weight.double().sum()) for weight in loaded) == pytest.approx(
        sorted(float(weight.double().sum()) for weight in published)
    )


def test_the_network_computes_what_the_names_mean(tiny, publish):
    weights = {name: weight.double() for name, weight in release("fspad").items()}
    network = load_head(publish(weights), tiny, architecture("fspad")).network
    generator = torch.Generator().manual_seed(2)
    e, f = torch.randn(2, 5, D, dtype=torch.float64, generator=generator)

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[name]

    z = torch.cat([e, f], -1) @ weights["fc.fc.weight"].T + weights["fc.fc.bias"]
    gate = torch.nn.functional.silu(e @ weights["fc.mlp.gate_proj.weight"].T)
    up = norm(z, "fc.post_attention_layernorm.weight") @ weights["fc.mlp.up_proj.weight"].T
    x = z + (gate * up) @ weights["fc.mlp.down_proj.weight"].T
    torch.testing.assert_close(network.fuse(e, f), x)
    n = norm(z, "layers.0.post_attention_layernorm.weight")
    u = torch.nn.functional.silu(n @ weights["layers.0.mlp.gate_proj.weight"].T)
    u = u * (n @ weights["layers.0.mlp.up_proj.weight"].T)
    down = u @ weights["layers.0.mlp.down_proj.weight"].T
    torch.testing.assert_close(network.output(z).h_logit, z + down[:, :D])
    torch.testing.assert_close(network.output(z).h_feature, z + down[:, D:])


def test_heads_for_llama3_have_no_bias_and_another_rotation(tiny, publish):
    folder = publish(release("eagle", bias=False), LLAMA3)
    head = load_head(folder, tiny, architecture("eagle"))
    assert not head.network.fuse.fc.bias.any()
    assert head.network.shape.rope_theta == 500000.0


@pytest.mark.parametrize(("name", "decoder"), [("eagle", Eagle), ("fspad", Fspad)])
def test_published_heads_draft_losslessly(tiny, publish, name, decoder):
    folder = publish(release(name))
    prompt = list(range(30, 52))
    limit = Limit(16)
    drafted = generate(tiny, decoder(tiny, head=str(folder)), Sampler(1.0), prompt, limit)
    assert drafted.tokens == generate(tiny, Vanilla(tiny), Sampler(1.0), prompt, limit).tokens


@pytest.mark.parametrize("name", ["eagle", "fspad", "feature-sampling", "partial-alignment"])
def test_a_written_head_loads_as_it_was(tiny, tmp_path, name):
    torch.manual_seed(3)
    network = architecture(name)(Shape.of_target(tiny.config)).double()
    write_published(network, torch.arange(VOCABULARY), tiny, tmp_path)
    again = load_head(tmp_path, tiny, architecture(name)).network
    assert again.shape == network.shape
    for key, weight in network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key]), key
    written = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    expected = {key: weight.shape for key, weight in release(name).items()}
    assert {key: weight.shape for key, weight in written.items()} == expected


def test_a_published_head_is_known_by_its_config_too(tiny, publish):
    first = load_head(publish(release("eagle")), tiny).sha256
    assert load_head(publish(release("eagle")), tiny).sha256 == first
    assert load_head(publish(release("eagle"), LLAMA3), tiny).sha256 != first


def biased(name):
    """Return the weights of a release whose queries, keys and values have biases, as for Qwen2."""
    torch.manual_seed(9)
    weights = release(name)
    for part in "qkv":
        weight = weights[f"layers.0.self_attn.{part}_proj.weight"]
        weights[f"layers.0.self_attn.{part}_proj.bias"] = torch.randn(len(weight))
    return weights


def test_biases_of_queries_keys_and_values_are_used(tiny, publish):
    weights = biased("eagle")
    network = load_head(publish(weights), tiny).network
    assert network.shape.qkv_bias
    x = torch.randn(3, D, dtype=torch.float64)
    identity = torch.stack([torch.ones(3, 8), torch.zeros(3, 8)]).double()
    k, v = network.attention.keys_values(x, identity)
    for found, part in ((k, "k"), (v, "v")):
        weight, bias = (
            weights[f"layers.0.self_attn.{part}_proj.{kind}"].double()
            for kind in ("weight", "bias")
        )
        expected = (x @ weight.T + bias).unflatten(-1, (-1, 16)).transpose(-2, -3)
        torch.testing.assert_close(found, expected)


def test_drafting_uses_the_biases_too(tiny, publish):
    """Step by step a draft predicts what the network predicts over the whole sequence."""
    network = load_head(publish(biased("eagle")), tiny).network
    fused = FusedNetwork(network)
    x = torch.randn(3, D, dtype=torch.float64)
    rope = network.rope(torch.arange(3)).double()
    k, v = network.attention.keys_values(x, rope)
    ours = fused.rope(torch.arange(3)).double()
    for found, expected in zip(fused.keys_values(x, ours), (k, v), strict=True):
        torch.testing.assert_close(found, expected)
    whole = network.attention.attend(x, rope, k, v)
    back = torch.ones(3, 3, dtype=torch.bool).tril().repeat(2, 1)
    mask = torch.zeros(6, 3, dtype=torch.float64).masked_fill(~back, float("-inf"))
    torch.testing.assert_close(fused.attend(fused.query(x, ours), k, v, mask), whole)


def test_biases_are_written_and_read_again(tiny, publish, tmp_path):
    head = load_head(publish(biased("eagle")), tiny)
    head.save(tmp_path / "own")
    assert load_head(tmp_path / "own", tiny).network.shape.qkv_bias
    export_head(head, tiny, tmp_path / "exported")
    again = load_head(tmp_path / "exported", tiny).network
    for key, weight in head.network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key]), key


# export


def trained(tiny, name="fspad", **facts):
    torch.manual_seed(3)
    network = architecture(name)(Shape.of_target(tiny.config)).double()
    return Head(network, torch.arange(0, 97, 2), tiny.name, tiny.identity, facts)


def test_an_exported_head_keeps_every_number_and_says_what_it_loses(tiny, tmp_path):
    head = trained(tiny, calibration={"greedy": []})
    assert export_head(head, tiny, tmp_path) == [
        "the draft vocabulary of 49 tokens: all 97 are drafted",
        "the calibration: trees are of a fixed size",
        "the hash of its target, and how it was trained",
    ]
    written = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert torch.equal(written["embed_tokens.weight"], tiny.embedding.weight)
    again = load_head(tmp_path, tiny, architecture("fspad"))
    assert len(again.vocabulary) == 97
    for key, weight in head.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[key]), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_exported_head_is_as_narrow_as_its_numbers(tiny, tmp_path, dtype):
    embedding = (torch.arange(97 * D).reshape(97, D) / 7 + 1).to(dtype)
    network = trained(tiny).network.to(torch.bfloat16).double()
    target = SimpleNamespace(embedding=SimpleNamespace(weight=embedding.double()))
    write_published(network, torch.arange(VOCABULARY), target, tmp_path)
    written = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert written["embed_tokens.weight"].dtype == dtype
    assert torch.equal(written["embed_tokens.weight"], embedding)
    assert written["layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_the_name_of_a_wide_head_is_lost(tiny, tmp_path):
    head = trained(tiny, "wide")
    assert "the name 'wide': it is read as a head of 'eagle'" in export_head(head, tiny, tmp_path)
    again = load_head(tmp_path, tiny, architecture("eagle")).network
    for key, weight in head.network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key]), key


def test_a_published_head_is_exported_as_it_was(tiny, publish, tmp_path):
    head = load_head(publish(release("eagle")), tiny)
    assert export_head(head, tiny, tmp_path / "again") == []


class Nameless(architecture("eagle")):
    """A network of another package, which has no published layout."""

    architecture = "nameless"
    published: ClassVar[dict[str, str]] = {}


def test_a_network_without_published_names_is_refused(tiny, tmp_path):
    head = replace(trained(tiny), network=Nameless(Shape.of_target(tiny.config)))
    with pytest.raises(BenchError, match=r"no name for fuse\.fc\.bias of a head of 'nameless'"):
        export_head(head, tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["head.json", "model.safetensors"])
def test_an_export_that_another_head_would_hide_is_refused(tiny, tmp_path, file):
    (tmp_path / file).write_text("{}")
    with pytest.raises(BenchError, match="would be read in place of the exported head"):
        export_head(trained(tiny), tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_an_export_that_cannot_be_written_is_one_clear_error(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot write to"):
        export_head(trained(tiny), tiny, tmp_path / "file")


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model.", "ea_layer."])
@pytest.mark.parametrize("with_lm_head", [False, True])
def test_a_prefix_that_all_names_share_is_left_out(tiny, publish, prefix, with_lm_head):
    plain = load_head(publish(release("fspad")), tiny).network.state_dict()
    weights = {prefix + name: weight for name, weight in release("fspad").items()}
    if with_lm_head:
        weights["lm_head.weight"] = tiny.lm_head.weight.detach().clone()
    wrapped = load_head(publish(weights), tiny).network.state_dict()
    assert wrapped.keys() == plain.keys()
    assert all(torch.equal(wrapped[name], plain[name]) for name in plain)


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin"])
def test_an_export_replaces_no_file(tiny, heads, tmp_path, name):
    (tmp_path / name).write_text("a model's own")
    with pytest.raises(BenchError, match=f"{name} exists: no file is replaced"):
        export_head(load_head(heads["eagle"], tiny), tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "a model's own"


def test_an_export_into_a_file_is_refused(tiny, heads, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BenchError, match=r"cannot write to .*: it is a file"):
        export_head(load_head(heads["eagle"], tiny), tiny, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
