"""A decoder for several requests at once: one drafter for each, all alike."""

from __future__ import annotations

from fspad_bench.core.protocols import Drafter, as_drafter
from fspad_bench.decoders.border import blamed
from fspad_bench.decoders.build import Decoder, find
from fspad_bench.decoders.label import Label
from fspad_bench.util.errors import BenchError


def check_may_share(decoder: Decoder) -> None:
    """Raise BenchError for a decoder whose requests cannot be decoded together."""
    if decoder.drafter is None:
        raise BenchError(
            f"{decoder.label} is an engine of its own: its requests cannot share our forwards",
            "name a decoder that runs in our loop",
        )
    if decoder.scope == "run":
        optional = f"-D {decoder.label}.scope=prompt, or " if "scope" in decoder.given else ""
        raise BenchError(
            f"{decoder.label} learns across prompts (scope=run): what it drafts for a request "
            "depends on which others ran before it",
            f"{optional}leave it out",
        )
    with blamed(decoder.label, "may_share()"):
        may_share = decoder.drafter.may_share()
    if not may_share:
        raise BenchError(
            f"{decoder.label} says that its requests cannot be decoded together", "leave it out"
        )


def drafters(decoder: Decoder, count: int) -> list[Drafter]:
    """Return so many drafters of a decoder, prepared, each with a state of its own.

    Raises BenchError as `check_may_share`.
    """
    check_may_share(decoder)
    if not decoder.prepared:
        decoder.prepare()
    assert decoder.drafter is not None
    return [decoder.drafter, *(_twin(decoder, decoder.drafter) for _ in range(count - 1))]


def _twin(decoder: Decoder, drafter: Drafter) -> Drafter:
    with blamed(decoder.label, "twin()"):
        twin = drafter.twin()
    if twin is not None:
        return twin
    kind, _ = find(Label.of(decoder.label))
    with blamed(decoder.label, "its constructor"):
        twin = as_drafter(kind(decoder.target, **decoder.given))
    with blamed(decoder.label, "prepare()"):
        twin.prepare(decoder.target, decoder.measurements)
    return twin
