"""Compiles every kernel for a GPU of the given capability, as it would be launched there: `compile_all.py 90`."""

import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fspad_bench.engine.gpu import attention
from fspad_bench.engine.gpu import compaction as rows
from fspad_bench.engine.gpu import top_k_top_p as cut
from fspad_bench.engine.gpu import verification as choice

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
KINDS = {
    "*bf16": (torch.bfloat16, tl.bfloat16),
    "*fp16": (torch.float16, tl.float16),
    "*fp32": (torch.float32, tl.float32),
    "*fp64": (torch.float64, tl.float64),
}


def split(kind, rows, dim, splits=8):
    """An attention kernel as it is launched for these rows and this head dimension."""
    dtype, factor = KINDS[kind]
    columns, stages = attention.tile(dtype, rows, triton.next_power_of_2(dim))
    wide = tl.float64 if kind == "*fp64" else tl.float32
    shape = {
        "SCALE": 0.1,
        "ROWS": rows,
        "DIM": dim,
        "DIMS": triton.next_power_of_2(dim),
        "COLUMNS": columns,
    }
    words = {"WORDS": "i32"} | (
        dict.fromkeys(("PART", "MAXIMA", "SUMS"), "*fp64") if kind == "*fp64" else {}
    )
    return (
        attention._split,
        TREE | shape | {"FACTOR": factor, "SPLITS": splits, "WIDE": wide},
        kind,
        words,
        stages,
    )


WORDS = {"WORDS": "*i32"}
ROW = {"V": 128256, "SPLIT": cut.SPLIT, "SPLITS": 16, "WIDTH": 16, "BLOCK": cut.BLOCK}
SMALL = {"V": 97, "SPLIT": 128, "SPLITS": 1, "WIDTH": 1, "BLOCK": 128}
BOTH = [(ROW, False), (ROW, True), (SMALL, True)]
KERNELS = [
    split("*bf16", 64, 128),
    split("*bf16", 16, 64),
    split("*bf16", 32, 96, 1),
    split("*fp16", 16, 128),
    split("*fp32", 16, 128),
    split("*fp32", 16, 64, 1),
    split("*fp64", 16, 64),
    split("*fp64", 16, 16, 1),
    (attention._join, TREE | {"ROWS": 16, "DIM": 96, "DIMS": 128}, "*bf16", {}, 3),
    *(
        (choice._best, {"V": v, "BLOCK": choice.BLOCK, "SAMPLED": sampled}, kind, WORDS, 3)
        for v, sampled, kind in ((49152, True, "*bf16"), (97, False, "*fp64"))
    ),
    (cut._tops, ROW, "*bf16", WORDS, 3),
    *((cut._weigh, row | {"NUCLEUS": nucleus}, "*fp32", WORDS, 3) for row, nucleus in BOTH),
    *((cut._top_k, ROW | {"FEW": few}, "*bf16", WORDS, 3) for few in (False, True)),
    *((cut._last, ROW | {"NUCLEUS": nucleus}, "*fp32", WORDS, 3) for nucleus in (False, True)),
    *((cut._best_kept, row | {"NUCLEUS": nucleus}, "*bf16", WORDS, 3) for row, nucleus in BOTH),
    *(
        (choice._gather, {"BLOCKS": blocks, "WIDTH": width}, "", {}, 3)
        for blocks, width in ((24, 32), (1, 1))
    ),
    *(
        (choice._walk, {"WORDS": words, "WIDTH": width}, "", {}, 3)
        for words, width in ((2, 128), (1, 1))
    ),
    (rows._compact, {"DIM": 96, "DIMS": 128}, "*fp16", {}, 3),
]
for kernel, constants, kind, others, stages in KERNELS:
    names = kernel.arg_names
    types = POINTERS | others
    signature = {
        name: "constexpr" if name in constants else types.get(name, kind) for name in names
    }
    at = {(names.index(name),): value for name, value in constants.items() if name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name] != "constexpr" and name not in ("NODES", "STEP", "WORDS", "query_node")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=at, attrs=aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_stages": stages}
    )
    print(kernel.__name__, len(made.asm["cubin"]) > 0, made.metadata.shared)
