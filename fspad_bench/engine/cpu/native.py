"""A step of few rows, compiled for this machine: `native.cpp`, and how it is called.

Beside its four products a layer has some twenty small operations, torch's attention on a CPU is bound by its few query
rows and not by memory, and a library's products round a row one way by itself and another way beside others. A C++
compiler makes of it what reads each weight once, at the speed of memory, and gives a tree's node the very bits that its
path would get one token at a time: so in bfloat16 too every arm's output is vanilla's own. It takes a second, on first
use, and is kept in the user's cache. Every arm runs it, vanilla first of all, and the record names it; without a
compiler, or with FSPAD_BENCH_NATIVE=0, torch's operations do the same, slower and less alike. It is for inference on a
CPU, in float32 and bfloat16.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.engine.cpu.huge_pages import Arena
from fspad_bench.util.paths import cache_home

NAME = "native"
VARIABLE = "FSPAD_BENCH_NATIVE"
SOURCE = Path(__file__).with_suffix(".cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)
LINKED = ("-fopenmp", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-psabi")
FUNCTIONS = ("pack", "product", "add_norm", "gated", "between", "attend")
KINDS = {torch.float32: 0, torch.bfloat16: 1}
# what widths, and those of heads, must be multiples of
WIDTH = 32
HEAD = 64
BLOCK = 32  # outputs of a weight that lie together
LARGEST_HEAD = 256
ROWS = 128  # up to so many a product is ours; a tree is never larger
PACKED = Arena()
Between = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}


class Plain:
    """The same by torch's own operations, for whatever the compiled functions are not for."""

    compiled = False
    signature = ""

    def __init__(self, norm: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        """`norm(x, weight, eps)` is an RMS norm of the last dimension."""
        self.norm = norm

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x + delta, perhaps in the place of x, and its RMS norm; `[N, d]` each."""
        x = x if delta is None else x + delta
        return x, self.norm(x, weight, eps)

    def gated(self, both: Tensor) -> Tensor:
        """Rows of gate and up, `[N, 2 m]` -> silu(gate) up, `[N, m]`."""
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up


class Native:
    """The compiled functions. Their inputs are contiguous but where it says rows."""

    compiled = True

    def __init__(self, functions: ctypes.CDLL, signature: str = "") -> None:
        """`signature` tells these functions, as compiled here, from any others."""
        self.functions = functions
        self.signature = signature

    def pack(self, weight: Tensor) -> Tensor:
        """A weight `[out, in]` in the order in which `product` reads it, `[out, padded to blocks, in]`."""
        weight = weight.contiguous()
        outs, width = weight.shape
        packed = PACKED.zeros((-(-outs // BLOCK) * BLOCK, width), weight.dtype)
        self.functions.fspad_pack(
            KINDS[weight.dtype], weight.data_ptr(), packed.data_ptr(), width, outs
        )
        return packed

    def product(self, x: Tensor, packed: Tensor, outs: int, bias: Tensor | None = None) -> Tensor:
        """x `[..., in]` -> x W^T + b `[..., out]`, of few rows."""
        width = packed.shape[1]
        out = x.new_empty(*x.shape[:-1], outs)
        self.functions.fspad_product(
            KINDS[x.dtype], x.data_ptr(), packed.data_ptr(), None if bias is None else bias.data_ptr(),
            out.data_ptr(), x.numel() // width, width, outs, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x + delta, in the place of x, and its RMS norm; `[N, d]` each."""
        out = torch.empty_like(x)
        self.functions.fspad_add_norm(
            KINDS[x.dtype], x.data_ptr(), None if delta is None else delta.data_ptr(), weight.data_ptr(),
            out.data_ptr(), *x.shape, eps, torch.get_num_threads(),
        )  # fmt: skip
        return x, out

    def gated(self, both: Tensor) -> Tensor:
        """Rows of gate and up, `[N, 2 m]` -> silu(gate) up, `[N, m]`."""
        rows = both.shape[0]
        width = both.shape[1] // 2
        out = both.new_empty(rows, width)
        kind = KINDS[both.dtype]
        threads = torch.get_num_threads()
        self.functions.fspad_gated(kind, both.data_ptr(), out.data_ptr(), rows, width, threads)
        return out

    def between(
        self, weights: Sequence[Tensor | None], widths: Sequence[int], eps: float
    ) -> Between:
        """One call for what `between` in `forward` is made of: (x, seen) -> (x, rows of the next product).

        Of the weights, those of products are packed and have their bias behind them: out, norm, gate and up, down,
        norm, next product. The widths: of what is seen, of x, of the gate, of the next product (0: there is none).
        """
        kind = KINDS[weights[0].dtype]
        function = self.functions.fspad_between
        pointers = (ctypes.c_void_p * len(weights))(
            *(None if w is None else w.data_ptr() for w in weights)
        )
        numbers = (ctypes.c_long * len(widths))(*widths)
        outs = widths[-1] or widths[1]

        def run(x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
            out = x.new_empty(len(x), outs)
            seen = seen.contiguous()
            function(
                kind, x.data_ptr(), seen.data_ptr(), out.data_ptr(), pointers, numbers, len(x), eps,
                torch.get_num_threads(),
            )  # fmt: skip
            return x, out

        run.weights = weights  # alive as long as their places are asked for
        return run

    def attend(
        self, q: Tensor, kv: Tensor, rope: Tensor, keys: Tensor, values: Tensor, start: int, visible: Tensor | None,
        scale: float,
    ) -> Tensor:  # fmt: skip
        """Rotate q and the keys of kv, write kv into the cache, and attend: `[N, H D]`.

        q `[N, H, D]` and kv `[M, 2 H_kv, D]` (keys, then values) are rows as products made them, q the last N of the M.
        kv goes to the rows from `start` on of keys and values `[(1,) H_kv, capacity, D]`, the last that are seen. Of
        these `visible [N, R]` says which of the last R each query sees; without it, all. `rope [2, M or 1, D]` is as
        `forward.LeanForward.rope` makes it.
        """
        rows, heads, dim = q.shape
        visible = None if visible is None else visible.contiguous()
        written = kv.shape[0]
        kv_heads = kv.shape[1] // 2
        stride = 0 if rope.shape[1] == 1 else rope.stride(1)
        tail = 0 if visible is None else visible.shape[1]
        numbers = (ctypes.c_long * 12)(
            rows, written, q.stride(0), kv.stride(0), stride, heads, kv_heads, dim, keys.shape[-2], start,
            start + written, tail,
        )  # fmt: skip
        cos = rope.data_ptr()
        out = q.new_empty(rows, heads * dim)
        self.functions.fspad_attend(
            KINDS[q.dtype], q.data_ptr(), kv.data_ptr(), cos, cos + rope.stride(0) * rope.element_size(),
            keys.data_ptr(), values.data_ptr(), None if visible is None else visible.data_ptr(), out.data_ptr(),
            numbers, scale, torch.get_num_threads(),
        )  # fmt: skip
        return out


def fitting(weight: Tensor, *widths: int) -> Native | None:
    """The functions, where they serve rows of these widths in this weight's precision."""
    served = (
        weight.device.type == "cpu"
        and weight.dtype in KINDS
        and all(width % WIDTH == 0 for width in widths)
    )
    return native() if served else None


def attends(dim: int) -> bool:
    """Whether heads so wide can be attended with."""
    return dim % HEAD == 0 and dim <= LARGEST_HEAD


@cache
def native() -> Native | None:
    """The compiled functions, None where they cannot be had or do not compute what they should."""
    if os.environ.get(VARIABLE, "1") == "0":
        return None
    try:
        path = _built()
        found = Native(_loaded(path), path.stem)
        if all(_computes(found, dtype) and _repeats(found, dtype) for dtype in KINDS):
            return found
        reason = "its results are wrong here"
    except (OSError, subprocess.SubprocessError) as error:
        reason = (
            str(getattr(error, "stderr", "") or error).strip() or type(error).__name__
        ).splitlines()[0]
    print(
        f"note: forwards run without {SOURCE.name}, slower in every arm alike: {reason}",
        file=sys.stderr,
    )
    return None


def _computes(found: Native, dtype: torch.dtype) -> bool:
    """Whether they compute, near enough for their precision, what torch does: a compiler is not ours."""
    stream = torch.Generator().manual_seed(1)
    plain = Plain(lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps))
    bound = TOLERANCE[dtype]
    start = 131
    dim = HEAD

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream).to(dtype)

    def near(ours: Tensor, theirs: Tensor) -> bool:
        return bool((ours.float() - theirs.float()).abs().max() <= bound)

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
        expected = (
            *plain.add_norm(x, delta, weight, 1e-5),
            plain.gated(both),
            F.linear(x, matrix, bias),
        )
        product = found.product(x, found.pack(matrix), len(matrix), bias)
        ours = *found.add_norm(x.clone(), delta, weight, 1e-5), found.gated(both), product
        seen = found.attend(q, kv, rope, keys, values, start, visible, dim**-0.5).reshape(3, 2, dim)
        mask = F.pad(visible, (start, 0), value=True)
        all_keys = keys[:, : start + 3]
        all_values = values[:, : start + 3]
        theirs = F.scaled_dot_product_attention(
            q.transpose(0, 1), all_keys, all_values, attn_mask=mask
        ).transpose(0, 1)
        written = torch.equal(all_keys[0, start:], kv[:, 0]) and torch.equal(
            all_values[0, start:], kv[:, 1]
        )
    return written and all(map(near, (*ours, seen), (*expected, theirs)))


