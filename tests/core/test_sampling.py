"""The processed distribution against transformers' warpers, and the settings that are refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fspad_bench.core import sampling
from fspad_bench.core.sampling import NotFiniteError, Sampler
from fspad_bench.util.errors import BenchError

SAMPLERS = [
    Sampler(temperature, top_k, top_p)
    for temperature, top_k, top_p in itertools.product(
        (0.2, 0.7, 1.0, 1.8), (0, 1, 5, 40), (1.0, 0.95, 0.6, 0.05)
    )
]


def random_logits(vocabulary: int, spread: float, seed: int = 0) -> torch.Tensor:
    return (
        torch.randn(vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        * spread
    )


def warped(sampler: Sampler, logits: torch.Tensor) -> torch.Tensor:
    """Return the distribution that transformers samples from."""
    scores = TemperatureLogitsWarper(sampler.temperature)(None, logits[None])
    if sampler.top_k:
        scores = TopKLogitsWarper(sampler.top_k)(None, scores)
    if sampler.top_p < 1:
        scores = TopPLogitsWarper(sampler.top_p)(None, scores)
    return scores[0].softmax(0)


class TestDistribution:
    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(
        "sampler", SAMPLERS, ids=lambda s: f"{s.temperature}-{s.top_k}-{s.top_p}"
    )
    def test_equals_transformers(self, sampler):
        for vocabulary, spread, seed in itertools.product((5, 97, 3000), (0.3, 3.0), range(2)):
            logits = random_logits(vocabulary, spread, seed)
            torch.testing.assert_close(
                sampler.distribution(logits), warped(sampler, logits), rtol=0, atol=1e-12
            )

    @pytest.mark.parametrize("kept", [1, 1023, 1024, 1025, 2048, 2999, 3000])
    def test_nuclei_about_the_shortlist(self, kept):
        logits = random_logits(3000, 0.5)
        mass = logits.softmax(0).sort(descending=True).values.cumsum(0)
        sampler = Sampler(1.0, top_p=float(mass[kept - 1]) - 1e-9)
        assert (sampler.distribution(logits) > 0).sum() == kept
        torch.testing.assert_close(
            sampler.distribution(logits), warped(sampler, logits), rtol=0, atol=1e-12
        )

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s.top_p < 1], ids=lambda s: f"{s}")
    def test_shortlist_equals_the_full_sort(self, sampler, monkeypatch):
        dtypes = (torch.float32, torch.float64)
        for spread, dtype in itertools.product((0.0, 0.1, 1.0, 6.0), dtypes):
            logits = random_logits(5000, spread).to(dtype)
            logits[::7] = logits[1]
            scores, tokens = sampler.process(logits)
            with monkeypatch.context() as patch:
                patch.setattr(sampling, "SHORTLIST", len(logits))
                all_scores, all_tokens = sampler.process(logits)
            assert scores.equal(all_scores), (spread, dtype)
            assert tokens.equal(all_tokens), (spread, dtype)

    def test_ties_at_a_cut_go_to_the_lowest_ids(self):
        logits = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 0.0])
        assert Sampler(1.0, top_k=1).process(logits)[1].tolist() == [1]
        assert Sampler(1.0, top_k=3).process(logits)[1].tolist() == [1, 3, 0]
        assert Sampler(1.0, top_k=4).process(logits)[1].tolist() == [1, 3, 0, 2]
        # e^2 / (2 e^2 + 3 e + 1) = 0.309: the first two make 0.618, a third 0.732
        assert Sampler(1.0, top_p=0.3).process(logits)[1].tolist() == [1]
        assert Sampler(1.0, top_p=0.6).process(logits)[1].tolist() == [1, 3]
        assert Sampler(1.0, top_p=0.7).process(logits)[1].tolist() == [1, 3, 0]

    @pytest.mark.parametrize("top_k", [1, 10, 1000, 1999])
    def test_a_flat_row_keeps_its_first_ids(self, top_k):
        assert Sampler(1.0, top_k=top_k).process(torch.zeros(2000))[1].tolist() == list(
            range(top_k)
        )

    def test_a_flat_row_fills_the_nucleus_by_id(self):
        assert Sampler(1.0, top_p=0.7499).process(torch.zeros(4096))[1].tolist() == list(
            range(3072)
        )

    def test_a_nucleus_that_is_full_takes_no_more(self):
        halves = torch.zeros(2, dtype=torch.float64)
        assert Sampler(1.0, top_p=0.5).process(halves)[1].tolist() == [0]
        assert Sampler(1.0, top_p=0.5 + 1e-12).process(halves)[1].tolist() == [0, 1]

    def test_top_k_beyond_the_vocabulary_cuts_nothing(self):
        logits = random_logits(50, 1.0)
        for top_k in (50, 51, 10**6):
            assert (
                Sampler(1.0, top_k=top_k)
                .distribution(logits)
                .equal(Sampler(1.0).distribution(logits))
            )
            assert (
                Sampler(1.0, top_k, 0.9)
                .distribution(logits)
                .equal(Sampler(1.0, top_p=0.9).distribution(logits))
            )

    def test_forbidden_tokens_stay_forbidden(self):
        logits = random_logits(3000, 1.0)
        logits[::2] = float("-inf")
        for sampler in (
            Sampler(1.0),
            Sampler(1.0, top_k=2000),
            Sampler(1.0, top_p=0.99),
            Sampler(1.0, 2000, 0.999),
        ):
            assert sampler.distribution(logits)[::2].sum() == 0
            assert sampler.distribution(logits).sum() == pytest.approx(1)
            assert all(sampler.next(logits, position) % 2 for position in range(50))

    def test_half_precision_is_processed_in_float32(self):
        logits = random_logits(97, 3.0).to(torch.bfloat16)
        assert Sampler(0.7).process(logits)[0].dtype == torch.float32
        assert (
            Sampler(0.7, 9, 0.9)
            .distribution(logits)
            .equal(Sampler(0.7, 9, 0.9).distribution(logits.float()))
        )

    def test_greedy_is_the_first_of_the_best(self):
        logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
        assert Sampler().next(logits, 0) == 1
        assert Sampler().distribution(logits).tolist() == [0, 1, 0, 0]

    def test_a_low_temperature_is_greedy(self):
        logits = random_logits(97, 3.0)
        assert {Sampler(1e-4, seed=seed).next(logits, 3) for seed in range(50)} == {
            int(logits.argmax())
        }


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": 1e-7},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": -0.5},
        {"top_p": 1.0001},
        {"top_p": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(BenchError, match="out of range"):
        Sampler(**settings)


ROWS = {
    "a NaN": [1.0, float("nan"), 3.0, 2.0],
    "only NaN": [float("nan")] * 4,
    "an infinity": [1.0, 2.0, float("inf"), 0.0],
    "nothing allowed": [float("-inf")] * 4,
}


class TestLogitsThatAreNotFinite:
    @pytest.mark.parametrize("row", ROWS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "sampler",
        [Sampler(), Sampler(1.0), Sampler(1.0, top_k=1), Sampler(1.0, top_p=0.5)],
        ids=["greedy", "T=1", "top-k", "top-p"],
    )
    def test_no_token_and_no_distribution_follows(self, sampler, dtype, row):
        logits = torch.tensor(ROWS[row], dtype=dtype)
        with pytest.raises(NotFiniteError, match="before position 7 are not finite"):
            sampler.next(logits, 7)
        with pytest.raises(NotFiniteError, match="are not finite"):
            sampler.distribution(logits)

    def test_an_overflow_by_a_low_temperature_is_one_too(self):
        with pytest.raises(NotFiniteError):
            Sampler(1e-6).next(torch.tensor([1e35, 0.0]), 0)

    def test_the_greedy_distribution_is_all_on_the_token(self):
        p = Sampler().distribution(torch.tensor([0.5, 2.0, float("-inf"), 2.0]))
        assert p.tolist() == [0, 1, 0, 0]
        assert p.dtype == torch.float64
