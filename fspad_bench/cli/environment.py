"""Set up the process before a verb starts its work."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Silence the libraries' progress bars and notices: the terminal shows only ours."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def use_threads(count: int | None) -> None:
    """Set the number of CPU threads; None leaves torch's choice."""
    if count is None:
        return
    import torch

    torch.set_num_threads(count)
