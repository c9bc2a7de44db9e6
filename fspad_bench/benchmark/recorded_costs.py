"""The costs by which a decoder sized its trees, as the records of its row hold them.

- A record names costs by the decoder's label and their origin, a hash of all that they depend on:
  the target, the machine, the software and the decoder's options.
- Older records give no origin: their costs are a decoder's where it has no others.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fspad_bench.benchmark.record import Key, Records

SHORT_HASH = 16  # hexadecimal digits
FORWARD = (
    "target_identity",
    "target_sha256",
    "dtype",
    "forward",
    "device",
    "threads",
    "machine",
    "version",
    "torch",
    "source_sha256",
)  # fields of a key that decide how forwards round, and what they cost
ORIGIN = ("target", *FORWARD, "template_sha256", "tokenizer_sha256")  # that all rows of a run share
Seconds = dict[str, Any]


def costs_origin(origin: dict[str, Any], options: dict[str, Any]) -> str:
    """Return the hash of what a decoder's costs depend on: no other run's are taken."""
    facts = json.dumps([origin, options], sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:SHORT_HASH]


def origin_of_key(key: Key) -> str:
    """Return the origin of the costs that a row's decoder measures."""
    return costs_origin({name: getattr(key, name) for name in ORIGIN}, key.options)


def recorded_costs(records: Records, key: Key) -> Seconds | None:
    """Return the costs that a row's decoder measured; None where it measured none, or where it
    cannot be told whether they are this row's.
    """
    own = _of_decoder(records, key.decoder)
    origin = origin_of_key(key)
    if origin in own:
        return own[origin]
    rows = {origin_of_key(other) for other in records.keys.values() if other.decoder == key.decoder}
    return own[""] if own.keys() == {""} and rows == {origin} else None


def is_sized(records: Records, key: Key) -> bool:
    """Whether a row's decoder sized its trees by costs that it measured on the machine."""
    own = _of_decoder(records, key.decoder)
    return origin_of_key(key) in own or own.keys() == {""}


def _of_decoder(records: Records, decoder: str) -> dict[str, Seconds]:
    """Return the costs that a decoder measured, by their origins."""
    every = records.costs.items()
    return {origin: seconds for (label, origin), seconds in every if label == decoder}
