"""Heads in the layout of EAGLE's and FSPAD's releases: what cannot be used is refused by name."""

import pytest
import torch
from releases import VICUNA, VOCABULARY, D, M, release

from fspad_bench.drafts.head import load_head
from fspad_bench.drafts.network import architecture
from fspad_bench.util.errors import BenchError


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
        ({"hidden_size": D}, "is no config of a draft head: it lacks intermediate_size"),
        (VICUNA | {"num_hidden_layers": 2}, "those are one layer with SiLU"),
        (VICUNA | {"hidden_act": "gelu"}, "those are one layer with SiLU"),
        (VICUNA | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "embedding (linear)"),
        (VICUNA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "embedding (llama3)"),
        (VICUNA | {"rope_scaling": {"factor": 2.0}}, "embedding (factor 2.0)"),
        (
            VICUNA | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rope_parameters scales its rotary embedding (yarn)",
        ),
        (
            VICUNA | {"rope_scaling": {"type": "dynamic", "rope_type": "default"}},
            "rope_scaling scales its rotary embedding (dynamic)",
        ),
        (VICUNA | {"rope_scaling": {"type": ["linear"]}}, "embedding (['linear'])"),
        (VICUNA | {"rope_theta": 0}, "rope_theta is 0"),
        (VICUNA | {"intermediate_size": 10**18}, "intermediate_size is 1000000000000000000"),
        (VICUNA | {"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        (VICUNA | {"rope_parameters": {"full_attention": {}}}, "one layer has one"),
        (VICUNA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (VICUNA | {"rope_parameters": {"partial_rotary_factor": 0.25}}, "factor is 0.25"),
        (
            VICUNA | {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            "two values of rope_theta: 10000.0, 500000.0",
        ),
        (VICUNA | {"rope_theta": "10000"}, "rope_theta is '10000'"),
        (VICUNA | {"hidden_size": "64"}, "hidden_size is '64'"),
        (VICUNA | {"num_attention_heads": 0}, "num_attention_heads is 0"),
        (VICUNA | {"intermediate_size": 80.0}, "intermediate_size is 80.0"),
        (VICUNA | {"num_key_value_heads": 3}, "cannot share 3"),
        (VICUNA | {"head_dim": 15}, "heads of width 15"),
        (VICUNA | {"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        (VICUNA | {"rms_norm_eps": True}, "rms_norm_eps is True"),
        (VICUNA | {"vocab_size": 96}, "config.json states 96 tokens"),
        ([VICUNA], "is no config of a draft head"),
        (None, "is no config of a draft head"),
    ],
)
def test_other_configs_are_refused(tiny, publish, config, message):
    with pytest.raises(BenchError) as raised:
        load_head(publish(release("eagle"), config), tiny)
    assert message in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default", "factor": 1.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_theta": 500000.0, "rope_parameters": {"rope_theta": 500000.0}},
    ],
)
def test_a_rotary_embedding_that_is_not_scaled_is_used_under_both_spellings(tiny, publish, rope):
    theta = 500000.0 if "500000.0" in str(rope) else 10000.0
    network = load_head(publish(release("eagle"), VICUNA | rope), tiny).network
    assert network.shape.rope_theta == theta


def other_model(weights):
    """Return weights with an embedding of the same size that was learned apart."""
    torch.manual_seed(7)
    embedding = torch.randn_like(weights["embed_tokens.weight"])
    return weights | {"embed_tokens.weight": embedding * weights["embed_tokens.weight"].std()}


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ({"layers.0.self_attn.o_proj.bias": torch.zeros(D)}, "reads: layers.0.self_attn.o_proj.b"),
        ({"layers.0.input_layernorm.weight": torch.ones(D)}, "reads: layers.0.input_layernorm"),
        ({"layers.0.mlp.down_proj.bias": torch.zeros(D)}, "reads: layers.0.mlp.down_proj.bias"),
        ({"norm.weight": torch.ones(D), "zz": torch.ones(1)}, "reads: norm.weight and 1 more"),
        ({"layers.1.mlp.up_proj.weight": torch.ones(M, D)}, "reads: layers.1.mlp.up_proj"),
        ({"lm_head.weight": torch.ones(VOCABULARY, D)}, "lm_head.weight differs from the target's"),
        ({"lm_head.weight": torch.ones(VOCABULARY, 2 * D)}, "lm_head.weight is of shape (97, 128)"),
        ({"d2t": torch.zeros(3)}, "no head of 'eagle' reads: d2t"),
        ({"t2d": torch.ones(97, dtype=torch.bool)}, "t2d holds torch.bool"),
        ({"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, "rope_theta=10000 gives"),
        ({"fc.weight": torch.ones(D, 2 * D, dtype=torch.int8)}, "fc.weight holds torch.int8"),
        ({"fc.weight": torch.ones(D, 2 * D).to_sparse()}, "fc.weight holds"),
        (
            {"fc.weight": torch.full((D, 2 * D), torch.nan)},
            "fuse.fc.weight holds numbers that are not",
        ),
        (
            {"fc.bias": torch.tensor([torch.inf] * D)},
            "fuse.fc.bias holds numbers that are not finite",
        ),
        ({"fc.weight": torch.ones(D, 2 * D, device="meta")}, "fc.weight holds torch.float32"),
        ({"fc.weight": torch.ones(D, 2 * D).to(torch.complex64)}, "fc.weight holds torch.complex"),
        ({"fc.weight": torch.ones(1).expand(D, 2 * D)}, "fc.weight has 8192 elements, more than"),
        ({"d2t": torch.zeros(1, dtype=torch.int64).expand(2**40)}, "d2t has 1099511627776 elem"),
        ({"fc.weight": torch.ones(D, 3 * D)}, "fc.weight is of shape (64, 192), not (64, 128)"),
        ({"layers.0.mlp.down_proj.weight": torch.tensor(1.0)}, "down_proj.weight is of shape ()"),
        ({"layers.0.self_attn.q_proj.bias": torch.zeros(D)}, "it lacks layers.0.self_attn.k_proj"),
    ],
)
def test_a_weight_is_read_or_refused_by_name(tiny, publish, added, named):
    with pytest.raises(BenchError) as raised:
        load_head(publish(release("eagle") | added), tiny)
    assert named in raised.value.message


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, which is giving both up
def test_a_tensor_that_is_not_plain_is_refused(tiny, publish):
    nested = torch.nested.nested_tensor([torch.ones(2 * D)] * D)
    quantized = torch.quantize_per_tensor(torch.ones(D, 2 * D), 0.1, 0, torch.qint8)
    for weight, dtype in ((nested, "torch.float32"), (quantized, "torch.qint8")):
        with pytest.raises(BenchError, match=rf"fc\.weight holds {dtype}, torch.strided on"):
            load_head(publish(release("eagle") | {"fc.weight": weight}), tiny)


def test_a_config_may_begin_with_a_byte_order_mark(tiny, publish):
    folder = publish(release("eagle"))
    config = folder / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_head(folder, tiny).network.shape.d == D


def test_a_missing_bias_is_one_that_the_config_does_without(tiny, publish):
    with pytest.raises(BenchError, match=r"it lacks fc\.bias"):
        load_head(publish(release("eagle", bias=False)), tiny)


def test_a_head_of_another_model_is_refused(tiny, publish):
    with pytest.raises(
        BenchError, match=r"another model: its embed_tokens.weight differs .* 1\d\d%"
    ):
        load_head(publish(other_model(release("eagle"))), tiny)


def test_a_head_of_another_vocabulary_is_refused(tiny, publish):
    """Here the same tokens in another order."""
    weights = release("eagle")
    weights["embed_tokens.weight"] = weights["embed_tokens.weight"].flip(0)
    with pytest.raises(BenchError, match="is the head of another model"):
        load_head(publish(weights), tiny)
    del weights["embed_tokens.weight"]
    with pytest.raises(BenchError, match="for a vocabulary of 96 tokens; the target has 97"):
        load_head(publish(weights, VICUNA | {"vocab_size": 96}), tiny)


@pytest.mark.parametrize("rows", [90, 120])
def test_a_vocabulary_that_the_target_extended_is_its_own(tiny, publish, rows):
    weights = release("eagle")
    embedding = weights["embed_tokens.weight"]
    weights["embed_tokens.weight"] = torch.cat([embedding, torch.ones(23, D)])[:rows]
    head = load_head(publish(weights, VICUNA | {"vocab_size": rows}), tiny)
    assert len(head.vocabulary) == VOCABULARY


@pytest.mark.parametrize("config", [VICUNA, {k: VICUNA[k] for k in VICUNA if k != "vocab_size"}])
def test_a_head_without_a_copy_of_the_embedding_is_used(tiny, publish, config):
    weights = release("eagle")
    del weights["embed_tokens.weight"]
    assert load_head(publish(weights, config), tiny).network.architecture == "eagle"


def test_copies_of_the_targets_weights_are_used(tiny, publish):
    """Its LM head, and the rotary frequencies that old releases hold as a buffer."""
    frequencies = 10000.0 ** (-torch.arange(8) / 8)
    weights = release("eagle") | {
        "lm_head.weight": tiny.lm_head.weight.detach().to(torch.bfloat16),
        "layers.0.self_attn.rotary_emb.inv_freq": frequencies.to(torch.bfloat16),
    }
    assert load_head(publish(weights), tiny).network.architecture == "eagle"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin.index.json", "weights in parts (pytorch_model.bin.index.json)"),
        ("model.safetensors.index.json", "weights in parts (model.safetensors.index.json)"),
        ("README.md", "holds config.json and no weights"),
    ],
)
def test_a_folder_without_one_file_of_weights_is_refused(tiny, publish, file, message):
    folder = publish(release("eagle"))
    (folder / "pytorch_model.bin").unlink()
    (folder / file).write_text("{}")
    with pytest.raises(BenchError) as raised:
        load_head(folder, tiny)
    assert message in raised.value.message