def _repeats(found: Native, dtype: torch.dtype) -> bool:
    """Whether a row gets the same bits in any company: a compiler may sum otherwise where there are more rows."""
    stream = torch.Generator().manual_seed(2)
    start = 126
    dim = HEAD

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream).to(dtype)

    rope = torch.stack([torch.ones(6, dim), torch.zeros(6, dim)]).to(dtype)
    x = some(27, dim)
    packed = found.pack(some(dim, dim))
    qkv = some(6, 3, dim)
    held = some(2, 1, 140, dim)

    def seen(nodes: list[int], visible: Tensor) -> Tensor:
        keys, values = held.clone()
        rows = qkv[nodes]
        return found.attend(
            rows[:, :1], rows[:, 1:], rope[:, nodes], keys, values, start, visible, dim**-0.5
        )

    with torch.inference_mode():
        whole = found.product(x, packed, dim)
        products = all(
            torch.equal(found.product(x[:rows], packed, dim), whole[:rows]) for rows in range(1, 27)
        )
        tree = torch.eye(6, dtype=torch.bool)
        tree[1:, 0] = True  # five children of one root
        together = seen(list(range(6)), tree)
        paths = (seen([0, child], torch.ones(2, 2).tril().bool())[1] for child in range(1, 6))
        return products and all(map(torch.equal, together[1:], paths))


