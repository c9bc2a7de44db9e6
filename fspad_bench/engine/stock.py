"""The stock forward of transformers over our cache, for models that the fused forward does not fit.

transformers looks attention up by name; ours is `fspad_tree`. A tree's masks, one for each
different window of the layers, travel as the forward keyword `tree_masks`; without them, several
tokens are a causal prefill. Each layer names its own window.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, CacheLayerMixin

from fspad_bench.engine.attention import (
    HeadShape,
    Pending,
    additive_mask,
    attention,
    causal_attention,
)
from fspad_bench.engine.cache import KVCache
from fspad_bench.util.errors import BenchError

ATTENTION = "fspad_tree"
NO_STOP = [-1]  # an id that no token has

TreeMasks = dict[int | None, Tensor | None]
"""Window of a layer (None: it sees all) -> what `attention.additive_mask` returns for it."""


class StockForward:
    """tokens `[N]` -> features `[N, d]`, by the model's own modules. It runs whole models only."""

    name = "stock"

    def __init__(self, model: PreTrainedModel, shape: HeadShape) -> None:
        self.model = model
        self.shape = shape
        weight = model.get_input_embeddings().weight
        self.dtype: torch.dtype = weight.dtype
        self.device: torch.device = weight.device
        self.cache_argument = cache_argument(model)

    def __call__(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        pending: Pending | None = None,
        capture: tuple[int, ...] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the new ones of the pending tokens, or the first N of a cache, and write their
        entries.

        Features, and the captured hidden states `[N, d]`.
        """
        if pending is None:
            start, positions, masks = 0, list(range(len(tokens))), None
        else:
            start, positions = pending.start, pending.positions()
            masks = tree_masks(pending, self.shape, self.dtype, self.device)
        out = self.model.base_model(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=True,
            tree_masks=masks,
            output_hidden_states=bool(capture),
            **{self.cache_argument: _StockCache(cache, start)},
        )
        features = out.last_hidden_state[0]
        captured = [out.hidden_states[index][0].to(features.device) for index in capture]
        return features, captured


def cache_argument(model: PreTrainedModel) -> str:
    """Return by which name a model takes its cache: in releases after 5.17 another than before."""
    parameters = signature(model.base_model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def whole_features(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """Return the features `[N, d]` of a text, by transformers' own forward without a cache."""
    ids = torch.tensor([tokens], device=model.get_input_embeddings().weight.device)
    features: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return features


def stock_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that runs as transformers runs it, under neutral settings.

    Its files' generation settings may forbid repetitions, search by beams, or switch the cache off:
    vanilla decodes under none of them, so whatever is compared with vanilla must not either.
    """
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    plain.generation_config = GenerationConfig()
    plain.config.use_cache = True
    return plain


def take_buffers(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Give a model that was built without memory the buffers of another, which no file holds: the
    scale of embeddings, say.
    """
    held = dict(source.named_buffers())
    for path, module in model.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, held[f"{path}.{name}"])


def greedy_settings(
    max_new_tokens: int, stop_ids: Iterable[int], **further: Any
) -> GenerationConfig:
    """Return transformers' settings of a greedy answer that these ids end."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids) or NO_STOP,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        **({"repetition_penalty": 1.0} | further),
    )


class _StockLayer(CacheLayerMixin):
    """One layer of a `KVCache`, as transformers' modules write and read it during one forward."""

    def __init__(self, keys: Tensor, values: Tensor, start: int) -> None:
        """keys and values `[H_kv, slots, D]`; new entries go to the slots from `start` on."""
        super().__init__()
        self.keys = keys
        self.values = values
        self.length = start
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("the cache is allocated by its session")

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.length
        self.length += key_states.shape[-2]
        self.keys[:, start : self.length] = key_states[0]
        self.values[:, start : self.length] = value_states[0]
        return self.keys[None, :, : self.length], self.values[None, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.keys.shape[1]

    get_max_cache_shape = get_max_length  # the name of the same method in transformers 5.17


class _StockCache(Cache):
    def __init__(self, cache: KVCache, start: int) -> None:
        pairs = zip(cache.keys, cache.values, strict=True)
        super().__init__(layers=[_StockLayer(keys, values, start) for keys, values in pairs])


def tree_masks(
    pending: Pending, shape: HeadShape, dtype: torch.dtype, device: torch.device
) -> TreeMasks:
    """Return the masks of pending entries, by window."""
    return {
        window: additive_mask(pending, shape.groups, dtype, device, window)
        for window in shape.kinds
    }


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    tree_masks: TreeMasks | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers calls it; the output is `[B, N, H, D]`."""
    if tree_masks is None:
        seen = causal_attention(query, key, value, sliding_window, scaling)
    else:
        seen = attention(query, key, value, mask=tree_masks[sliding_window], scaling=scaling)
    return seen.transpose(1, 2), None


def unpadded(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """Return no mask, since `tree_attention` makes its own.

    Raises BenchError for padding, which that would not see.
    """
    if attention_mask is not None and not attention_mask.all():
        raise BenchError(
            "this model belongs to a target, whose attention takes no padding",
            "generate for one prompt at a time, or load the model once more",
        )


AttentionInterface.register(ATTENTION, tree_attention)
AttentionMaskInterface.register(ATTENTION, unpadded)
