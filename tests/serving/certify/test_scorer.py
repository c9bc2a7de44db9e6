"""The audit by a target of our own."""

import math

import pytest
import torch

from fspad_bench.serving.certify.observation import END
from fspad_bench.serving.certify.plan import Sampling
from fspad_bench.serving.certify.scorer import scorer_of
from fspad_bench.util.errors import BenchError


def test_the_lead_is_the_difference_of_logits_after_the_prefix(tiny):
    ids = torch.tensor([[20, 3, 77, 5]])
    logits = tiny.model(input_ids=ids).logits[0, -1].detach()
    lead = scorer_of(tiny)((20, 3, 77), (5,), 8, 9, Sampling())
    assert lead == pytest.approx(float(logits[8] - logits[9]))
    penalised = scorer_of(tiny)((20, 3, 77), (5,), 8, 5, Sampling(presence=0.5, frequency=0.25))
    assert penalised == pytest.approx(float(logits[8] - logits[5]) + 0.75)
    assert math.isfinite(lead)


def test_an_end_is_the_likeliest_of_the_stop_ids(tiny, monkeypatch):
    kind = type(tiny)
    ids = torch.tensor([[20, 3, 77, 5]])
    logits = tiny.model(input_ids=ids).logits[0, -1].detach()
    monkeypatch.setattr(kind, "stop_ids", frozenset({1, 2}))
    lead = scorer_of(tiny)((20, 3, 77), (5,), END, 8, Sampling())
    assert lead == pytest.approx(float(max(logits[1], logits[2]) - logits[8]))
    assert scorer_of(tiny)((20, 3, 77), (5,), 8, END, Sampling()) == pytest.approx(-lead)
    monkeypatch.setattr(kind, "stop_ids", frozenset())
    assert math.isnan(scorer_of(tiny)((20, 3, 77), (5,), 8, END, Sampling()))


def test_ids_of_another_vocabulary_are_refused(tiny):
    with pytest.raises(BenchError, match="token ids beyond the target's 97"):
        scorer_of(tiny)((20,), (500,), 1, 2, Sampling())
