"""CPU decode kernels: `native.cpp`, JIT-compiled on first use, and its Python interface.

- Each weight is read once, at the speed of memory, and a tree's node gets the very bits that its
  path would get one token at a time; a library's products round a row one way by itself and another
  way beside others. So in bfloat16 too every decoder's output is vanilla's own.
- Compiling takes a second, with any g++ or clang++; the result is kept in the user's cache
  (`compiler`).
- Every decoder runs these kernels, vanilla first of all, and the record names them. Without a
  compiler, or with FSPAD_BENCH_NATIVE=0, torch's operations do the same: slower, and not
  bit-identical.
- For inference on a CPU, in float32 and bfloat16.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.engine.cpu import compiler
from fspad_bench.engine.cpu.huge_pages import Arena
from fspad_bench.engine.cpu.torch_ops import ACTIVATIONS, SILU, TorchOps
from fspad_bench.util.terminal import note

NAME = "native"
VARIABLE = "FSPAD_BENCH_NATIVE"
KINDS = {torch.float32: 0, torch.bfloat16: 1}
PRODUCTS = {  # by the types of rows and packed weights
    (torch.float32, torch.float32): 0,
    (torch.bfloat16, torch.bfloat16): 1,
    (torch.float32, torch.bfloat16): 2,
}
WIDTH = 32  # widths of layers must be multiples of this
HEAD = 64  # widths of heads must be multiples of this
LARGEST_HEAD = 256
BLOCK = 32  # outputs of a weight that lie together
ROWS = 128  # products of more rows are left to torch; a tree is never larger
PACKED = Arena()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}

Tail = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(x `[N, d]`, attention's output `[N, H D]`) -> (x after the residual sums, the next projections
`[N, out]`).
"""
Mlp = tuple[Tensor | None, ...]
"""Norm, gate and up stacked, their bias, down, its bias, the norm of what it adds; products'
weights packed.
"""


