"""Every kernel compiles to machine code for a GPU, which needs none: the interpreter would not notice if it did not."""

import os
import subprocess
import sys

import pytest

COMPILE = """
import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fspad_bench.kernels import attention, choice, rows

TREE = dict(NODES=8, GROUP=3, SPLITS=8, DIM=96, DIMS=128, WIDE=tl.float32)
POINTERS = dict(
    BITS="*i64", LENGTH="*i32", PART="*fp32", MAXIMA="*fp32", SUMS="*fp32", DEPTHS="*i32", POSITION="*i32",
    WORDS="*i32", NUMBERS="*fp32", CHOICE="*i32", TOKENS="*i32", VALUES="*fp32", NODE_TOKENS="*i32", PARENTS="*i32",
    PATH="*i32", COUNT="*i32", BONUS="*i32", query_head="i32", query_node="i32", cache_head="i32", cache_row="i32",
    stride="i64",
)
SPLIT = TREE | dict(WORDS=1, SCALE=0.1, ROWS=32)
(HALF, MANY), (FULL, FEW) = attention.tile(torch.bfloat16), attention.tile(torch.float32)
KERNELS = [
    (attention._split, SPLIT | dict(FACTOR=tl.bfloat16, COLUMNS=HALF), "*bf16", MANY),
    (attention._split, SPLIT | dict(FACTOR=tl.float32, COLUMNS=FULL, SPLITS=1), "*fp32", FEW),
    (attention._join, TREE | dict(ROWS=16), "*bf16"),
    (choice._best, dict(V=49152, BLOCK=choice.BLOCK, SAMPLED=True), "*bf16"),
    (choice._cut, dict(V=49152, BLOCK=choice.CUT_BLOCK), "*fp32"),
    (choice._gather, dict(BLOCKS=24, WIDTH=32), ""),
    (choice._walk, dict(NODES=100, WORDS=2, WIDTH=128), ""),
    (rows._compact, dict(DIM=96, DIMS=128), "*fp16"),
]
for kernel, constants, kind, *stages in KERNELS:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, kind) for name in names}
    at = {(names.index(name),): value for name, value in constants.items() if name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=at)
    options = dict(num_stages=stages[0]) if stages else {}
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    print(kernel.__name__, len(made.asm["cubin"]) > 0, made.metadata.shared)
"""


@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.nightly)])
def test_every_kernel_compiles(capability, tmp_path):
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, script, str(capability)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in lines] == "_split _split _join _best _cut _gather _walk _compact".split()
    for _, made, shared in lines:
        assert made == "True"
        assert int(shared) <= 99 << 10  # what a block may use on the smaller cards too
