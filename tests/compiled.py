"""The mark of tests that compile the CPU's step: without a compiler torch runs in its place."""

import shutil

import pytest

from fspad_bench.engine.cpu import compiler

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, compiler.COMPILERS)), reason="no C++ compiler is installed"
)
