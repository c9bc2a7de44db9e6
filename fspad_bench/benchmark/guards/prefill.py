"""Whether work of the decode clock was done before it started.

- A prefill takes one full forward of the target. More of them before the decode clock starts are
  somebody's decoding.
- Work that the counters do not see takes time: a decoder's prefills are compared with vanilla's of
  the same prompts. Both the significance and the size count, so that a row is not distrusted for
  noise, nor for the little that capturing hidden states costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.stats import sign_flip_p

SIGNIFICANCE = 1e-3
ENOUGH = 10  # pairs; fewer cannot be that significant
FEWEST = 5  # pairs; fewer are no evidence of time at all
DEARER = 2.0  # times vanilla's prefill, on each of too few pairs to test
SHARE = 0.02  # of vanilla's prefills and of the decoder's decode time: less is no matter

Pairs = Sequence[tuple[Sample, Sample]]  # vanilla's and the decoder's


def hidden_work(pairs: Pairs) -> str:
    """Return what of a decoder's decoding happened before its clock started, in words; else ''."""
    forwards = sum(max(0, decoder.prefill_forwards - 1) for _, decoder in pairs)
    if forwards:
        return f"{forwards} full forwards ran before its decode clock started"
    if not _is_dearer(pairs):
        return ""
    vanilla = sum(reference.prefill_seconds for reference, _ in pairs)
    own = sum(decoder.prefill_seconds for _, decoder in pairs)
    return f"its prefills take {own / vanilla:.2f} times as long as vanilla's"


def _is_dearer(pairs: Pairs) -> bool:
    timed = [pair for pair in pairs if all(s.prefill_seconds and s.decode_seconds for s in pair)]
    if len(timed) < FEWEST:
        return False
    excess = [decoder.prefill_seconds - vanilla.prefill_seconds for vanilla, decoder in timed]
    vanilla = sum(reference.prefill_seconds for reference, _ in timed)
    decode = sum(decoder.decode_seconds for _, decoder in timed)
    if sum(excess) <= SHARE * max(vanilla, decode):
        return False
    if len(timed) >= ENOUGH:
        return sign_flip_p(excess) < SIGNIFICANCE
    return all(d.prefill_seconds > DEARER * v.prefill_seconds for v, d in timed)
