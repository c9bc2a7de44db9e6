"""A target: a transformers causal LM over which sessions are opened.

- No modeling file is forked. Tokens go through the fused forward (`forward`), or the stock one
  where that does not fit.
- It lies on one device, or its layers are spread over several (`placement`), or each layer is
  shared among processes (`team`).
- How its tokens attend is one object, chosen when the target is built: torch's, the compiled CPU
  one, GPU kernels.
- Features are the hidden states after the final norm, the LM head's input; loading checks that the
  head maps them to the logits.
- The model may serve several sessions: its draft's, a layer-skipping one. It counts their forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import finalize

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fspad_bench.core.protocols import ALL, LayerPlan
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Rule
from fspad_bench.engine import gpu, stock, together
from fspad_bench.engine.architecture import check_architecture, head_shape, longest_exact
from fspad_bench.engine.attention import Attention, Pending, TorchAttention
from fspad_bench.engine.cache import Compact, KVCache
from fspad_bench.engine.cpu import native
from fspad_bench.engine.cpu.attention import CompiledAttention
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.forward import FusedForward
from fspad_bench.engine.gpu.backend import KernelAttention, device_rule, kernel_compaction
from fspad_bench.engine.gpu.tree_forward import TreeForward
from fspad_bench.engine.placement import Placement
from fspad_bench.engine.session import LARGEST_TREE, Scores, Session
from fspad_bench.engine.team import ALONE, Team
from fspad_bench.util.errors import BenchError

FUSED_GAP = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
GENERATION = "generation settings"
DEVICE_GAP = 1e-6  # a norm is float32 even in float64, and a device's sums in another order

__all__ = ["LARGEST_TREE", "ContextError", "Scores", "Session", "TransformersTarget"]


class ContextError(BenchError):
    """A prompt and its new tokens do not fit the target's context."""


