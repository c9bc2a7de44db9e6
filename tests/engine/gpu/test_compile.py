"""Every kernel compiles to machine code for a GPU. Compiling needs no GPU, and the interpreter
would not show a failure.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP_K_TOP_P = ["_tops", "_weigh", "_top_k", "_last", "_best_kept"]
NAMES = [
    "_split",
    "_join",
    "_best",
    *TOP_K_TOP_P,
    "_gather",
    "_walk",
    "_compact",
    "_path_split",
    "_product",
]
MORE_TOP_K_TOP_P = [*["_weigh"] * 2, "_top_k", "_last", *["_best_kept"] * 2]
MORE_ROWS = [*["_path_split"] * 3, *["_product"] * 2]
MORE = [*["_split"] * 8, "_best", *MORE_TOP_K_TOP_P, "_gather", "_walk", *MORE_ROWS]


@pytest.mark.wide
@pytest.mark.parametrize(
    ("capability", "more"),
    [
        (90, []),
        pytest.param(90, MORE, marks=pytest.mark.nightly),
        pytest.param(80, MORE, marks=pytest.mark.nightly),
    ],
)
def test_every_kernel_compiles(capability, more, tmp_path):
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_all.py")
    result = subprocess.run(
        [sys.executable, script, str(capability), *["all"] * bool(more)],
        capture_output=True,
        text=True,
        env=env,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, *_ in lines] == NAMES + more
    for _, has_code, shared in lines:
        assert has_code == "True"
        assert int(shared) <= 99 << 10  # what a block may use on the smaller cards too
