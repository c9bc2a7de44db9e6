"""The border to decoders' own code: what crosses it is copied, checked and converted.

- A decoder gets copies of the prompt and of the sampler, so that what it changes stays its own.
- What it returns is plain afterwards: whole numbers, finite times, lists of its own. A value that
  is none of these is the decoder's error.
- Mistakes of its code outside a generation (its constructor, `settings`, `prepare`) are a
  `DecoderError` that names the decoder and the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fspad_bench.core.protocols import Generation
from fspad_bench.util.errors import BenchError
from fspad_bench.util.plain import LARGEST, LONGEST_STEP, seconds, whole
from fspad_bench.util.strangers import contained, described, place_of

DRAFT_COUNTS = ("drafted", "accepted")  # tokens, as a foreign engine claims them


class DecoderError(BenchError):
    """A mistake of a decoder's own code, whose exception is the cause."""


def received(generation: Any) -> Generation:
    """Return a decoder's generation in plain values, in lists that it cannot change later.

    Raises TypeError or ValueError for what is no generation.
    """
    if not isinstance(generation, Generation):
        raise TypeError(f"{type(generation).__name__} returned, not a Generation")
    return Generation(
        tokens=wholes(generation.tokens, "tokens"),
        prefill_seconds=seconds(generation.prefill_seconds, "prefill_seconds"),
        decode_seconds=seconds(generation.decode_seconds, "decode_seconds"),
        forwards=whole(generation.forwards, "forwards"),
        committed=wholes(generation.committed, "committed", LONGEST_STEP),
        drafted=wholes(generation.drafted, "drafted", LONGEST_STEP),
        draft_seconds=_known(generation.draft_seconds, "draft_seconds"),
        score_seconds=_known(generation.score_seconds, "score_seconds"),
        partial_forwards=whole(generation.partial_forwards, "partial_forwards"),
        prefill_forwards=whole(generation.prefill_forwards, "prefill_forwards"),
        verify_seconds=_known(generation.verify_seconds, "verify_seconds"),
        depths=_known_wholes(generation.depths, "depths"),
        ranks=_ranks(generation.ranks),
        refused=_known_wholes(generation.refused, "refused"),
        claims={
            name: whole(generation.claims[name], name)
            for name in DRAFT_COUNTS
            if name in generation.claims
        },
    )


def check_ids(tokens: Sequence[int], vocabulary_size: int) -> None:
    """Raise ValueError for a token id that the target does not have."""
    largest = max(tokens, default=0)
    if largest >= vocabulary_size:
        raise ValueError(f"token {largest} is outside the target's vocabulary of {vocabulary_size}")


@contextmanager
def blamed(label: str, part: str) -> Iterator[None]:
    """Turn what a decoder's own code raises into a DecoderError that names it and the line; a
    BenchError is left as it is.
    """
    try:
        with contained():
            yield
    except BenchError:
        raise
    except Exception as error:
        where = place_of(error)
        raise DecoderError(
            f"{label}: {part} raised {described(error)} ({where.filename}:{where.lineno})",
            "correct the decoder, or the options it is given",
        ) from error


def wholes(values: Any, name: str, most: int = LARGEST) -> list[int]:
    """Return a list of whole numbers. Raises TypeError or ValueError for anything else."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise TypeError(f"{name} is {values!r:.60}, not a list of whole numbers")
    return [whole(value, name, most) for value in values]


def _known_wholes(values: Any, name: str) -> list[int] | None:
    return None if values is None else wholes(values, name, LONGEST_STEP)


def _ranks(steps: Any) -> list[list[int]] | None:
    if steps is None:
        return None
    if not isinstance(steps, Iterable):
        raise TypeError(f"ranks is {steps!r:.60}, not a list of lists")
    return [wholes(step, "ranks", LONGEST_STEP) for step in steps]


def _known(value: Any, name: str) -> float | None:
    return None if value is None else seconds(value, name)
