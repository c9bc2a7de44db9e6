"""Heads in the layout of EAGLE's and FSPAD's releases: synthetic files, their names and shapes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.head import load_head
from fspad_bench.drafts.network import Shape, architecture
from fspad_bench.drafts.published import write_published
from fspad_bench.errors import BenchError

D = 64
M = 80
HEADS = 4
KV_HEADS = 2
VOCABULARY = 97
VICUNA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": D,
    "initializer_range": 0.02,
    "intermediate_size": M,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
LLAMA3 = VICUNA | {"rope_theta": 500000.0, "bias": False}


def release(name, *, bias=True):
    """Return the weights of a release: EAGLE's, FSPAD's, or one of FSPAD's two ablations."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    inner = D // HEADS * KV_HEADS
    weights = {
        "embed_tokens.weight": draw(VOCABULARY, D),
        "layers.0.self_attn.q_proj.weight": draw(D, D),
        "layers.0.self_attn.k_proj.weight": draw(inner, D),
        "layers.0.self_attn.v_proj.weight": draw(inner, D),
        "layers.0.self_attn.o_proj.weight": draw(D, D),
        "layers.0.mlp.gate_proj.weight": draw(M, D),
        "layers.0.mlp.up_proj.weight": draw(M, D),
        "layers.0.mlp.down_proj.weight": draw(
            2 * D if name in ("fspad", "partial-alignment") else D, M
        ),
        "layers.0.post_attention_layernorm.weight": draw(D),
    }
    fusion = "fc.fc" if name in ("fspad", "feature-sampling") else "fc"
    weights[f"{fusion}.weight"] = draw(D, 2 * D)
    if bias:
        weights[f"{fusion}.bias"] = draw(D)
    if fusion == "fc.fc":
        weights |= {
            "fc.mlp.gate_proj.weight": draw(M, D),
            "fc.mlp.up_proj.weight": draw(M, D),
            "fc.mlp.down_proj.weight": draw(D, M),
            "fc.post_attention_layernorm.weight": draw(D),
        }
    return weights


@pytest.fixture
def publish(tmp_path):
    def publish(weights, config=VICUNA, file="pytorch_model.bin"):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save = save_file if file.endswith("safetensors") else torch.save
        save(weights, tmp_path / file)
        return tmp_path

    return publish


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
    write_published(network, tiny.embedding.weight, tmp_path)
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


def test_other_architectures_and_sizes_are_refused(tiny, publish):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'fspad'"):
        load_head(publish(release("eagle")), tiny, architecture("fspad"))
    with pytest.raises(
        BenchError,
        match=r"layers\.0\.mlp\.gate_proj\.weight is of shape \(80, 64\), not \(81, 64\)",
    ):
        load_head(publish(release("eagle"), VICUNA | {"intermediate_size": 81}), tiny)
    missing = release("eagle")
    del missing["layers.0.self_attn.o_proj.weight"]
    with pytest.raises(BenchError, match=r"it lacks layers\.0\.self_attn\.o_proj\.weight"):
        load_head(publish(missing), tiny)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": D}, "is no config of a draft head: 'intermediate_size'"),
        (VICUNA | {"num_hidden_layers": 2}, "those are one layer with SiLU"),
        (VICUNA | {"rope_scaling": {"type": "linear"}}, "scales its rotary embedding"),
    ],
)
def test_other_configs_are_refused(tiny, publish, config, message):
    with pytest.raises(BenchError) as raised:
        load_head(publish(release("eagle"), config), tiny)
    assert message in f"{raised.value.message} {raised.value.hint}"


class Loud:
    """Prints when it is unpickled."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [b"", b"garbage", Loud()])
def test_damaged_files_are_refused_and_none_is_executed(tiny, publish, capsys, content):
    folder = publish(release("eagle"))
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(BenchError, match="cannot read"):
        load_head(folder, tiny)
    assert "executed" not in capsys.readouterr().out
