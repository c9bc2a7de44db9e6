"""Records made by hand: one on disk, with secrets where records hold some, and one of two tasks,
greedy and sampled, and greedy on a second machine.
"""

from dataclasses import replace

import pytest
from by_hand import FAST, KEY, VANILLA, records, sample

from fspad_bench.benchmark.record import Finding, Score
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.benchmark.rows import rows
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

SLOW = replace(FAST, decoder="slow", options={})
SECONDS = {"vanilla": 1.0, "fast": 0.5, "slow": 2.0}


@pytest.fixture
def facts(tmp_path):
    """`facts(prompts, **key)`: of a run of `prompts` prompts, a decoder twice as fast; `more` puts
    it into the record of the run before.
    """

    def facts(
        prompts=6, finding=None, score=None, decoder="fast", complete=True, more=False, **key
    ):
        vanilla = replace(KEY, **{**key, "options": {}})
        fast = replace(vanilla, decoder=decoder, options=key.get("options", {"depth": 3}))
        path = tmp_path / "record.jsonl"
        if not more:
            path.unlink(missing_ok=True)
        written = RecordFile.reopen(path) if more else RecordFile(path, HEADER)
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


def variants():
    """Keys of three decoders and two tasks in three settings."""
    return [
        replace(key, task=task, temperature=heat, machine=machine)
        for machine, heat in (("one", 0.0), ("one", 1.0), ("two", 0.0))
        for task in ("gsm8k", "nq")
        for key in (VANILLA, FAST, SLOW)
    ]


def generations(key):
    """Six prompts of a key; on `nq` the decoders take twice as long, vanilla does not."""
    factor = 2 if key.task == "nq" and key.decoder != "vanilla" else 1
    return [
        sample(
            key,
            f"p{number}",
            10,
            factor * SECONDS[key.decoder] * (1 + number / 10),
            committed=[4, 4, 1],
            forwards=3,
            draft_seconds=0.1,
            score_seconds=0.3,
        )
        for number in range(6)
    ]


@pytest.fixture(scope="session")
def measured():
    keys = variants()
    return rows(records(*[s for key in keys for s in generations(key)], keys=keys))
