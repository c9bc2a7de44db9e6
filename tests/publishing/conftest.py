"""A record on disk, made by hand: two decoders on two prompts, with secrets where records hold
some.
"""

from dataclasses import replace

import pytest
from by_hand import KEY, sample

from fspad_bench.benchmark.record import Finding, Score
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.benchmark.tasks import load_card
from fspad_bench.publishing.facts import Facts

HEADER = {
    "plan": {"data": "/home/alice/data.jsonl"},
    "version": "0.1.0",
    "started": "2026-11-22T12:16:24+00:00",
    "commit": "c0ffee",
    "dirty": True,
    "packages": {"torch": "2.13.0"},
    "argv": ["run", "--output", "/home/alice/out"],
    "system": "Linux-gpu-box",
}


@pytest.fixture
def facts(tmp_path):
    """`facts(prompts, samples, **key)`: of a run of `prompts` prompts, a decoder twice as fast."""

    def facts(prompts=6, finding=None, score=None, decoder="fast", complete=True, **key):
        vanilla = replace(KEY, **{**key, "options": {}})
        fast = replace(vanilla, decoder=decoder, options=key.get("options", {"depth": 3}))
        path = tmp_path / "record.jsonl"
        written = RecordFile(path, HEADER)
        for own, steps, seconds in ((vanilla, [1] * 9, 0.9), (fast, [3, 3, 3], 0.45)):
            written.key(own)
            for i in range(prompts):
                figures = {"committed": steps, "forwards": len(steps), "prompt": "my secret"}
                written.add(sample(own, f"q{i}", 10, seconds, round_=f"r{i}", **figures))
            if score is not None:
                written.add(Score(own.hash, {"accuracy": score}))
        if finding:
            written.add(Finding(fast.hash, "prefill", finding))
        if complete:
            written.end()
        written.release()
        return Facts.read(path)

    return facts


@pytest.fixture
def of_the_hub():
    """The fields of a key whose prompts are the hub's GSM8K, by today's card."""
    return {"data_source": "hub", "card_sha256": load_card("gsm8k").sha256}
