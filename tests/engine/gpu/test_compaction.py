"""Compaction moves the accepted rows and no other that counts."""

import pytest
import torch

from fspad_bench.engine.gpu import compaction as rows
from fspad_bench.engine.gpu import reference
from fspad_bench.engine.gpu.tensors import Walk


@pytest.mark.parametrize("kernels", [rows, reference], ids=["triton", "reference"])
@pytest.mark.parametrize("path", [[0], [0, 1, 2], [0, 3, 7], [0, 1, 6], list(range(8))], ids=str)
@pytest.mark.parametrize(("prefix", "dim"), [(0, 64), (33, 96)])
def test_rows_of_the_path_follow_the_prefix(kernels, path, prefix, dim, device):
    held = torch.randn(3, 2, 2, prefix + 20, dim, device=device)
    wanted = held[..., [*range(prefix), *[prefix + node for node in path]], :].clone()
    padded = torch.tensor(path + [0] * (8 - len(path)), dtype=torch.int32, device=device)
    found = Walk(padded, torch.tensor(len(path), dtype=torch.int32, device=device), padded[0])
    kernels.compact(held, torch.tensor([prefix], dtype=torch.int32, device=device), found)
    assert torch.equal(held[..., : prefix + len(path), :], wanted)
