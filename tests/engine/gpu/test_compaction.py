"""Compaction moves the accepted entries and changes nothing before them."""

import pytest
import torch

from fspad_bench.engine.gpu import compaction, reference
from fspad_bench.engine.gpu.tensors import Walk


@pytest.mark.parametrize("kernels", [compaction, reference], ids=["triton", "reference"])
@pytest.mark.parametrize("path", [[0], [0, 1, 2], [0, 3, 7], [0, 1, 6], list(range(8))], ids=str)
@pytest.mark.parametrize(("prefix", "dim"), [(0, 64), (33, 96)])
def test_entries_of_the_path_follow_the_prefix(kernels, path, prefix, dim, device):
    entries = torch.randn(3, 2, 2, prefix + 20, dim, device=device)
    expected = entries[..., [*range(prefix), *[prefix + node for node in path]], :].clone()
    padded = torch.tensor(path + [0] * (8 - len(path)), dtype=torch.int32, device=device)
    walk = Walk(padded, torch.tensor(len(path), dtype=torch.int32, device=device), padded[0])
    kernels.compact(entries, torch.tensor([prefix], dtype=torch.int32, device=device), walk)
    assert torch.equal(entries[..., : prefix + len(path), :], expected)