@pytest.mark.parametrize(
    "content",
    [{}, {0: torch.ones(1)}, {"step": 1}, {"model": {"fc.weight": torch.ones(1)}}, [torch.ones(1)]],
)
def test_a_file_without_weights_by_name_is_refused(tiny, publish, content):
    with pytest.raises(BenchError, match="holds no weights by name"):
        load_head(publish(content), tiny)


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


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_pointer_in_the_place_of_a_file_is_named(tiny, publish, file, content):
    folder = publish(release("eagle"), file=file)
    (folder / file).write_text(content)
    with pytest.raises(BenchError, match=f"{file} is a Git LFS pointer") as raised:
        load_head(folder, tiny)
    assert "git lfs pull" in raised.value.hint


def test_no_error_advises_to_execute_a_file(tiny, publish):
    folder = publish(release("eagle"))
    torch.save(Loud(), folder / "pytorch_model.bin")
    with pytest.raises(BenchError, match="it is no file of weights alone") as raised:
        load_head(folder, tiny)
    assert "weights_only" not in raised.value.message


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (float("nan") * torch.ones(97, D), "embed_tokens.weight holds numbers that are not finite"),
        (torch.zeros(0, D), r"embed_tokens.weight is of shape \(0, 64\)"),
    ],
)
def test_a_copy_that_compares_with_nothing_is_refused(tiny, publish, weight, message):
    with pytest.raises(BenchError, match=message):
        load_head(publish(release("eagle") | {"embed_tokens.weight": weight}), tiny)


def test_a_prefix_of_some_names_is_refused(tiny, publish):
    weights = release("eagle")
    weights["model.fc.weight"] = weights.pop("fc.weight")
    with pytest.raises(BenchError, match=r"it lacks fc\.weight"):
        load_head(publish(weights), tiny)
    layer = {name: weight for name, weight in weights.items() if name.startswith("layers.0.")}
    with pytest.raises(BenchError, match=r"it lacks fc\.weight"):
        load_head(publish(layer), tiny)
