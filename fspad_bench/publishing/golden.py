"""Records as golden acceptance lengths: curves that other engines replay.

- The format is that of SemiAnalysis InferenceX, `golden_al_distribution` (2026): by model and mode,
  tokens per step by the number of drafted tokens, two decimals.
- AL = 1 + accepted draft tokens / steps, pooled over all steps of all prompts.
- Only chains of one length have a place in it: trees, and drafts whose length follows the text or
  the machine, have none. Rows whose output is not shown to be the target's are left out.
- Labels of one decoder are one curve where their options agree, but for those that state the
  length; of two labels with one length each has a curve of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.titles import distribution
from fspad_bench.decoders.label import Label
from fspad_bench.models.presets import is_preset
from fspad_bench.publishing.facts import Facts, caveats, dataset_name, model_id
from fspad_bench.publishing.private import base_name, base_names, decoder_name
from fspad_bench.util.errors import BenchError

PLAIN_MODE = "thinking_off"  # the format's name
WITHOUT_REASONING = (
    "smollm2-135m",
    "tiny",
    "vicuna-7b",
    "vicuna-33b",
    "llama3-8b",
    "llama3-70b",
)  # presets whose templates have no other mode
PROVEN = ("exact", "tie", "law")
SHORT_HASH = 8


class Chain(NamedTuple):
    """A row that drafted chains of `drafts` tokens, and its mean acceptance length."""

    row: Row
    drafts: int
    length: float
    caveats: list[str]

    @property
    def label(self) -> Label:
        return Label.of(decoder_name(self.row["decoder"]))


class Place(NamedTuple):
    """What the points of a curve have in common. `options`: as JSON, without the chain's length;
    `own`: the label's own name, where the options do not tell labels of one length apart.
    """

    decoder: str
    task: str
    sampling: str
    dtype: str
    limit: str
    options: str
    own: str = ""


class Model(NamedTuple):
    """A target as the format names it: its hub id, and the mode that it answered in."""

    name: str
    mode: str


class GoldenFile(NamedTuple):
    """A curve of one decoder on one task: its file's name and text."""

    name: str
    text: str


def golden_files(
    facts: Facts, model: str | None, source: str | None, mode: str | None = None
) -> list[GoldenFile]:
    """Return a file for each decoder, task and way to sample that drafted chains of one length.

    `mode`: the format's name for how the target answered, with reasoning or without. Raises
    BenchError for two rows of one label with one length, and without a mode unless the target has
    only one.
    """
    name = model_id(facts.target, model)
    curves = _curves(list(_chains(facts)))
    if not curves:
        return []
    own = Model(name, mode or _only_mode(facts))
    shared = Counter(_name(place, name) for place in curves)
    files = []
    for place, chains in curves.items():
        file = _name(place, name)
        if shared[file] > 1:
            file += f"-{hashlib.sha256(repr(place).encode()).hexdigest()[:SHORT_HASH]}"
        files.append(GoldenFile(f"{file}.yaml", _text(place, chains, own, facts, source)))
    return files


def _only_mode(facts: Facts) -> str:
    """Return the mode of a target that has no other. Raises BenchError for one that may have."""
    identity = str(facts.table[0]["target_identity"])
    if facts.target in WITHOUT_REASONING and is_preset(facts.target, identity):
        return PLAIN_MODE
    raise BenchError(
        f"the record does not say whether {base_name(facts.target)} reasons before it answers",
        "name the mode with --mode thinking_on or --mode thinking_off",
    )


def _chains(facts: Facts) -> Iterator[Chain]:
    for row in facts.table:
        samples = facts.samples(row)
        drafts = chain_length(samples, row["max_new_tokens"])
        if drafts is not None and row["verdict"] in PROVEN:
            said = caveats(row, facts.records)
            yield Chain(row, drafts, acceptance_length(samples), said)


