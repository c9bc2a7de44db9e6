"""Running out of memory: how it is recognised, and what is given back afterwards.

Nothing here imports torch: a command that needs none must not wait for it.
"""

from __future__ import annotations

import gc
import sys

ALLOCATORS = (
    "DefaultCPUAllocator: can't allocate memory",  # torch on a CPU raises a plain RuntimeError
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "ALLOC_FAILED",  # cuBLAS and cuDNN, for their workspaces
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, itself or by what caused it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if _is_own(cause):
            return True
        cause = cause.__cause__
    return False


def _is_own(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True  # torch's
    return isinstance(error, RuntimeError) and any(text in _text(error) for text in ALLOCATORS)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own `__str__` is at fault
        return ""


def free_unreachable() -> None:
    """Free what only cycles of objects hold, and return a GPU's cached blocks.

    To be called when the exception is gone: its traceback holds the frames that it passed.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