def _built(*options: str) -> Path:
    """The shared library for this processor and compiler, compiled on first use."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"no C++ compiler ({', '.join(COMPILERS)}, or CXX) is installed")
    command = [compiler, *FLAGS, *options, str(SOURCE), *_threads(), *LINKED]
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    told = "\n".join([version, _processor(), *command[1:], SOURCE.read_text(encoding="utf-8")])
    folder = cache_home() / "native"
    path = folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            subprocess.run(
                [*command, "-o", str(made)], check=True, capture_output=True, text=True, timeout=300
            )
            os.replace(made, path)
    return path


def _threads() -> list[str]:
    """torch's own OpenMP, linked before any other: of two pools of threads each would spin while the other works."""
    return [str(path) for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))]


def _processor() -> str:
    """What `-march=native` goes by."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )


def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    number = ctypes.c_long
    last = [ctypes.c_float, ctypes.c_int]
    library.fspad_pack.argtypes = [ctypes.c_int, pointer, pointer, number, number]
    library.fspad_product.argtypes = [
        ctypes.c_int,
        *[pointer] * 4,
        number,
        number,
        number,
        ctypes.c_int,
    ]
    library.fspad_add_norm.argtypes = [ctypes.c_int, *[pointer] * 4, number, number, *last]
    library.fspad_gated.argtypes = [ctypes.c_int, pointer, pointer, number, number, ctypes.c_int]
    library.fspad_between.argtypes = [ctypes.c_int, *[pointer] * 5, number, *last]
    library.fspad_attend.argtypes = [ctypes.c_int, *[pointer] * 9, *last]
    for name in FUNCTIONS:
        getattr(library, f"fspad_{name}").restype = None
    return library
