"""Products in bfloat16 where they are fast, in float32 elsewhere."""

import pytest
import torch

from fspad_bench.training import precision
from fspad_bench.training.objective import load_inputs

CPU = torch.device("cpu")
TYPES = {True: torch.bfloat16, False: torch.float32}


@pytest.fixture(params=TYPES, ids=["bfloat16", "float32"])
def is_fast(request, monkeypatch):
    """Whether this processor is one that multiplies in bfloat16."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: request.param)
    return request.param


def test_products_are_of_the_type_that_is_fast(is_fast):
    assert precision.product_type(CPU) == TYPES[is_fast]
    assert precision.product_type(torch.device("cuda")) == torch.bfloat16
    with precision.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == TYPES[is_fast]


def test_either_way_it_learns_the_same_up_to_rounding(monkeypatch, trainer, tiny):
    losses = []
    for is_fast, expected in TYPES.items():
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda is_fast=is_fast: is_fast)
        training = trainer("fspad")
        network = training.network
        inputs = load_inputs(tiny, training.features, [3, 5], training.vocabulary, network)
        assert {inputs.e.dtype, inputs.f.dtype, inputs.batch.features.dtype} == {expected}
        assert inputs.f.bfloat16().to(expected).equal(inputs.f)  # rounded as it is stored, in both
        assert training.objective.lm_head.dtype == expected
        loss, _ = training._losses([3, 5])
        loss.backward()
        assert all(weight.grad.isfinite().all() for weight in network.parameters())
        losses.append(float(loss.detach()))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
