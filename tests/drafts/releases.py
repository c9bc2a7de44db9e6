"""Heads as EAGLE, EAGLE-3 and FSPAD release them, for the tiny target: synthetic weights, their
names and shapes, and their configs.
"""

import torch

from fspad_bench.models.tiny import tiny_model

D = 64
M = 80
HEADS = 4
KV_HEADS = 2
VOCABULARY = 97
EMBEDDING = tiny_model().get_input_embeddings().weight.detach().to(torch.float16)
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
DRAFTED = [token for token in range(VOCABULARY) if token % 4]
STATES = "eagle_aux_hidden_state_layer_ids"
EAGLE3 = VICUNA | {"draft_vocab_size": len(DRAFTED), STATES: [0, 1, 2]}


def release(name, *, bias=True):
    """Return the weights of a release: EAGLE's, FSPAD's, or one of FSPAD's two ablations."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    inner = D // HEADS * KV_HEADS
    weights = {
        "embed_tokens.weight": EMBEDDING.clone(),
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


def release3():
    """Return the weights of a release of EAGLE-3."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    inner = D // HEADS * KV_HEADS
    ids = torch.tensor(DRAFTED)
    return {
        "d2t": ids - torch.arange(len(ids)),
        "t2d": torch.tensor([token % 4 > 0 for token in range(VOCABULARY)]),
        "fc.weight": draw(D, 3 * D),
        "midlayer.hidden_norm.weight": draw(D) + 1,
        "midlayer.input_layernorm.weight": draw(D) + 1,
        "midlayer.self_attn.q_proj.weight": draw(D, 2 * D),
        "midlayer.self_attn.k_proj.weight": draw(inner, 2 * D),
        "midlayer.self_attn.v_proj.weight": draw(inner, 2 * D),
        "midlayer.self_attn.o_proj.weight": draw(D, D),
        "midlayer.post_attention_layernorm.weight": draw(D) + 1,
        "midlayer.mlp.gate_proj.weight": draw(M, D),
        "midlayer.mlp.up_proj.weight": draw(M, D),
        "midlayer.mlp.down_proj.weight": draw(D, M),
        "norm.weight": draw(D) + 1,
        "lm_head.weight": draw(len(ids), D),
    }
