"""Records of two tasks, greedy and sampled, and greedy on a second machine."""

from dataclasses import replace

import pytest
from by_hand import FAST, VANILLA, records, sample

from fspad_bench.benchmark.rows import rows

SLOW = replace(FAST, decoder="slow", options={})
SECONDS = {"vanilla": 1.0, "fast": 0.5, "slow": 2.0}


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
