"""Memory in huge pages is memory like any other."""

import gc
import mmap
import weakref

import pytest
import torch

from fspad_bench.engine.cpu import huge_pages as pages


@pytest.mark.parametrize("asked", [pages.ASKED, None], ids=["as here", "elsewhere"])
@pytest.mark.parametrize(
    "make", [pages.zeros, lambda *told: pages.Arena().zeros(*told)], ids=["alone", "arena"]
)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1 << 20,), (4, 0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_can_be_written(make, shape, dtype, asked, monkeypatch):
    monkeypatch.setattr(pages, "ASKED", asked)
    found = make(shape, dtype)
    assert torch.equal(found, torch.zeros(shape, dtype=dtype))
    found += 2
    assert torch.equal(found, torch.full(shape, 2, dtype=dtype))
    assert found.is_contiguous()


def test_a_kernel_without_huge_pages_is_none_the_worse(monkeypatch):
    monkeypatch.setattr(pages, "ASKED", 12345)
    with pytest.raises(OSError, match="Invalid"):
        mmap.mmap(-1, 4096).madvise(12345)
    assert pages.zeros([4], torch.float32).tolist() == [0.0] * 4


def test_elsewhere_than_on_the_cpu_it_is_torchs():
    assert pages.zeros([4], torch.float32, torch.device("meta")).device.type == "meta"


def test_tensors_of_an_arena_lie_side_by_side_and_apart():
    arena = pages.Arena()
    shapes = [(n, 33) for n in range(1, 40)]
    found = [arena.zeros(shape, torch.bfloat16).fill_(n) for n, shape in enumerate(shapes)]
    assert all(torch.equal(x, torch.full_like(x, n)) for n, x in enumerate(found))
    assert len({x.untyped_storage().data_ptr() for x in found}) == 1
    assert all(x.data_ptr() % pages.ALIGNED == found[0].data_ptr() % pages.ALIGNED for x in found)


def test_what_would_fill_a_chunk_has_memory_of_its_own_and_leaves_the_chunk_to_others():
    arena = pages.Arena()
    first, large, second = (arena.zeros([n], torch.uint8) for n in (8, pages.CHUNK, 8))
    storages = [x.untyped_storage() for x in (first, large, second)]
    assert storages[0].data_ptr() == storages[2].data_ptr() != storages[1].data_ptr()


@pytest.mark.skipif(pages.ASKED is None, reason="memory is torch's here")
def test_a_chunk_goes_with_the_last_of_its_tensors(monkeypatch):
    class Block(mmap.mmap):  # one that can be watched
        pass

    made = []
    monkeypatch.setattr(
        pages.mmap, "mmap", lambda *told, **flags: made.append(Block(*told, **flags)) or made[-1]
    )
    arena = pages.Arena()
    first, second = arena.zeros([8], torch.float32), arena.zeros([8], torch.float32)
    block = weakref.ref(made.pop())
    arena.zeros([pages.CHUNK - 1], torch.uint8)  # another chunk
    del first
    gc.collect()
    assert block() is not None
    assert second.sum() == 0
    del second
    gc.collect()
    assert block() is None
