"""Running out of memory is recognised, whoever says it."""

import pytest
import torch

from fspad_bench.util.memory import is_out_of_memory
from fspad_bench.util.strangers import described


def caused(error, cause):
    error.__cause__ = cause
    return error


class Unprintable(RuntimeError):
    def __str__(self):
        raise ValueError


CYCLE = ValueError("a cycle")
CYCLE.__cause__ = caused(KeyError("k"), CYCLE)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("any text"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (caused(ValueError("no forward"), MemoryError()), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
        (Unprintable(), False),
        (CYCLE, False),
    ],
)
def test_a_lack_of_memory_is_recognised(error, expected):
    assert is_out_of_memory(error) is expected
    assert described(error).startswith("out of memory: ") is expected


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as caught:
        [None] * (1 << 60)
    assert described(caught.value) == "out of memory: MemoryError"
