"""Load the tokenizer of a target alone, without its weights: to read recorded tokens."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fspad_bench.models.presets import RANDOM, resolve
from fspad_bench.util.errors import BenchError


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a preset, folder or hub id. Raises BenchError if there is none."""
    if name.startswith(RANDOM):
        raise BenchError(f"'{name}' has no tokenizer", "name a preset, folder or hub id")
    path = resolve(name).path
    if path is None:
        from fspad_bench.models.tiny import tiny_tokenizer

        return tiny_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # tokenizers raise what their parsers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BenchError(
            f"cannot load the tokenizer of '{name}': {reason}",
            "check the name, your access to it, and the network",
        ) from error
