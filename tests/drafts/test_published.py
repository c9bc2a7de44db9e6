"""Heads in the layout of EAGLE's and FSPAD's releases: synthetic files of their key names and shapes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.head import load_head
from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.drafts.published import write_published
from fspad_bench.errors import BenchError

D, M, HEADS, KV_HEADS, VOCABULARY = 64, 80, 4, 2, 97
VICUNA = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": D, "initializer_range": 0.02, "intermediate_size": M, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": 1,
    "pad_token_id": 0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.28.1", "use_cache": True, "vocab_size": VOCABULARY,
}  # fmt: skip
LLAMA3 = VICUNA | {"rope_theta": 500000.0, "bias": False}


def release(kind, *, bias=True):
    """The weights of a release: EAGLE's, FSPAD's, or FSPAD's two ablations."""
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
            2 * D if kind in ("fspad", "partial-alignment") else D, M
        ),
        "layers.0.post_attention_layernorm.weight": draw(D),
    }
    before = "fc.fc" if kind in ("fspad", "feature-sampling") else "fc"
    weights[f"{before}.weight"] = draw(D, 2 * D)
    if bias:
        weights[f"{before}.bias"] = draw(D)
    if before == "fc.fc":
        weights |= {
            "fc.mlp.gate_proj.weight": draw(M, D),
            "fc.mlp.up_proj.weight": draw(M, D),
            "fc.mlp.down_proj.weight": draw(D, M),
            "fc.post_attention_layernorm.weight": draw(D),
        }
    return weights


@pytest.fixture
def publish(tmp_path):
    def publish(weights, config=VICUNA, name="pytorch_model.bin"):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save = save_file if name.endswith("safetensors") else torch.save
        save(weights, tmp_path / name)
        return tmp_path

    return publish


@pytest.mark.parametrize("kind", ["eagle", "fspad", "feature-sampling", "partial-alignment"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_every_weight_finds_its_place(tiny, publish, kind, name):
    weights = release(kind)
    head = load_head(publish(weights, name=name), tiny, kind)
    assert head.network.shape.arm == kind
    assert head.network.shape.eps == 1e-6
    assert head.network.shape.rope_theta == 10000.0
    assert len(head.vocabulary) == VOCABULARY
    ours = [weight for weight in head.network.state_dict().values() if weight.dim() == 2]
    theirs = [
        weight for name, weight in weights.items() if weight.dim() == 2 and "embed" not in name
    ]
    assert sorted(float(w.double().sum()) for w in ours) == pytest.approx(
        sorted(float(w.double().sum()) for w in theirs)
    )


def test_the_network_computes_what_the_names_mean(tiny, publish):
    weights = {name: weight.double() for name, weight in release("fspad").items()}
    net = load_head(publish(weights), tiny, "fspad").network
    e, f = torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[name]

    z = torch.cat([e, f], -1) @ weights["fc.fc.weight"].T + weights["fc.fc.bias"]
    gate = torch.nn.functional.silu(e @ weights["fc.mlp.gate_proj.weight"].T)
    up = norm(z, "fc.post_attention_layernorm.weight") @ weights["fc.mlp.up_proj.weight"].T
    torch.testing.assert_close(
        net.fuse(e, f), z + (gate * up) @ weights["fc.mlp.down_proj.weight"].T
    )
    n = norm(z, "layers.0.post_attention_layernorm.weight")
    u = torch.nn.functional.silu(n @ weights["layers.0.mlp.gate_proj.weight"].T)
    u = u * (n @ weights["layers.0.mlp.up_proj.weight"].T)
    down = u @ weights["layers.0.mlp.down_proj.weight"].T
    torch.testing.assert_close(net.output(z).h_logit, z + down[:, :D])
    torch.testing.assert_close(net.output(z).h_feature, z + down[:, D:])


def test_heads_for_llama3_have_no_bias_and_another_rotation(tiny, publish):
    head = load_head(publish(release("eagle", bias=False), LLAMA3), tiny, "eagle")
    assert not head.network.fuse.fc.bias.any()
    assert head.network.shape.rope_theta == 500000.0


@pytest.mark.parametrize(("kind", "decoder"), [("eagle", Eagle), ("fspad", Fspad)])
def test_they_draft_losslessly(tiny, publish, kind, decoder):
    folder, prompt, limit = publish(release(kind)), list(range(30, 52)), Limit(16)
    made = generate(tiny, decoder(tiny, head=str(folder)), Sampler(1.0), prompt, limit)
    assert made.tokens == generate(tiny, Vanilla(tiny), Sampler(1.0), prompt, limit).tokens


@pytest.mark.parametrize("arm", ["eagle", "fspad"])
def test_what_is_written_is_read_back(tiny, tmp_path, arm):
    torch.manual_seed(3)
    network = DraftNetwork(Shape.of_target(tiny.config, arm)).double()
    write_published(network, tiny.embedding.weight, tmp_path)
    again = load_head(tmp_path, tiny, arm).network
    assert again.shape == network.shape
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    theirs = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert set(theirs) == set(release(arm))
    assert {name: weight.shape for name, weight in theirs.items()} == {
        n: w.shape for n, w in release(arm).items()
    }


def test_other_kinds_and_sizes_are_refused(tiny, publish):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'fspad'"):
        load_head(publish(release("eagle")), tiny, "fspad")
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
    ("config", "said"),
    [
        ({"hidden_size": D}, "is no config of a draft head: 'intermediate_size'"),
        (VICUNA | {"num_hidden_layers": 2}, "those are one layer with SiLU"),
        (VICUNA | {"rope_scaling": {"type": "linear"}}, "scales its rotary embedding"),
    ],
)
def test_other_configs_are_refused(tiny, publish, config, said):
    with pytest.raises(BenchError) as caught:
        load_head(publish(release("eagle"), config), tiny)
    assert said in f"{caught.value.message} {caught.value.hint}"


class Loud:
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
