"""What an engine claims, by hand."""

import pytest
from by_hand import FAST, VANILLA, sample

from fspad_bench.benchmark import claims


def test_a_speedup_is_of_the_prompts_whose_seconds_are_claimed():
    """An answer that came at once has none: its tokens would have cost nothing."""
    vanilla = [sample(VANILLA, name, 51, 5.0) for name in "ab"]
    told = sample(FAST, "a", 51, 0.0, claims={"decode_seconds": 1.0})
    pairs = list(zip(vanilla, [told, sample(FAST, "b", 51, 0.0, claims={})], strict=True))
    assert claims.decode_speedup(pairs) == pytest.approx(5.0)
    assert claims.decode_speedup(pairs[1:]) is None
