"""Compile every kernel for a GPU of a capability, as it would be launched: `compile_all.py 90`.

With the word `all`, also at other shapes and options, which takes three times as long.

Prints a line per kernel: its name, whether there is machine code, its bytes of shared memory.
"""

import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fspad_bench.engine.gpu import attention, compaction, invariant, top_k_top_p, verification

TREE = {"GROUP": 3, "SPLITS": 8, "WIDE": tl.float32}
POINTERS = {
    "BITS": "*i64",
    "LENGTH": "*i32",
    "PART": "*fp32",
    "MAXIMA": "*fp32",
    "SUMS": "*fp32",
    "DEPTHS": "*i32",
    "POSITION": "*i32",
    "NUMBERS": "*fp32",
    "CHOICE": "*i32",
    "TOKENS": "*i32",
    "VALUES": "*fp32",
    "NODE_TOKENS": "*i32",
    "PARENTS": "*i32",
    "PATH": "*i32",
    "COUNT": "*i32",
    "BONUS": "*i32",
    "NODES": "i32",
    "STEP": "i32",
    **dict.fromkeys(("TOPS", "MASS", "LEVEL", "TIES", "PARTS", "FIT", "SHARES", "COUNTS"), "*fp32"),
    **dict.fromkeys(("EDGES", "MARKS", "ENDS"), "*i32"),
    "query_head": "i32",
    "query_node": "i32",
    "cache_head": "i32",
    "cache_row": "i32",
    "stride": "i64",
}
DTYPES = {
    "*bf16": (torch.bfloat16, tl.bfloat16),
    "*fp16": (torch.float16, tl.float16),
    "*fp32": (torch.float32, tl.float32),
    "*fp64": (torch.float64, tl.float64),
}
UNALIGNED = ("NODES", "STEP", "WORDS", "query_node")  # not known to be multiples of 16


def split(kind, rows, dim, splits=8, window=0):
    """An attention kernel as it is launched for these rows, this head dimension and window."""
    dtype, factor = DTYPES[kind]
    dims = triton.next_power_of_2(dim)
    columns, stages = attention.tile(dtype, rows, dims)
    constants = TREE | {
        "SCALE": 0.1,
        "ROWS": rows,
        "DIM": dim,
        "DIMS": dims,
        "COLUMNS": columns,
        "FACTOR": factor,
        "SPLITS": splits,
        "WINDOW": window,
        "WIDE": tl.float64 if kind == "*fp64" else tl.float32,
    }
    types = {"WORDS": "i32"}
    if kind == "*fp64":
        types |= dict.fromkeys(("PART", "MAXIMA", "SUMS"), "*fp64")
    return attention._split, constants, kind, types, stages


def path_split(kind, group, dim, window=0):
    """The attention kernel of equal bits, as it is launched for this group and head dimension."""
    dtype, factor = DTYPES[kind]
    _, constants = invariant.attention_launch(1024, 1, 2 * group, 2, dim, dtype)
    constants |= {"SCALE": 0.1, "WINDOW": window, "FACTOR": factor}
    types = {"WORDS": "i32"}
    if kind == "*fp64":
        types |= dict.fromkeys(("PART", "MAXIMA", "SUMS"), "*fp64")
    return invariant._path_split, constants, kind, types, 3


def product(kind, outs, width, has_bias):
    dtype, factor = DTYPES[kind]
    _, constants = invariant.product_launch(1, outs, width, dtype)
    return (
        invariant._product,
        constants | {"FACTOR": factor, "HAS_BIAS": has_bias},
        kind,
        {"COUNT": "i32"},
        3,
    )


WORDS = {"WORDS": "*i32"}
LARGE = {
    "V": 128256,
    "SPLIT": top_k_top_p.SPLIT,
    "SPLITS": 16,
    "WIDTH": 16,
    "BLOCK": top_k_top_p.BLOCK,
}
SMALL = {"V": 97, "SPLIT": 128, "SPLITS": 1, "WIDTH": 1, "BLOCK": 128}


def best(v, sampled, kind):
    constants = {"V": v, "BLOCK": verification.BLOCK, "SAMPLED": sampled}
    return verification._best, constants, kind, WORDS, 3


def weigh(sizes, by_mass):
    return top_k_top_p._weigh, sizes | {"BY_MASS": by_mass}, "*fp32", WORDS, 3


def top_k(has_top_k):
    return top_k_top_p._top_k, LARGE | {"HAS_TOP_K": has_top_k}, "*bf16", WORDS, 3


def last(has_top_p):
    return top_k_top_p._last, LARGE | {"HAS_TOP_P": has_top_p}, "*fp32", WORDS, 3


def best_kept(sizes, has_top_p):
    return top_k_top_p._best_kept, sizes | {"HAS_TOP_P": has_top_p}, "*bf16", WORDS, 3


def gather(blocks, width):
    return verification._gather, {"BLOCKS": blocks, "WIDTH": width}, "", {}, 3


def walk(words, width):
    return verification._walk, {"WORDS": words, "WIDTH": width}, "", {}, 3


# kernel, its constants, the type of the pointers that POINTERS does not name, other types, stages
KERNELS = [
    split("*bf16", 32, 96, 1),
    (attention._join, TREE | {"ROWS": 16, "DIM": 96, "DIMS": 128}, "*bf16", {}, 3),
    best(49152, True, "*bf16"),
    (top_k_top_p._tops, LARGE, "*bf16", WORDS, 3),
    weigh(LARGE, True),
    top_k(True),
    last(True),
    best_kept(LARGE, True),
    gather(24, 32),
    walk(2, 128),
    (compaction._compact, {"DIM": 96, "DIMS": 128}, "*fp16", {}, 3),
    path_split("*bf16", 3, 64),
    product("*bf16", 960, 576, False),
]
MORE = [
    split("*bf16", 32, 96, 8, 1024),
    split("*bf16", 64, 128),
    split("*fp32", 16, 128),
    split("*fp64", 16, 16, 1),
    split("*bf16", 16, 64),
    split("*fp16", 16, 128),
    split("*fp32", 16, 64, 1),
    split("*fp64", 16, 64),
    best(97, False, "*fp64"),
    weigh(LARGE, False),
    weigh(SMALL, True),
    top_k(False),
    last(False),
    best_kept(LARGE, False),
    best_kept(SMALL, True),
    gather(1, 1),
    walk(1, 1),
    path_split("*bf16", 4, 128, 1024),
    path_split("*fp32", 3, 64),
    path_split("*fp64", 2, 16),
    product("*fp32", 97, 64, True),
    product("*fp64", 97, 64, False),
]
for kernel, constants, kind, others, stages in [*KERNELS, *(MORE if "all" in sys.argv else [])]:
    names = kernel.arg_names
    types = POINTERS | others
    signature = {
        name: "constexpr" if name in constants else types.get(name, kind) for name in names
    }
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name] != "constexpr" and name not in UNALIGNED
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_stages": stages}
    )
    print(kernel.__name__, len(compiled.asm["cubin"]) > 0, compiled.metadata.shared)
