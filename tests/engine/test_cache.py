"""The entries of a cache against a list that keeps the same paths."""

from __future__ import annotations

import random

import pytest
import torch

from fspad_bench.engine import gpu, stock
from fspad_bench.engine.cache import KVCache, move_entries
from fspad_bench.engine.gpu.backend import kernel_compaction

LAYERS = 3
HEADS = 2
DIM = 4
CPU = torch.device("cpu")


@pytest.fixture(params=["host", "reference"])
def cache(request, monkeypatch):
    """`cache(slots)`: an empty cache, compacted by the host or by the kernels' reference."""
    monkeypatch.setenv(gpu.VARIABLE, request.param)
    kernels = gpu.chosen(CPU)
    compact = kernel_compaction(kernels) if kernels else None

    def cache(slots):
        return KVCache([CPU] * LAYERS, HEADS, slots, DIM, torch.float64, compact)

    return cache


def entries_of(marks: list[int]) -> torch.Tensor:
    """Return entries `[layers, 2, H, N, D]` that carry their marks; no two of them are equal."""
    values = torch.tensor(marks, dtype=torch.float64)[:, None] * 1000 + torch.arange(DIM)
    heads = torch.arange(LAYERS * 2 * HEADS, dtype=torch.float64) * 10
    return (values + heads[:, None, None]).view(LAYERS, 2, HEADS, len(marks), DIM)


def write(cache: KVCache, start: int, marks: list[int]) -> None:
    cache.entries[..., start : start + len(marks), :] = entries_of(marks)


def assert_holds(cache: KVCache, marks: list[int]) -> None:
    expected = entries_of(marks)
    assert cache.entries[..., : len(marks), :].equal(expected)
    for layer in range(LAYERS):
        assert cache.keys[layer][:, : len(marks)].equal(expected[layer, 0])
        assert cache.values[layer][:, : len(marks)].equal(expected[layer, 1])


def test_keys_and_values_are_views_of_one_tensor(cache):
    empty = cache(10)
    assert empty.slots == 10
    assert empty.entries.shape == (LAYERS, 2, HEADS, 10, DIM)
    assert not empty.entries.any()
    for view in (*empty.keys, *empty.values):
        assert view.untyped_storage().data_ptr() == empty.entries.untyped_storage().data_ptr()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(20))
def test_random_steps_keep_exactly_the_paths(cache, seed):
    rng = random.Random(seed)
    filled = cache(400)
    kept = []
    mark = 0
    for _ in range(10):
        nodes = rng.randrange(1, 30)
        marks = list(range(mark, mark + nodes))
        mark += nodes
        write(filled, len(kept), marks)
        path = sorted(rng.sample(range(nodes), rng.randrange(nodes + 1)))
        filled.keep(len(kept), path)
        kept += [marks[node] for node in path]
        assert_holds(filled, kept)


@pytest.mark.parametrize("path", [[], [0], [0, 1], [0, 1, 2, 3], [0, 3], [0, 2, 3], [1, 3], [3]])
def test_keep_leaves_earlier_entries_as_they_are(cache, path):
    filled = cache(16)
    write(filled, 0, [7, 8, 9])
    write(filled, 3, [20, 21, 22, 23])
    filled.keep(3, path)
    assert_holds(filled, [7, 8, 9, *(20 + node for node in path)])


def test_a_path_that_lies_in_place_moves_nothing():
    moves = []
    filled = KVCache(
        [CPU] * LAYERS, HEADS, 8, DIM, torch.float64, lambda *move: moves.append(move[1:])
    )
    for path in ([], [0], [0, 1, 2]):
        filled.keep(3, path)
    filled.keep(3, [0, 2])
    assert moves == [(3, [0, 2])]


def test_of_layers_on_several_devices_each_part_is_compacted():
    filled = KVCache([CPU, torch.device("cpu:1"), torch.device("cpu:1")], 1, 4, 1, torch.float64)
    assert [part.shape[0] for part in filled.parts] == [1, 2]
    for part in filled.parts:
        part[...] = torch.arange(4.0)[:, None]
    filled.keep(1, [0, 2])
    expected = torch.tensor([0.0, 1.0, 3.0])[:, None].expand(3, 2, 1, 3, 1).double()
    assert filled.first(3).equal(expected)
    for layer in range(3):
        assert filled.keys[layer][0, :3].equal(expected[layer, 0, 0])
        assert filled.values[layer][0, :3].equal(expected[layer, 1, 0])
    with pytest.raises(RuntimeError, match="no one tensor of entries"):
        _ = filled.entries


def test_overlapping_moves_read_before_they_write():
    entries = torch.arange(6.0).view(1, 1, 1, 6, 1).clone()
    move_entries(entries, 1, [1, 2, 3, 4])
    assert entries.flatten().tolist() == [0, 2, 3, 4, 5, 5]


def test_the_buffer_is_allocated_once(cache):
    filled = cache(64)
    address = filled.entries.data_ptr()
    for start in range(40):
        write(filled, start, [start, start + 100, start + 200])
        filled.keep(start, [0, 2])
    assert filled.entries.data_ptr() == address
    assert filled.keys[0].data_ptr() == address


def test_the_stock_forward_writes_and_reads_the_same_entries(cache):
    filled = cache(10)
    marks = [1, 2, 3]
    write(filled, 0, marks)
    layer = stock._StockLayer(filled.keys[1], filled.values[1], len(marks))
    new = entries_of([4, 5])[1]
    keys, values = layer.update(new[0][None], new[1][None])
    expected = entries_of([1, 2, 3, 4, 5])[1]
    assert keys[0].equal(expected[0])
    assert values[0].equal(expected[1])
    assert keys.data_ptr() == filled.keys[1].data_ptr()
    assert layer.get_seq_length() == 5
    assert layer.get_mask_sizes(4) == (9, 0)
    assert layer.get_max_length() == layer.get_max_cache_shape() == 10
    with pytest.raises(RuntimeError, match="allocated by its session"):
        layer.lazy_initialization(keys, values)
