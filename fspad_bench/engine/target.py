"""A target: a transformers causal LM whose cache can score a whole tree in one forward and keep one path of it.

No modeling file is forked. A tree's rows go through the lean forward (`forward`), or the stock one where that does not
fit, with positions prefix + depth and our attention, which reads the tree's mask; vanilla's single row takes the same
road without a mask. Features
are the hidden states after the final norm, the LM head's input; loading checks that the head maps them to the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fspad_bench.core.tree import Tree
from fspad_bench.engine import attention
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.cache import TreeCache
from fspad_bench.engine.cpu import huge_pages as pages
from fspad_bench.engine.cpu import linear, native
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.forward import Attend, AttendRotated, LeanForward
from fspad_bench.engine.gpu import Kernels
from fspad_bench.errors import BenchError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
LENGTH_DEPENDENT = (
    "dynamic",
    "longrope",
)  # rotary embeddings that one far row of a tree changes for all the others
LARGEST_TREE = 128
LEAN_GAP = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
DEVICE_GAP = (
    1e-6  # a norm is float32 even in float64, and a device's fused one sums in another order
)


class Scores(NamedTuple):
    """What one forward says of N rows: `logits [N, V]` (prefill: the last row's alone) and `features [N, d]`."""

    logits: Tensor
    features: Tensor


class ContextError(BenchError):
    """A prompt and its new tokens do not fit the target's context."""


class TransformersTarget:
    """`prefill`, then `score` a tree and `commit` a path of it, round after round; one sequence at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        name: str = "model",
        identity: str = "",
    ) -> None:
        check_architecture(model.config)
        model.set_attn_implementation(attention.NAME)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.identity = identity
        self.config = model.config
        self.lm_head = model.get_output_embeddings()
        self.embedding = model.get_input_embeddings()
        self.device = self.embedding.weight.device
        self.dtype = self.embedding.weight.dtype
        self.lean = LeanForward(model) if LeanForward.fits(model) else None
        self.kernels = kernels.chosen(self.device) if self.lean else None
        self.forward_name = self.lean.name if self.lean else linear.STOCK
        if self.kernels:
            self.forward_name += f", {self.kernels.name} kernels"
        self.logits = Matrix(self.lm_head.weight, getattr(self.lm_head, "bias", None))
        self.attends = (
            bool(self.lean) and self.lean.parts.compiled and native.attends(self.lean.head_dim)
        )
        self.groups = self.config.num_attention_heads // self.config.num_key_value_heads
        self.cache = self._new_cache(0)
        self.forwards = 0
        self.pending = 0
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where Triton launches, and graphs are captured
            torch.backends.cuda.enable_cudnn_sdp(
                False
            )  # it would plan anew, for 20 ms and more, at every length
        self._check_features()

    @property
    def length(self) -> int:
        """Committed rows of the cache."""
        return self.cache.length - self.pending

    @property
    def max_length(self) -> int:
        """The longest sequence this target is exact on: its context, or its sliding window if that is shorter."""
        return min(
            self.config.max_position_embeddings,
            sliding_window(self.config) or self.config.max_position_embeddings,
        )

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token ids that end an answer, as the model's generation settings say."""
        end = self.model.generation_config.eos_token_id
        return frozenset([end] if isinstance(end, int) else end or ())

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int], room: int) -> Scores:
        """Start a sequence of at most `len(prompt) + room` tokens. Raises ContextError where that does not fit."""
        if not prompt:
            raise BenchError("the prompt is empty", "a target needs at least one token to continue")
        self._check_tokens(prompt, "the prompt was made with another tokenizer")
        needed = len(prompt) + room
        if needed > self.max_length:
            text = f"a prompt of {len(prompt)} tokens and {room} new ones exceed the context of {self.max_length}"
            raise ContextError(text, "lower --max-new-tokens, or drop the sample")
        self.reserve(needed)
        self.cache.clear()
        self.pending = 0
        features = self._forward(list(prompt), range(len(prompt)), self._attend(None))
        return Scores(self.logits(features[-1:]), features)

    def reserve(self, tokens: int) -> None:
        """Make room for a sequence of so many; what a shorter cache held is lost."""
        if self.cache.capacity < tokens + LARGEST_TREE:
            self.cache = self._new_cache(tokens + LARGEST_TREE)

    @torch.inference_mode()
    def score(self, tree: Tree) -> Scores:
        """The target's logits after every node, `[N, V]`; the nodes' rows wait in the cache for `commit`."""
        if self.pending:
            raise RuntimeError("score before the last tree was committed")
        if len(tree) > LARGEST_TREE:
            raise BenchError(f"a tree of {len(tree)} nodes is too large", f"at most {LARGEST_TREE}")
        self._check_tokens(tree.tokens, "the draft was made for another target")
        mask = None
        if self.kernels:
            attend = self.lean.rotating(
                attend_by(self.kernels, self.cache, tree.bits.to(self.device), self.lean.scaling)
            )
        elif self.attends:
            attend = attend_natively(
                self.lean, self.cache, tree.visible() if len(tree) > 1 else None
            )
        else:
            mask = attention.mask_of(
                tree, self.length, self.groups, dtype=self.dtype, device=self.device
            )
            attend = self._attend(mask)
        self.pending = len(tree)
        features = self._forward(
            tree.tokens, [self.cache.length + depth for depth in tree.depths], attend, mask
        )
        return Scores(self.logits(features), features)

    @torch.inference_mode()
    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows of these nodes, root first, and drop the rest of the last tree."""
        self.cache.keep(self.length, path)
        self.pending = 0

    @property
    def gpu(self) -> str:
        """The name of the GPU it stands on, if it does."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    def synchronize(self) -> None:
        """Wait for the device; a clock that is read after this has seen all the work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _check_tokens(self, tokens: Sequence[int], guess: str) -> None:
        if not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            found = next(token for token in tokens if not 0 <= token < self.config.vocab_size)
            raise BenchError(
                f"token {found} is outside the target's vocabulary of {self.config.vocab_size}",
                guess,
            )

    def _new_cache(self, capacity: int) -> TreeCache:
        layers = self.config.num_hidden_layers
        if not self.lean:
            return TreeCache(layers, capacity)
        shape = (layers, 2, self.lean.kv_heads, capacity, self.lean.head_dim)
        return TreeCache(layers, capacity, pages.zeros(shape, self.dtype, self.device))

    def _attend(self, mask: Tensor | None) -> Attend | None:
        """Through torch's attention; the stock forward has its own."""
        return self.lean.rotating(attend_cached(self.cache, mask)) if self.lean else None

    def _forward(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        attend: Attend | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """tokens `[N]` behind the committed rows -> features `[N, d]`; the stock forward reads `mask` alone."""
        self.forwards += 1
        ids = torch.tensor(tokens, device=self.device)
        if self.lean:
            return self.lean(ids, self.lean.rope(positions), attend)
        out = self.model.base_model(
            input_ids=ids[None],
            position_ids=torch.tensor([positions], device=self.device),
            past_key_values=self.cache,
            use_cache=True,
            tree_mask=mask,
        )
        return out.last_hidden_state[0]

    @torch.inference_mode()
    def _check_features(self) -> None:
        ids = torch.arange(4, device=self.device)[None]
        features = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.model(input_ids=ids, use_cache=False).logits
        gap = (self.lm_head(features).float() - logits.float()).abs().max()
        if not gap <= 1e-3 * logits.float().abs().max():
            raise BenchError(
                f"{self.name}: its LM head does not map the last hidden state to its logits (gap {gap:.2g})",
                "models that scale or cap their logits are not supported",
            )
        if self.lean:
            cache = self._new_cache(4)
            chain = torch.ones(4, 4, dtype=torch.bool).tril()
            if self.attends:
                attend = attend_natively(self.lean, cache, chain)
            else:
                attend = self.lean.rotating(attend_cached(cache, None))
            ours = self.lean(ids[0], self.lean.rope(range(4)), attend)
            gap = (ours.float() - features[0].float()).abs().max() / features.float().abs().max()
            bound = (
                LEAN_GAP[self.dtype]
                if self.device.type == "cpu"
                else max(DEVICE_GAP, LEAN_GAP[self.dtype])
            )
            if not gap <= bound:
                raise BenchError(
                    f"{self.name}: its layers are not those of a plain {self.config.model_type} (gap {gap:.2g})"
                )


def attend_natively(lean: LeanForward, cache: TreeCache, visible: Tensor | None) -> Attend:
    """New rows go behind the cache's and see those before them all, and of each other what `visible [N, N]` says."""
    sizes = [lean.heads, 2 * lean.kv_heads]

    def attend(layer: int, rows: Tensor, rope: Tensor) -> Tensor:
        held = cache.layers[layer]
        (q, kv) = rows.split(sizes, dim=1)
        start = held.advance(len(rows))
        return lean.parts.attend(q, kv, rope, held.keys, held.values, start, visible, lean.scaling)

    return attend


def attend_cached(cache: TreeCache, mask: Tensor | None) -> AttendRotated:
    """New rows go behind the cache's and see all of it, or as `mask` says."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = cache.layers[layer].update(key[None], value[None])
        return attention.attend_tree(query[None], keys, values, mask)[0]

    return attend


def attend_by(found: Kernels, cache: TreeCache, bits: Tensor, scale: float) -> AttendRotated:
    """The same through a kernel: a node sees what its ancestor bits say."""
    length = torch.tensor([cache.length], dtype=torch.int32, device=bits.device)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = cache.layers[layer]
        rows.update(key[None], value[None])
        return found.attend(query, rows.keys[0], rows.values[0], bits, length, scale)

    return attend


def sliding_window(config: object) -> int | None:
    """The attention window of any of its layers, None where all see everything."""
    kinds = getattr(config, "layer_types", None) or ()
    if kinds and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def check_architecture(config: object) -> None:
    """Raise BenchError unless a tree forward of this architecture is known to be exact."""
    if config.model_type not in ARCHITECTURES:
        raise BenchError(
            f"architecture '{config.model_type}' is not supported",
            f"supported: {', '.join(ARCHITECTURES)}",
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in LENGTH_DEPENDENT:
        raise BenchError(
            f"rotary embedding '{rope}' is not supported",
            "its frequencies depend on a forward's length",
        )
