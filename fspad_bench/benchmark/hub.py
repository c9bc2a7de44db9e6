"""Samples from the hub: the data set that a card names, at the card's revision.

- Rows are streamed, so that a test split does not cost the download of its training data.
- The rows that a task takes are kept in the cache, by the card's hash: the next run reads them
  without a network, and an edited card asks the hub again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fspad_bench.benchmark.cards import Card
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import cache_home, write_atomically
from fspad_bench.util.strangers import described, first_line_of
from fspad_bench.util.terminal import note
from fspad_bench.util.text import json_lines

Row = dict[str, Any]


def is_reachable(seconds: float = 5.0) -> bool:
    """Return whether the hub answers within a few seconds. In offline mode nothing is requested."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().dataset_info("openai/gsm8k", timeout=seconds)
    except Exception:  # any failure means no
        return False
    return True


def rows(card: Card) -> Iterator[Row]:
    """Yield all rows of a card's data set, in its order. Raises BenchError where they cannot be
    had.
    """
    if not card.dataset_path:
        raise BenchError(f"task '{card.task}' has no data set on the hub", _elsewhere(card))
    import datasets

    try:
        yield from datasets.load_dataset(
            card.dataset_path,
            card.dataset_name,
            split=card.test_split,
            revision=card.revision,
            streaming=True,
        )
    except Exception as error:  # datasets raises whatever its transport raised
        reason = first_line_of(error) or type(error).__name__
        raise BenchError(
            f"cannot load {card.dataset_path}@{card.revision[:7]} from the hub: {reason}",
            _remedy(card, error),
        ) from error


def kept_rows(card: Card) -> list[Row]:
    """Return the rows that an earlier run took; none without such a run, or if it is damaged."""
    path = _file(card)
    if not path.exists():
        return []
    try:
        return [dict(row) for _, row in json_lines(path)]
    except (BenchError, TypeError, ValueError):
        return []


def keep(card: Card, taken: Sequence[Row]) -> None:
    """Keep the rows of a card for later runs; a cache that takes no files is told and no error."""
    path = _file(card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in taken))
    except (OSError, TypeError) as error:  # TypeError: a row that is not JSON, such as pictures
        note(f"note: the samples of {card.task} are not kept in the cache: {described(error)}")


def _file(card: Card) -> Path:
    return cache_home() / "hub" / f"{card.sha256[:24]}.jsonl"


def _remedy(card: Card, error: Exception) -> str:
    """Return what a user can do about a data set that does not come."""
    told = f"{type(error).__name__} {error}".lower()
    if "gated" in told or "401" in told or "403" in told:
        page = f"https://huggingface.co/datasets/{card.dataset_path}"
        return f"accept its terms at {page}, then log in with `hf auth login`"
    return f"is there a network? {_elsewhere(card)}"


def _elsewhere(card: Card) -> str:
    """Return the sources of a task beside the hub."""
    sources = [
        *(["--data bundled"] if card.bundled else []),
        *(["--data spec-bench=FILE"] if card.spec_bench else []),
        "--data FILE.jsonl",
    ]
    return f"use {' or '.join(sources)}"
