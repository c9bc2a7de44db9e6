"""The rows of the cache against a list that does the same."""

from __future__ import annotations

import random

import pytest
import torch

from fspad_bench.engine.cache import Rows, TreeCache

LAYERS, HEADS, DIM = 3, 2, 4


def rows_of(marks: list[int], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[1, H, N, D]` that carry their marks; no two layers, heads or kinds are alike."""
    base = torch.tensor(marks, dtype=torch.float64)[:, None] * 1000 + torch.arange(DIM)
    keys = torch.stack([base + 100 * layer + 10 * head for head in range(HEADS)])[None]
    return keys, -keys - 1


def write(cache: TreeCache, marks: list[int]) -> None:
    for layer in range(LAYERS):
        cache.update(*rows_of(marks, layer), layer)


def assert_holds(cache: TreeCache, marks: list[int]) -> None:
    assert cache.length == cache.get_seq_length() == len(marks)
    for index, layer in enumerate(cache.layers):
        keys, values = rows_of(marks, index)
        assert layer.length == len(marks)
        assert layer.keys[:, :, : len(marks)].equal(keys)
        assert layer.values[:, :, : len(marks)].equal(values)


def test_update_returns_all_rows_as_a_view():
    layer = Rows(10)
    first, second = rows_of([1, 2, 3], 0), rows_of([4], 0)
    layer.update(*first)
    keys, values = layer.update(*second)
    assert keys.equal(torch.cat([first[0], second[0]], dim=2))
    assert values.equal(torch.cat([first[1], second[1]], dim=2))
    assert keys.data_ptr() == layer.keys.data_ptr()
    assert layer.get_seq_length() == 4
    assert layer.get_mask_sizes(5) == (9, 0)
    assert layer.get_max_length() == layer.get_max_cache_shape() == 10


def test_keys_and_values_may_differ_in_width_and_keep_their_dtype():
    layer = Rows(4)
    keys, values = layer.update(
        torch.ones(1, 2, 1, 8, dtype=torch.bfloat16), torch.ones(1, 2, 1, 6)
    )
    assert keys.shape == (1, 2, 1, 8)
    assert values.shape == (1, 2, 1, 6)
    assert keys.dtype == torch.bfloat16


@pytest.mark.parametrize("seed", range(20))
def test_random_rounds_keep_exactly_the_paths(seed):
    rng, cache, kept, mark = random.Random(seed), TreeCache(LAYERS, 400), [], 0
    for _ in range(10):
        nodes = rng.randrange(1, 30)
        marks, mark = list(range(mark, mark + nodes)), mark + nodes
        write(cache, marks)
        path = [0, *sorted(rng.sample(range(1, nodes), rng.randrange(nodes)))]
        cache.keep(len(kept), path)
        kept += [marks[node] for node in path]
        assert_holds(cache, kept)


@pytest.mark.parametrize("path", [[0], [0, 1], [0, 1, 2, 3], [0, 3], [0, 2, 3], [0, 1, 3]])
def test_keep_leaves_what_stands_before_it(path):
    cache = TreeCache(LAYERS, 16)
    write(cache, [7, 8, 9])
    write(cache, [20, 21, 22, 23])
    cache.keep(3, path)
    assert_holds(cache, [7, 8, 9, *(20 + node for node in path)])


def test_rewind_and_clear_forget_the_end():
    cache = TreeCache(LAYERS, 16)
    cache.clear()
    write(cache, [1, 2, 3, 4])
    cache.rewind(2)
    assert_holds(cache, [1, 2])
    write(cache, [5])
    assert_holds(cache, [1, 2, 5])
    cache.clear()
    assert cache.length == 0


def test_buffers_are_allocated_once():
    cache = TreeCache(LAYERS, 64)
    write(cache, [0])
    buffers = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    for start in range(1, 40):
        write(cache, [start, start + 100, start + 200])
        cache.keep(start, [0])
    cache.clear()
    write(cache, [1, 2])
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers] == buffers