class TransformersTarget:
    """A model with its tokenizer.

    - `identity`: of its weights; a draft head fits these alone.
    - `files_sha256`: the hash of every file that decides what it reads and says, those of its
      tokenizer and template too; empty where it was built from no files.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        name: str = "model",
        identity: str = "",
        files_sha256: str = "",
        team: Team = ALONE,
    ) -> None:
        check_architecture(model.config)
        self.team = team
        self.placement = Placement.of(model, team.devices)
        model.set_attn_implementation(stock.ATTENTION)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.identity = identity
        self.files_sha256 = files_sha256
        self.config = model.config
        self.lm_head = model.get_output_embeddings()
        if type(self.lm_head) is not nn.Linear:
            raise BenchError(
                f"{name}: its LM head is a {type(self.lm_head).__name__}, not one product",
                "merge an adapter into the weights (merge_and_unload), load them unquantised",
            )
        self.embedding = model.get_input_embeddings()
        self.device: torch.device = self.placement.first
        self.dtype: torch.dtype = self.embedding.weight.dtype
        is_fused = self.placement.is_single and FusedForward.fits(model)
        self.fused = FusedForward(model) if is_fused else None
        self.kernels = gpu.chosen(self.device) if self.fused else None
        self.heads = head_shape(model)
        self.stock = team.forward(model, self.heads)
        self.attention = self._attention()
        self.trees: TreeForward | None = None
        if self.fused and isinstance(self.attention, KernelAttention):
            self.trees = TreeForward(self.fused, self.attention)
        self.forward_name = self.fused.name if self.fused else self.stock.name
        if self.kernels:
            self.forward_name += f", {self.kernels.name} kernels"
        self.forward_name += self.placement.words
        self.logits = Matrix(self.lm_head.weight, getattr(self.lm_head, "bias", None))
        if self.fused and self.kernels:
            for matrix in (self.logits, *self.fused.matrices):
                matrix.multiply = self.kernels.multiply
        self.forwards = 0
        self.partial_forwards = 0
        self._idle: list[KVCache] = []
        self.last_session: Session | None = None  # opened last, but for sharing ones
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where Triton launches, and graphs are captured
            # it would plan anew, for 20 ms and more, at every length
            torch.backends.cuda.enable_cudnn_sdp(False)
        with team.in_step():
            self._check_features()
        team.guard(model)
        finalize(self, team.close)

    def session(
        self,
        capacity: int,
        *,
        layers: LayerPlan = ALL,
        capture: Sequence[int] = (),
        share: Session | None = None,
    ) -> Session:
        """Open a session with room for `capacity` committed tokens and a tree.

        `layers`: which sublayers run. `capture`: the hidden states that features hold, as
        transformers' `output_hidden_states` counts them. `share`: a session of this target whose
        entries are read. Raises ContextError where the capacity exceeds the context, BenchError for
        a plan or capture this target cannot run.
        """
        self.check_plan(layers, capture)
        if share is not None:
            if share.target is not self:
                raise ValueError("a session shares the entries of its own target only")
            return Session(self, share.cache, layers=layers, capture=capture, share=share)
        if capacity > self.max_length:
            raise ContextError(
                f"a prompt and its new tokens, {capacity} in all, exceed the context of "
                f"{self.max_length}",
                "lower --max-new-tokens, or drop the sample",
            )
        self.reserve(capacity)
        self.last_session = Session(self, self._idle.pop(), layers=layers, capture=capture)
        return self.last_session

    def reserve(self, capacity: int) -> None:
        """Allocate the cache of the next session now, so that no clock runs meanwhile."""
        slots = capacity + LARGEST_TREE
        if not self._idle or self._idle[-1].slots < slots:
            del self._idle[-1:]  # first: there may be no room for both
            self._idle.append(self.new_cache(slots))

    def release(self, cache: KVCache) -> None:
        """Take back the cache of a session that has ended."""
        if all(cache is not idle for idle in self._idle):
            self._idle.append(cache)

    def prefill(
        self, tokens: Sequence[int], cache: KVCache, layers: LayerPlan, capture: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the first N tokens of a cache and count the forward.

        Returns features `[N, d]` and the captured hidden states.
        """
        self._count(layers)
        if not self.fused:
            return self.stock(tokens, cache, None, capture)
        ids = torch.tensor(tokens, device=self.device)
        attend = self.attention.prefill(cache, len(tokens))
        return self.fused(ids, self.fused.rope.of(range(len(tokens))), attend, layers, capture)

    def extend(
        self,
        tokens: Sequence[int],
        pending: Pending,
        cache: KVCache,
        layers: LayerPlan,
        capture: tuple[int, ...],
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the new ones of the pending tokens and count the forward, as `prefill` does."""
        self._count(layers)
        if not self.fused:
            return self.stock(tokens, cache, pending, capture)
        if self.trees:
            scored = self.trees(tokens, pending, cache, layers, capture)
            if scored:
                return scored
        ids = torch.tensor(tokens, device=self.device)
        attend = self.attention.tree(cache, pending)
        rope = self.fused.rope.of(pending.positions())
        return self.fused(ids, rope, attend, layers, capture)

    def score_together(self, sessions: Sequence[Session], trees: Sequence[Tree]) -> list[Scores]:
        """Score a tree for each of several sessions, as `Session.score` does for one."""
        return together.score_together(self, sessions, trees)

    def _count(self, layers: LayerPlan) -> None:
        if layers.whole:
            self.forwards += 1
        else:
            self.partial_forwards += 1

    def verifier(self, rule: Rule) -> Rule:
        """Return the rule as this device carries it out.

        With kernels `match` samples all nodes at once.
        """
        return device_rule(rule, self.kernels)

    @property
    def max_length(self) -> int:
        """The longest sequence this target is exact on: its context, as a rule."""
        return longest_exact(self.config, self.heads.windows)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token ids that end an answer: those of the model's generation settings, as for
        transformers' `generate`, or else its tokenizer's.
        """
        return self._generation_stop_ids or self.tokenizer_stop_ids

    @property
    def tokenizer_stop_ids(self) -> frozenset[int]:
        """The token id by which the tokenizer ends a text, empty without one."""
        return self._ids(getattr(self.tokenizer, "eos_token_id", None))

    @property
    def _generation_stop_ids(self) -> frozenset[int]:
        return self._ids(self.model.generation_config.eos_token_id)

    def _ids(self, end: int | list[int] | None) -> frozenset[int]:
        """Return token ids as configurations state them: one, several, or none (-1).

        Raises BenchError for anything but ids of the vocabulary.
        """
        ids = end if isinstance(end, list) else [] if end in (None, -1) else [end]
        size = self.config.vocab_size
        if not all(type(token) is int and 0 <= token < size for token in ids):
            raise BenchError(
                f"eos_token_id is {end!r}: not among the ids of a vocabulary of {size}",
                "correct it in generation_config.json, config.json or the tokenizer's files",
            )
        return frozenset(ids)

    @property
    def stop_source(self) -> str:
        """The source of `stop_ids`."""
        if self._generation_stop_ids:
            return GENERATION
        return "tokenizer" if self.tokenizer_stop_ids else "nowhere"

    @property
    def gpu(self) -> str:
        """The names of its GPUs, none twice; empty on a CPU."""
        return ", ".join(dict.fromkeys(map(torch.cuda.get_device_name, self.placement.gpus)))

    @property
    def entry_bytes(self) -> int:
        """Bytes of one token's keys and values in the cache of all layers."""
        shape = self.heads
        values = 2 * self.config.num_hidden_layers * shape.kv_heads * shape.dim
        return values * self.dtype.itemsize

    @property
    def signature(self) -> str:
        """The name of the compiled code that its forwards run; empty without any."""
        return self.fused.ops.signature if self.fused else ""

    def synchronize(self) -> None:
        """Wait for its devices; a clock that is read after this has seen all the work."""
        for device in self.placement.own_gpus:
            torch.cuda.synchronize(device)

    def forget_peak_memory(self) -> None:
        """Begin anew to note how much memory its GPUs hold at most."""
        for device in self.placement.own_gpus:
            torch.cuda.reset_peak_memory_stats(device)
        self.team.forget_peak_memory()

    def peak_memory(self) -> int | None:
        """Return the bytes its GPUs held at most, all together; None on a CPU: not known."""
        gpus = self.placement.own_gpus
        own = sum(map(torch.cuda.max_memory_allocated, gpus))
        return own + self.team.peak_memory() if gpus else None

    def check_tokens(self, tokens: Sequence[int], guess: str) -> None:
        """Raise BenchError for token ids outside the vocabulary."""
        size = self.config.vocab_size
        if not 0 <= min(tokens) <= max(tokens) < size:
            outside = next(token for token in tokens if not 0 <= token < size)
            raise BenchError(f"token {outside} is outside the target's vocabulary of {size}", guess)

    def _attention(self) -> Attention:
        if not self.fused:
            return TorchAttention(self.heads)
        if self.kernels:
            return KernelAttention(self.heads, self.kernels)
        if isinstance(self.fused.ops, Native) and native.attends(self.heads.dim):
            return CompiledAttention(self.heads, self.fused.ops)
        return TorchAttention(self.heads)

    def new_cache(self, slots: int) -> KVCache:
        """Allocate a cache of so many entries."""
        compact: Compact | None = kernel_compaction(self.kernels) if self.kernels else None
        shape = self.heads
        own_heads = shape.kv_heads // self.team.size
        cache = KVCache(self.placement.layers, own_heads, slots, shape.dim, self.dtype, compact)
        self.team.hold(cache)
        return cache

    def check_plan(self, layers: LayerPlan, capture: Sequence[int] = ()) -> None:
        """Raise BenchError or ValueError for layers or captured states that it cannot run."""
        count = self.config.num_hidden_layers
        if not layers.whole and not self.fused:
            raise BenchError(
                f"{self.name} runs by its stock forward, which skips no layers",
                "layer skipping needs a plain Llama, Mistral, Qwen or Gemma 3 in full precision, "
                "on one device",
            )
        if capture and not layers.whole:
            raise ValueError("hidden states can be captured from a whole forward only")
        if any(not 0 <= layer < count for layer in layers.skip_attention | layers.skip_mlp):
            raise ValueError(f"the layers of {self.name} are 0 to {count - 1}")
        if any(not 0 <= index <= count for index in capture):
            raise ValueError(f"the hidden states of {self.name} are 0 to {count}")

    @torch.inference_mode()
    def _check_features(self) -> None:
        """Raise BenchError unless the LM head maps features to logits and the fused forward is the
        stock one.
        """
        ids = torch.arange(4, device=self.device)[None]
        features = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.model(input_ids=ids, use_cache=False).logits
        if not torch.isfinite(logits).all():
            raise BenchError(
                f"{self.name}: its logits are not finite in {self.dtype}",
                "its weights are damaged, or its precision overflows: try --dtype float32",
            )
        gap = (self.lm_head(features).float() - logits.float()).abs().max()
        if not gap <= 1e-3 * logits.float().abs().max():
            raise BenchError(
                f"{self.name}: its LM head does not map the last hidden state to its logits "
                f"(gap {gap:.2g})",
                "models that scale or cap their logits are not supported",
            )
        if self.fused:
            self._check_fused(self.fused, ids[0], features[0])

    def _check_fused(self, fused: FusedForward, ids: Tensor, features: Tensor) -> None:
        cache = self.new_cache(len(ids))
        chain = Pending(0, [(2 << i) - 1 for i in range(len(ids))], len(ids))
        if isinstance(self.attention, CompiledAttention):
            attend = self.attention.tree(cache, chain)
        else:
            attend = self.attention.prefill(cache, len(ids))
        ours, _ = fused(ids, fused.rope.of(range(len(ids))), attend)
        gap = (ours.float() - features.float()).abs().max() / features.float().abs().max()
        bound = FUSED_GAP[self.dtype]
        if self.device.type != "cpu":
            bound = max(DEVICE_GAP, bound)
        if not gap <= bound:
            raise BenchError(
                f"{self.name}: its layers are not those of a plain {self.config.model_type} "
                f"(gap {gap:.2g})"
            )
