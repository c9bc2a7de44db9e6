"""The compiled choice of a level's leading tokens is torch's."""

import math

import pytest
import torch

from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.cpu import leading as module
from fspad_bench.engine.cpu.leading import Noise, is_right, leading, leading_by_torch
from fspad_bench.engine.cpu.native import native

pytestmark = pytest.mark.skipif(native() is None, reason="nothing is compiled here")

NOISE = Noise(0.8, Sampler(0.8, seed=5).key, 41)


@pytest.fixture
def compiled_only(monkeypatch):
    assert is_right(native())
    monkeypatch.setattr(module, "leading_by_torch", None)


def some(rows, width, seed=0):
    """Logits, and tokens that are not the columns' numbers."""
    stream = torch.Generator().manual_seed(seed)
    tokens = torch.randperm(60000, generator=stream)[:width]
    return 3 * torch.randn(rows, width, generator=stream), tokens


@pytest.mark.parametrize("noise", [None, NOISE, NOISE._replace(position=2**31 - 1)], ids=str)
@pytest.mark.parametrize("width", [1, 7, 16, 17, 500, 8300])
@pytest.mark.parametrize("rows", [1, 5])
def test_it_chooses_as_torch_does(monkeypatch, rows, width, noise):
    assert is_right(native())
    logits, tokens = some(rows, width)
    expected = leading_by_torch(logits, tokens, min(width, 6), noise)
    monkeypatch.setattr(module, "leading_by_torch", None)
    ours = leading(logits, tokens, min(width, 6), noise)
    assert ours.tokens == expected.tokens
    assert ours.log_q == pytest.approx(expected.log_q, abs=1e-5)


def test_its_noise_is_the_samplers():
    """Over equal logits the order is that of the noise alone."""
    sampler = Sampler(0.8, seed=5)
    logits, tokens = torch.zeros(1, 1000), torch.arange(1000)
    for position in (0, 41, 2**31 + 7):
        noise = sampler.noise(position, tokens)
        ours = leading(logits, tokens, 1000, Noise.at(sampler, position))
        assert ours.tokens == noise.argsort(descending=True).tolist()
        expected = (0.8 * noise).log_softmax(-1).sort(descending=True).values
        assert ours.log_q == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.usefixtures("compiled_only")
def test_a_row_has_the_same_bits_alone():
    logits, tokens = some(9, 8300)
    together = leading(logits, tokens, 3, NOISE)
    alone = [leading(row[None], tokens, 3, NOISE) for row in logits]
    assert together.tokens == [token for one in alone for token in one.tokens]
    assert together.log_q == [value for one in alone for value in one.log_q]


@pytest.mark.usefixtures("compiled_only")
def test_of_equal_scores_the_lower_column_leads():
    tokens = torch.arange(100, 140)
    logits = torch.zeros(1, 40)
    logits[0, [30, 9]] = 1.0
    assert leading(logits, tokens, 4).tokens == [109, 130, 100, 101]


@pytest.mark.usefixtures("compiled_only")
@pytest.mark.parametrize(("allowed", "tokens"), [(17, [17, 0, 1]), (0, [0, 1, 2]), (1, [1, 0, 2])])
def test_forbidden_tokens_come_last(allowed, tokens):
    logits = torch.full((1, 20), -math.inf)
    logits[0, allowed] = 2.0
    best = leading(logits, torch.arange(20), 3)
    assert best.tokens == tokens
    assert best.log_q == [0.0, -math.inf, -math.inf]


@pytest.mark.usefixtures("compiled_only")
@pytest.mark.parametrize("hidden", [-math.inf, math.nan])
def test_no_token_leads_twice(hidden):
    """Two siblings of one token would be no tree."""
    for finite in ([], [0], [2], [0, 1], [1, 4]):
        logits = torch.full((1, 6), hidden)
        logits[0, finite] = 1.0
        best = leading(logits, torch.arange(6), 5).tokens
        assert best[: len(finite)] == finite
        assert len(set(best)) == 5


@pytest.mark.usefixtures("compiled_only")
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_give_no_chances(broken):
    """Other rows keep theirs."""
    logits, tokens = some(3, 50)
    expected = leading(logits, tokens, 4)
    logits[1, 20] = broken
    best = leading(logits, tokens, 4)
    assert best.tokens[:4] + best.tokens[8:] == expected.tokens[:4] + expected.tokens[8:]
    assert set(best.tokens) <= set(tokens.tolist())
    assert all(math.isnan(value) for value in best.log_q[4:8])


@pytest.mark.usefixtures("compiled_only")
def test_views_are_read_as_what_they_show():
    logits, tokens = some(4, 64)
    whole = leading(logits, tokens, 3)
    assert leading(logits.T.contiguous().T, tokens.repeat_interleave(2)[::2], 3) == whole
    assert leading(logits[::2], tokens, 3).tokens == whole.tokens[:3] + whole.tokens[6:9]


def test_one_that_chooses_otherwise_is_not_used(monkeypatch):
    real = module._compiled

    def wrong(functions, logits, tokens, count, noise):
        best = real(functions, logits, tokens, count, noise)
        return best if noise is None else best._replace(log_q=[v - 0.01 for v in best.log_q])

    is_right.cache_clear()
    monkeypatch.setattr(module, "_compiled", wrong)
    logits, tokens = some(2, 300)
    try:
        assert not is_right(native())
        assert leading(logits, tokens, 2, NOISE) == leading_by_torch(logits, tokens, 2, NOISE)
    finally:
        is_right.cache_clear()


def test_more_leaders_than_columns_are_refused():
    logits, tokens = some(2, 3)
    with pytest.raises(RuntimeError, match="out of range"):
        leading(logits, tokens, 4)


def test_what_is_not_float32_is_left_to_torch():
    logits, tokens = some(2, 300)
    wide = logits.double()
    assert leading(wide, tokens, 2) == leading_by_torch(wide, tokens, 2)


def test_an_oracle_has_no_noise_of_a_key():
    assert Noise.at(object(), 3) is None
    assert Noise.at(Sampler(0.5, seed=1), 3) == Noise(0.5, Sampler(0.5, seed=1).key, 3)