def _curves(every: Sequence[Chain]) -> dict[Place, list[Chain]]:
    """Return the chains of each curve, the shortest first."""
    places: dict[Place, list[Chain]] = {}
    for chain in every:
        of_decoder = [other for other in every if other.label.decoder == chain.label.decoder]
        place = _place(chain, _length_options(of_decoder))
        places.setdefault(place, []).append(chain)
    curves: dict[Place, list[Chain]] = {}
    for place, chains in places.items():
        is_one = len({chain.drafts for chain in chains}) == len(chains)
        for chain in sorted(chains, key=lambda chain: chain.drafts):
            own = place if is_one else place._replace(own=chain.label.shown)
            curves.setdefault(own, []).append(chain)
    for chains in curves.values():
        _check_lengths(chains)
    return curves


def _length_options(chains: Sequence[Chain]) -> set[str]:
    """Return the options of a decoder that state the length of each chain, in tokens or in nodes
    with the root.
    """
    return {
        name
        for name in chains[0].row["options"]
        for root in (0, 1)
        if all(chain.row["options"].get(name) == chain.drafts + root for chain in chains)
    }


def _place(chain: Chain, lengths: set[str]) -> Place:
    row = chain.row
    options = {name: value for name, value in row["options"].items() if name not in lengths}
    return Place(
        chain.label.decoder,
        dataset_name(row),
        distribution(row),
        row["dtype"],
        str(row["max_new_tokens"]),
        json.dumps(base_names(options), sort_keys=True, default=str),
    )


def _check_lengths(chains: Sequence[Chain]) -> None:
    """Raise BenchError for two points of a curve at one length."""
    counts = Counter(chain.drafts for chain in chains)
    for chain in chains:
        if counts[chain.drafts] > 1:
            raise BenchError(
                f"{chain.label.shown} on {chain.row['task']} has {counts[chain.drafts]} rows with "
                f"chains of {chain.drafts} tokens",
                "share a record that no other version or machine has resumed",
            )


def chain_length(samples: Sequence[Sample], limit: int) -> int | None:
    """Return how many tokens each step drafted; None for trees, and where the number changes.

    Steps close to the limit have no room for all of them, and an output that ends with the prefill
    has no steps.
    """
    drafting = [sample for sample in samples if any(sample.drafted)]
    if not drafting or any(sample.depths != sample.drafted for sample in drafting):
        return None
    most = max(max(sample.drafted) for sample in drafting)
    for sample in samples:
        made = 1
        for drafted, committed in zip(sample.drafted, sample.committed, strict=True):
            if drafted < most and limit - made > most + 1:
                return None
            made += committed
    return most


def acceptance_length(samples: Sequence[Sample]) -> float:
    """Return 1 + accepted draft tokens / steps."""
    steps = sum(len(sample.committed) for sample in samples)
    return 1 + sum(len(path) for sample in samples for path in sample.ranks or ()) / steps


def _name(place: Place, model: str) -> str:
    """Return the name of a curve's file, without its ending."""
    parts = [model.replace("/", "_"), *place[:5]]
    return base_name("-".join(parts)).replace(" ", "_").replace(",", "")


def _text(
    place: Place, chains: Sequence[Chain], model: Model, facts: Facts, source: str | None
) -> str:
    labels = ", ".join(chain.label.shown for chain in chains)
    comments = [
        f"Source: {source or 'a record of fspad-bench with the sha256 ' + facts.sha256}",
        f"dataset: {place.task} | {place.sampling} | output_len: {place.limit} | "
        f"dtype: {place.dtype}",
        f"Measured with fspad-bench {facts.header.get('version', '')}, decoder {place.decoder}",
        f"labels: {labels} | options: {place.options}",
        "AL = 1 + accepted draft tokens / steps; key = drafted tokens, value = AL",
        *dict.fromkeys(text for chain in chains for text in chain.caveats),
    ]
    lengths = {chain.drafts: round(chain.length, 2) for chain in chains}
    text = "".join(f"# {' '.join(comment.split())}\n" for comment in comments)
    return text + yaml.safe_dump({model.name: {model.mode: lengths}}, sort_keys=False)
