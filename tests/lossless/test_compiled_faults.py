"""Faults compiled into the step: its own test at load passes them, a certification does not.

Those that compile a patched copy of the C++ into a temporary folder run nightly.
"""

import shutil

import pytest
import torch
from compiled import needs_compiler

from fspad_bench.engine.cpu import compiler, native
from fspad_bench.engine.together import keeps_bits
from fspad_bench.lossless import engine, engines
from fspad_bench.lossless.reference import Reference

COUNT = "const long blocks = (call.length + KEY_BLOCK - 1) / KEY_BLOCK - skipped;"
FAULTS = {  # name -> (file, the line that is right, the line that is wrong, precision, the check)
    "keys beyond 1024 skipped": (
        "attention.hpp",
        COUNT,
        COUNT.replace(
            "(call.length + KEY_BLOCK - 1) / KEY_BLOCK",
            "std::min(8L, (call.length + KEY_BLOCK - 1) / KEY_BLOCK)",
        ),
        torch.float32,
        "attention",
    ),
    "bfloat16 scaled by 1.03": (
        "attention_block.hpp",
        "keys, block.count, dim, call.scale, scores",
        "keys, block.count, dim, call.scale * (sizeof(T) == 2 ? 1.03f : 1.f), scores",
        torch.bfloat16,
        "attention",
    ),
    "a path that crosses blocks loses a key": (
        "attention_block.hpp",
        "const long count = std::min(row_keys - earlier, KEY_BLOCK - block.common);",
        "const long count = std::max("
        "0L, std::min(row_keys - earlier, KEY_BLOCK - block.common) - (earlier > 0));",
        torch.float32,
        "attention",
    ),
    "values of the last block weighted by its neighbour's": (
        "attention.hpp",
        "const float share = std::exp(partial[0] - maximum);",
        "const float share = std::exp(partials[(b > 15 ? b - 1 : b) * stride] - maximum);",
        torch.float32,
        "attention",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_line_that_a_fault_changes_is_there_once(name):
    file, right, wrong, *_ = FAULTS[name]
    text = (compiler.SOURCE.parent / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    assert wrong != right


@pytest.fixture
def spoiled(tmp_path, monkeypatch):
    """`spoiled(file, right, wrong)` compiles the step with one line exchanged, for new targets."""

    def spoiled(file, right, wrong):
        folder = tmp_path / "cpu"
        shutil.copytree(compiler.SOURCE.parent, folder)
        source = folder / file
        text = source.read_text(encoding="utf-8")
        assert text.count(right) == 1
        source.write_text(text.replace(right, wrong), encoding="utf-8")
        monkeypatch.setattr(compiler, "SOURCE", folder / "native.cpp")
        monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
        native.native.cache_clear()
        functions = native.native()
        monkeypatch.setattr(native, "native", lambda: functions)
        return functions

    yield spoiled
    monkeypatch.undo()
    native.native.cache_clear()


@pytest.mark.nightly
@needs_compiler
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_compiled_step_is_refused(name, spoiled):
    file, right, wrong, dtype, name_of_check = FAULTS[name]
    assert spoiled(file, right, wrong) is not None, "its own test at load does not see it"
    target = engines.wide_target(dtype)
    assert keeps_bits(target)
    checks = engine.check_engine(Reference(target), engine.FEW, "spoiled")
    failed = {check.name for check in checks if not check.holds}
    assert name_of_check in failed, checks


@pytest.mark.nightly
@needs_compiler
def test_the_same_way_without_a_fault_holds(spoiled):
    assert spoiled("attention.hpp", COUNT, COUNT) is not None
    for dtype in (torch.float32, torch.bfloat16):
        target = engines.wide_target(dtype)
        checks = engine.check_engine(Reference(target), engine.FEW, "whole")
        assert [check for check in checks if not check.holds] == []
