"""The preset `tiny`: a Llama of two layers over printable characters, for tests; its text is noise.

- 97 tokens (printable ASCII, newline, end of turn), d = 64, float64.
- The weights come from our own integer hash, so that no library's random stream can change them.
- The last projection is wide enough that greedy and sampled text both vary.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fspad_bench.core.sampling import hash32

END = "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '" + END + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
    bos_token_id=None,
    eos_token_id=96,
    tie_word_embeddings=False,
)
LOGIT_SPREAD = 2.5


def tiny_model(config: LlamaConfig = CONFIG) -> LlamaForCausalLM:
    """Return a new model in float64 on the CPU, of `tiny`'s shape or of another."""
    with torch.device("meta"):
        model = LlamaForCausalLM(copy.deepcopy(config))
    model = model.to(torch.float64).to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    for order, weight in enumerate(model.state_dict().values()):
        if weight.dim() == 2:
            weight.copy_(_uniform(weight.shape, order) * math.sqrt(3 / weight.shape[1]))
        else:
            weight.fill_(1)
    model.model.embed_tokens.weight.data *= 8
    model.lm_head.weight.data *= LOGIT_SPREAD
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of characters; any but printable ASCII and newline is read as '?'."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = [chr(code) for code in range(32, 127)] + ["\n", END]
    model = models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="?")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, chat_template=TEMPLATE
    )


def _uniform(shape: torch.Size, order: int) -> Tensor:
    """Return float64 numbers in [-1, 1), from a different block of the hash for each weight."""
    bits = hash32((0x7499, order), 0, torch.arange(shape.numel())).to(torch.float64)
    return (bits * 2.0**-31).reshape(shape)
