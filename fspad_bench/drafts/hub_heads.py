"""Heads by name: a folder on this machine, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fspad_bench.drafts.head import ABOUT
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import user_path
from fspad_bench.util.strangers import first_line_of

ON_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w.-]+))?")
FILES = ["*.json", "*.safetensors", "pytorch_model.bin"]


def head_folder(name: str) -> Path:
    """Return the folder of a head: the one named, or where OWNER/NAME or OWNER/NAME@REVISION of the
    hub is kept on this machine.

    A folder that is there is taken first; a name of any other form is a folder. Raises BenchError
    where the hub does not give it.
    """
    named = _on_hub(name)
    if named is None:
        return user_path(name)
    import huggingface_hub

    try:
        kept = huggingface_hub.snapshot_download(
            named["repo"], revision=named["revision"], allow_patterns=FILES
        )
    except Exception as error:  # the hub's library raises whatever its transport raised
        reason = first_line_of(error) or type(error).__name__
        raise BenchError(
            f"no draft head at {name}, and none by that name from the hub: {reason}",
            "train one with `fspad-bench train`, or name a folder, or OWNER/NAME[@REVISION]",
        ) from error
    return Path(kept)


def is_trained(name: str) -> bool:
    """Whether a folder, or a repository that the hub gives, holds what `train` wrote.

    A model of any other kind may have the name.
    """
    named = _on_hub(name)
    if named is None:
        return (user_path(name) / ABOUT).is_file()
    import huggingface_hub

    try:
        huggingface_hub.hf_hub_download(named["repo"], ABOUT, revision=named["revision"])
    except Exception:  # no such file, no such repository, or no hub
        return False
    return True


def _on_hub(name: str) -> re.Match[str] | None:
    """Return the parts of the name of a repository; None for that of a folder."""
    if os.path.exists(user_path(name)):  # a name may be no path at all
        return None
    return ON_HUB.fullmatch(name)