class Native:
    """The compiled functions. Inputs are contiguous unless said otherwise."""

    compiled = True

    def __init__(
        self,
        functions: ctypes.CDLL,
        signature: str = "",
        *,
        norm_offset: float = 0.0,
        activation: str = SILU,
    ) -> None:
        """`signature` distinguishes these functions, as compiled here, from any others.

        `norm_offset` is added to the weights of norms; `activation` is that of gates.
        """
        self.functions = functions
        self.signature = signature
        self.norm_offset = norm_offset
        self.activation = activation
        self.gate = list(ACTIVATIONS).index(activation)

    def of(self, norm_offset: float, activation: str) -> Native:
        """Return the same functions for a family with these norms and gates."""
        return Native(
            self.functions, self.signature, norm_offset=norm_offset, activation=activation
        )

    def pack(self, weight: Tensor) -> Tensor:
        """Reorder a weight `[out, in]` for `product`: `[out padded to blocks, in]`.

        A weight in float32 whose values are all bfloat16 numbers, such as most that are published,
        is kept as these: half the bytes, and the same products to the bit.
        """
        return self.packed(halved(weight), weight.dtype)

    def packed(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Reorder a weight as it is stored, for products of rows of a type."""
        stored = stored.contiguous()
        outs, width = stored.shape
        packed = PACKED.zeros((-(-outs // BLOCK) * BLOCK, width), stored.dtype)
        kind = PRODUCTS[dtype, stored.dtype]
        self.functions.fspad_pack(kind, stored.data_ptr(), packed.data_ptr(), width, outs)
        return packed

    def product(self, x: Tensor, packed: Tensor, outs: int, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b `[..., out]` for x `[..., in]` of few rows."""
        width = packed.shape[1]
        out = x.new_empty(*x.shape[:-1], outs)
        self.functions.fspad_product(
            PRODUCTS[x.dtype, packed.dtype], x.data_ptr(), packed.data_ptr(), pointer(bias),
            out.data_ptr(), x.numel() // width, width, outs, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + delta, written to x, and its RMS norm, `[N, d]` each."""
        out = torch.empty_like(x)
        self.functions.fspad_add_norm(
            KINDS[x.dtype], x.data_ptr(), pointer(delta), weight.data_ptr(),
            out.data_ptr(), *x.shape, eps, self.norm_offset, torch.get_num_threads(),
        )  # fmt: skip
        return x, out

    def gated(self, both: Tensor) -> Tensor:
        """Return activation(gate) * up `[N, m]` of rows of gate and up, `[N, 2 m]`."""
        rows = both.shape[0]
        width = both.shape[1] // 2
        out = both.new_empty(rows, width)
        self.functions.fspad_gated(
            KINDS[both.dtype], both.data_ptr(), out.data_ptr(), rows, width, self.gate,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def tail(
        self,
        out: tuple[Tensor | None, Tensor | None, Tensor | None],
        mlps: Sequence[Mlp],
        norm: Tensor,
        following: tuple[Tensor | None, Tensor | None],
        widths: tuple[int, int, int, int],
        eps: float,
    ) -> Tail:
        """Build one call for all that lies between two attentions: `forward.TailParts` says what.

        `out` and `following` are products' weights, packed, with their biases, `out` with the norm
        of what it adds; all products' weights have one type. `widths`: of the attention's output,
        of x, of an MLP's gate, of the following product (0 where there is none).
        """
        weights = [*out, norm, *following, *(weight for mlp in mlps for weight in mlp)]
        packed = next(weight for weight in weights if weight is not None and weight.ndim == 2)
        kind = PRODUCTS[norm.dtype, packed.dtype]
        function = self.functions.fspad_tail
        pointers = (ctypes.c_void_p * len(weights))(*(pointer(w) for w in weights))
        numbers = (ctypes.c_long * 6)(*widths, len(mlps), self.gate)
        outs = widths[3] or widths[1]
        offset = self.norm_offset

        def run(x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
            result = x.new_empty(len(x), outs)
            seen = None if seen is None else seen.contiguous()
            function(
                kind, x.data_ptr(), pointer(seen), result.data_ptr(), pointers, numbers, len(x),
                eps, offset, torch.get_num_threads(),
            )  # fmt: skip
            return x, result

        run.weights = weights  # type: ignore[attr-defined]  # keeps them alive: `pointers` does not
        return run

    def attend(
        self,
        q: Tensor,
        kv: Tensor,
        rope: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        visible: Tensor | None,
        scale: float,
        first: Tensor | None = None,
    ) -> Tensor:
        """Rotate q and the keys of kv, write kv into the cache, and attend: `[N, H D]`.

        q `[N, H, D]` and kv `[M, 2 H_kv, D]` (keys, then values) are rows as products made them
        (strided), q the last N of the M. kv goes to the slots from `start` on of keys and values
        `[H_kv, slots, D]`; these are the last entries attended to. `visible [N, R]` says which of
        the last R each query attends to; without it, all. `first [N]` int64 leaves out the first so
        many of all those keys, of each query's own; without it, none. `rope [2, M or 1, D]` is as
        `forward.RopeTable` makes it. Raises RuntimeError past the last slot.
        """
        rows, heads, dim = q.shape
        written = kv.shape[0]
        slots = keys.shape[-2]
        if start + written > slots:
            raise RuntimeError(f"entries {start} to {start + written} of a cache of {slots}")
        visible = None if visible is None else visible.contiguous()
        numbers = (ctypes.c_long * 12)(
            rows, written, q.stride(0), kv.stride(0), 0 if rope.shape[1] == 1 else rope.stride(1),
            heads, kv.shape[1] // 2, dim, slots, start, start + written,
            0 if visible is None else visible.shape[1],
        )  # fmt: skip
        cos = rope.data_ptr()
        sin = cos + rope.stride(0) * rope.element_size()
        out = q.new_empty(rows, heads * dim)
        self.functions.fspad_attend(
            KINDS[q.dtype], q.data_ptr(), kv.data_ptr(), cos, sin, keys.data_ptr(),
            values.data_ptr(), pointer(visible), pointer(first), out.data_ptr(), numbers, scale,
            torch.get_num_threads(),
        )  # fmt: skip
        return out


def halved(weight: Tensor) -> Tensor:
    """Return a float32 weight in bfloat16 if no value is rounded, else the weight."""
    if weight.dtype != torch.float32:
        return weight
    half = weight.bfloat16()
    return half if torch.equal(half.float(), weight) else weight


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def fitting(weight: Tensor, *widths: int) -> Native | None:
    """Return the functions if they serve rows of these widths in this weight's precision."""
    served = weight.device.type == "cpu" and weight.dtype in KINDS
    return native() if served and all(width % WIDTH == 0 for width in widths) else None


def attends(dim: int) -> bool:
    """Whether the compiled attention serves heads of this width."""
    return dim % HEAD == 0 and dim <= LARGEST_HEAD


@cache
def native() -> Native | None:
    """Return the compiled functions, None where they are not available or not right."""
    if os.environ.get(VARIABLE, "1") == "0":
        return None
    try:
        path = compiler.built()
        try:
            library = compiler.loaded(path)
        except (OSError, AttributeError):  # of another system that shares this cache
            path = compiler.built(anew=True)
            library = compiler.loaded(path)
        functions = Native(library, path.stem)
        of_types = (_computes(functions, dtype) and _repeats(functions, dtype) for dtype in KINDS)
        if all(of_types) and _keeps_halves(functions):
            return functions
        reason = "its results are wrong here"
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        text = str(getattr(error, "stderr", "") or error).strip() or type(error).__name__
        reason = text.splitlines()[0]
    source = compiler.SOURCE.name
    note(f"note: forwards run without {source}, slower for every decoder: {reason}")
    return None


def _computes(functions: Native, dtype: torch.dtype) -> bool:
    """Whether the functions agree with torch, within their precision: the compiler is not ours."""
    stream = torch.Generator().manual_seed(1)
    plain = TorchOps(lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps))
    start = 131
    dim = HEAD

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream).to(dtype)

    def near(ours: Tensor, reference: Tensor) -> bool:
        return bool((ours.float() - reference.float()).abs().max() <= TOLERANCE[dtype])

    x = some(3, WIDTH)
    delta = some(3, WIDTH)
    weight = some(WIDTH)
    both = some(3, 4 * WIDTH)
    matrix = some(BLOCK + 5, WIDTH)
    bias = some(BLOCK + 5)
    q = some(3, 2, dim)
    kv = some(3, 2, dim)
    keys = some(1, 140, dim)
    values = some(1, 140, dim)
    rope = torch.stack([torch.ones(3, dim), torch.zeros(3, dim)]).to(dtype)
    visible = torch.ones(3, 3).tril().bool()
    with torch.inference_mode():
        expected = [
            *plain.add_norm(x, delta, weight, 1e-5),
            plain.gated(both),
            F.linear(x, matrix, bias),
        ]
        product = functions.product(x, functions.pack(matrix), len(matrix), bias)
        ours = [
            *functions.add_norm(x.clone(), delta, weight, 1e-5),
            functions.gated(both),
            product,
        ]
        seen = functions.attend(q, kv, rope, keys, values, start, visible, dim**-0.5)
        mask = F.pad(visible, (start, 0), value=True)
        all_keys = keys[:, : start + 3]
        all_values = values[:, : start + 3]
        reference = F.scaled_dot_product_attention(
            q.transpose(0, 1), all_keys, all_values, attn_mask=mask
        )
        ours.append(seen.reshape(3, 2, dim))
        expected.append(reference.transpose(0, 1))
        first = torch.tensor([3, 130, 132])
        seen = functions.attend(q, kv, rope, keys, values, start, visible, dim**-0.5, first)
        mask &= torch.arange(start + 3) >= first[:, None]
        reference = F.scaled_dot_product_attention(
            q.transpose(0, 1), all_keys, all_values, attn_mask=mask
        )
        ours.append(seen.reshape(3, 2, dim))
        expected.append(reference.transpose(0, 1))
        written = torch.equal(all_keys[0, start:], kv[:, 0])
        written &= torch.equal(all_values[0, start:], kv[:, 1])
    return written and all(map(near, ours, expected))


def _repeats(functions: Native, dtype: torch.dtype) -> bool:
    """Whether a row gets the same bits in any company.

    A compiler may sum otherwise where there are more rows.
    """
    stream = torch.Generator().manual_seed(2)
    start = 126
    dim = HEAD

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream).to(dtype)

    rope = torch.stack([torch.ones(6, dim), torch.zeros(6, dim)]).to(dtype)
    x = some(27, dim)
    packed = functions.pack(some(dim, dim))
    qkv = some(6, 3, dim)
    entries = some(2, 1, 140, dim)

    def seen(nodes: list[int], visible: Tensor) -> Tensor:
        keys, values = entries.clone()
        rows = qkv[nodes]
        return functions.attend(
            rows[:, :1], rows[:, 1:], rope[:, nodes], keys, values, start, visible, dim**-0.5
        )

    with torch.inference_mode():
        whole = functions.product(x, packed, dim)
        products = all(
            torch.equal(functions.product(x[:rows], packed, dim), whole[:rows])
            for rows in range(1, 27)
        )
        tree = torch.eye(6, dtype=torch.bool)
        tree[1:, 0] = True  # five children of one root
        together = seen(list(range(6)), tree)
        paths = (seen([0, child], torch.ones(2, 2).tril().bool())[1] for child in range(1, 6))
        return products and all(map(torch.equal, together[1:], paths))


def _keeps_halves(functions: Native) -> bool:
    """Whether a weight that is kept in bfloat16 gives the bits of the same in float32."""
    stream = torch.Generator().manual_seed(3)
    x = torch.randn(7, HEAD, generator=stream)
    half = torch.randn(BLOCK + 5, HEAD, generator=stream).bfloat16()
    whole = half.float()
    packs = functions.packed(half, x.dtype), functions.packed(whole, x.dtype)
    return all(
        torch.equal(*(functions.product(x[:rows], packed, len(half)) for packed in packs))
        for rows in range(1, len(x) + 1)
    )
