"""Memory in huge pages behaves like any other memory."""

import errno
import gc
import mmap
import weakref

import pytest
import torch

from fspad_bench.engine.cpu import huge_pages as pages
from fspad_bench.util.memory import is_out_of_memory


@pytest.mark.parametrize("advice", [pages.MADVISE, None], ids=["as here", "elsewhere"])
@pytest.mark.parametrize(
    "make", [pages.zeros, lambda *shape: pages.Arena().zeros(*shape)], ids=["alone", "arena"]
)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1 << 20,), (4, 0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_can_be_written(make, shape, dtype, advice, monkeypatch):
    monkeypatch.setattr(pages, "MADVISE", advice)
    values = make(shape, dtype)
    assert torch.equal(values, torch.zeros(shape, dtype=dtype))
    values += 2
    assert torch.equal(values, torch.full(shape, 2, dtype=dtype))
    assert values.is_contiguous()


def test_a_kernel_without_huge_pages_gives_ordinary_memory(monkeypatch):
    monkeypatch.setattr(pages, "MADVISE", 12345)
    with pytest.raises(OSError, match="Invalid"):
        mmap.mmap(-1, 4096).madvise(12345)
    assert pages.zeros([4], torch.float32).tolist() == [0.0] * 4


def test_memory_that_the_system_refuses_is_asked_of_torch(monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(pages.mmap, "mmap", refuse)
    assert pages.zeros([4], torch.float32).tolist() == [0.0] * 4


def test_memory_that_is_not_there_is_recognised_as_such():
    with pytest.raises(RuntimeError) as caught:
        pages.zeros([1 << 50], torch.uint8)
    assert is_out_of_memory(caught.value)


def test_on_other_devices_memory_is_allocated_by_torch():
    assert pages.zeros([4], torch.float32, torch.device("meta")).device.type == "meta"


def test_tensors_of_an_arena_lie_side_by_side_and_apart():
    arena = pages.Arena()
    shapes = [(n, 33) for n in range(1, 40)]
    tensors = [arena.zeros(shape, torch.bfloat16).fill_(n) for n, shape in enumerate(shapes)]
    assert all(torch.equal(x, torch.full_like(x, n)) for n, x in enumerate(tensors))
    assert len({x.untyped_storage().data_ptr() for x in tensors}) == 1
    assert len({x.data_ptr() % pages.ALIGNED for x in tensors}) == 1


def test_a_tensor_as_large_as_a_chunk_has_memory_of_its_own():
    arena = pages.Arena()
    first, large, second = (arena.zeros([n], torch.uint8) for n in (8, pages.CHUNK, 8))
    storages = [x.untyped_storage() for x in (first, large, second)]
    assert storages[0].data_ptr() == storages[2].data_ptr() != storages[1].data_ptr()


@pytest.mark.skipif(pages.MADVISE is None, reason="torch allocates all memory here")
def test_a_chunk_is_freed_with_the_last_of_its_tensors(monkeypatch):
    class Block(mmap.mmap):  # one that can be watched
        pass

    blocks = []

    def allocate(*sizes, **flags):
        blocks.append(Block(*sizes, **flags))
        return blocks[-1]

    monkeypatch.setattr(pages.mmap, "mmap", allocate)
    arena = pages.Arena()
    first = arena.zeros([8], torch.float32)
    second = arena.zeros([8], torch.float32)
    block = weakref.ref(blocks.pop())
    arena.zeros([pages.CHUNK - 1], torch.uint8)  # another chunk
    del first
    gc.collect()
    assert block() is not None
    assert second.sum() == 0
    del second
    gc.collect()
    assert block() is None
