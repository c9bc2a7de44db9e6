"""How much must be drafted for a check to pass."""

import pytest
from cells import answer

from fspad_bench.lossless.checks import FAIL, INCONCLUSIVE, PASS, Check
from fspad_bench.serving.certify.drafts import check_drafts, with_drafts

SERVED = [answer([1] * 20, drafted=0)] * 2


@pytest.mark.parametrize(
    ("drafted", "verdict", "figure"),
    [
        (None, INCONCLUSIVE, "the server does not say what it drafted"),
        (0, INCONCLUSIVE, "nothing was drafted"),
        (2, INCONCLUSIVE, "too little was drafted: 2 tokens for 60 of answers"),
        (3, PASS, "3 tokens drafted, 0% accepted"),
    ],
)
def test_a_twentieth_of_the_tokens_must_be_drafted(drafted, verdict, figure):
    others = SERVED if drafted is not None else [SERVED[0]._replace(drafted=None)] * 2
    served = [answer([1] * 20, drafted=drafted), *others]
    check = check_drafts("cell", served)
    assert (check.verdict, check.figure) == (verdict, figure)
    assert with_drafts(Check("texts", "cell", PASS, "e 1"), served).verdict == verdict
    assert with_drafts(Check("texts", "cell", FAIL, "e 1"), served).verdict == FAIL
