"""The law against transformers' warpers, the noise against plain integers and the statistics that it must obey.

Every statistic is of a fixed seed, so a bound holds or fails for good: |z| < 4.5 passes by chance but for 1 seed in
100,000. `chi_square_z` maps a chi-square to a standard normal (Wilson and Hilferty 1931).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fspad_bench.core import sampling
from fspad_bench.core.sampling import Sampler, gumbel, hash32
from fspad_bench.errors import BenchError

Z = 4.5
VOCABULARY = 49152
WORD = 0xFFFFFFFF
LAWS = [
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
    """The law that transformers samples from."""
    scores = TemperatureLogitsWarper(sampler.temperature)(None, logits[None])
    if sampler.top_k:
        scores = TopKLogitsWarper(sampler.top_k)(None, scores)
    if sampler.top_p < 1:
        scores = TopPLogitsWarper(sampler.top_p)(None, scores)
    return scores[0].softmax(0)


def plain_hash(key: tuple[int, int], position: int, token: int) -> int:
    """The hash of a token in Python's unbounded integers."""

    def mix(x: int) -> int:
        x = ((x ^ x >> 16) * 0x7FEB352D) & WORD
        x = ((x ^ x >> 15) * 0x846CA68B) & WORD
        return x ^ x >> 16

    row = mix((position + key[0]) & WORD)
    return mix((mix(token ^ row) + mix(row ^ key[1])) & WORD)


def uniform(h: torch.Tensor) -> torch.Tensor:
    """Hash bits as numbers in (0, 1), float64."""
    return ((h.to(torch.int64) & WORD).to(torch.float64) + 0.5) * 2.0**-32


def chi_square_z(counts: torch.Tensor, expected: torch.Tensor | float) -> float:
    freedom = counts.numel() - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)


def uniformity_z(u: torch.Tensor, bins: int = 256) -> float:
    counts = torch.bincount((u.flatten() * bins).long(), minlength=bins).double()
    return chi_square_z(counts, u.numel() / bins)


def correlation_z(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.flatten().double(), b.flatten().double()
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1]) * math.sqrt(a.numel())


def joint_z(a: torch.Tensor, b: torch.Tensor, bins: int = 32) -> float:
    """Uniformity on the unit square of pairs: sees dependence that a correlation does not."""
    cell = (a.flatten() * bins).long() * bins + (b.flatten() * bins).long()
    return chi_square_z(
        torch.bincount(cell, minlength=bins * bins).double(), cell.numel() / bins**2
    )


def hashes_over(axis: str) -> torch.Tensor:
    """Hash bits `[4096, 256]`: the named axis is counted up along the rows, tokens 256 at a time along the columns."""
    tokens = torch.arange(256)
    rows = {
        "positions": lambda i: hash32(Sampler(seed=1).key, i, tokens),
        "tokens": lambda i: hash32(Sampler(seed=2).key, 7, tokens * 4096 + i),
        "seeds": lambda i: hash32(Sampler(seed=i).key, 7, tokens),
        "streams": lambda i: hash32(Sampler(stream=f"gsm8k\n{i}\n0\n0").key, 7, tokens),
        "shifted keys": lambda i: hash32((1000 + i, 77), 7, tokens),
        "second keys": lambda i: hash32((1000, i), 7, tokens),
    }
    return torch.stack([rows[axis](i) for i in range(4096)])


AXES = ("positions", "tokens", "seeds", "streams", "shifted keys", "second keys")


class TestLaw:
    @pytest.mark.parametrize("sampler", LAWS, ids=lambda s: f"{s.temperature}-{s.top_k}-{s.top_p}")
    def test_equals_transformers(self, sampler):
        for vocabulary, spread, seed in itertools.product((5, 97, 3000), (0.3, 3.0), range(2)):
            logits = random_logits(vocabulary, spread, seed)
            torch.testing.assert_close(
                sampler.law(logits), warped(sampler, logits), rtol=0, atol=1e-12
            )

    @pytest.mark.parametrize("kept", [1, 1023, 1024, 1025, 2048, 2999, 3000])
    def test_nuclei_about_the_shortlist(self, kept):
        logits = random_logits(3000, 0.5)
        mass = logits.softmax(0).sort(descending=True).values.cumsum(0)
        sampler = Sampler(1.0, top_p=float(mass[kept - 1]) - 1e-9)
        assert (sampler.law(logits) > 0).sum() == kept
        torch.testing.assert_close(sampler.law(logits), warped(sampler, logits), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 6.0])
    @pytest.mark.parametrize("sampler", [s for s in LAWS if s.top_p < 1], ids=lambda s: f"{s}")
    def test_shortlist_equals_the_full_sort(self, sampler, spread, dtype, monkeypatch):
        logits = random_logits(5000, spread).to(dtype)
        logits[::7] = logits[1]
        scores, tokens = sampler.process(logits)
        monkeypatch.setattr(sampling, "SHORTLIST", len(logits))
        all_scores, all_tokens = sampler.process(logits)
        assert scores.equal(all_scores)
        assert tokens.equal(all_tokens)

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
            assert Sampler(1.0, top_k=top_k).law(logits).equal(Sampler(1.0).law(logits))
            assert Sampler(1.0, top_k, 0.9).law(logits).equal(Sampler(1.0, top_p=0.9).law(logits))

    def test_forbidden_tokens_stay_forbidden(self):
        logits = random_logits(3000, 1.0)
        logits[::2] = float("-inf")
        for sampler in (
            Sampler(1.0),
            Sampler(1.0, top_k=2000),
            Sampler(1.0, top_p=0.99),
            Sampler(1.0, 2000, 0.999),
        ):
            assert sampler.law(logits)[::2].sum() == 0
            assert sampler.law(logits).sum() == pytest.approx(1)
            assert all(sampler.next(logits, position) % 2 for position in range(50))

    def test_half_precision_is_processed_in_float32(self):
        logits = random_logits(97, 3.0).to(torch.bfloat16)
        assert Sampler(0.7).process(logits)[0].dtype == torch.float32
        assert Sampler(0.7, 9, 0.9).law(logits).equal(Sampler(0.7, 9, 0.9).law(logits.float()))

    def test_greedy_is_the_first_of_the_best(self):
        logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
        assert Sampler().next(logits, 0) == 1
        assert Sampler().law(logits).tolist() == [0, 1, 0, 0]

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


class TestHash:
    def test_equals_plain_integers(self):
        tokens = torch.tensor([0, 1, 2, 255, 49151, 65536, 151935, 2**31 - 1])
        keys = [
            (0, 0),
            (WORD, WORD),
            (2**31, 2**31 - 1),
            (123, 2**31),
            Sampler(seed=5, stream="x").key,
        ]
        for key, position in itertools.product(
            keys, (0, 1, 2, 4095, 2**20, 2**31, WORD, 2**33 + 5)
        ):
            found = [word & WORD for word in hash32(key, position, tokens).tolist()]
            assert found == [plain_hash(key, position, token) for token in tokens.tolist()]

    def test_is_int32_in_the_shape_of_the_tokens(self):
        for shape in ((), (0,), (5,), (2, 3)):
            h = hash32((1, 2), 3, torch.zeros(shape, dtype=torch.int64))
            assert h.dtype == torch.int32
            assert h.shape == shape

    def test_leaves_its_tokens_alone(self):
        tokens = torch.arange(10, dtype=torch.int32)
        hash32((1, 2), 3, tokens)
        assert tokens.equal(torch.arange(10, dtype=torch.int32))

    def test_golden_values(self):
        """Records of sampled runs are comparable across releases only while these stand."""
        key = Sampler(seed=1, stream="gsm8k").key
        assert key == (2035615223, 2376766013)
        assert hash32(key, 5, torch.arange(3)).tolist() == [401809138, 772121489, 1745607628]

    def test_streams_and_seeds_have_keys_of_their_own(self):
        keys = {
            Sampler(seed=seed, stream=f"{task}").key for seed in range(100) for task in range(100)
        }
        assert len(keys) == 10_000
        assert (
            Sampler(1.0, seed=3).streamed("a").key == Sampler(0.5, 4, 0.9, seed=3, stream="a").key
        )

    @pytest.mark.parametrize("axis", AXES)
    def test_uniform_and_independent_along(self, axis):
        u = uniform(hashes_over(axis))
        assert abs(uniformity_z(u)) < Z
        assert abs(uniformity_z(u * 256 % 1)) < Z  # the second byte
        assert abs(uniformity_z(u * 65536 % 1)) < Z
        assert abs(correlation_z(u[:-1], u[1:])) < Z
        assert abs(joint_z(u[:-1], u[1:])) < Z
        assert abs(correlation_z(u[:, :-1], u[:, 1:])) < Z
        assert abs(joint_z(u[:, :-1], u[:, 1:])) < Z

    @pytest.mark.parametrize("axis", AXES)
    def test_each_token_is_uniform_along(self, axis):
        """The 256 columns alone: their statistics follow a chi-square's law too."""
        zs = torch.tensor(
            [uniformity_z(column, bins=64) for column in uniform(hashes_over(axis)).T]
        )
        assert abs(float(zs.mean())) * math.sqrt(len(zs)) < Z
        assert zs.abs().max() < Z

    def test_one_bit_of_the_input_flips_each_bit_of_the_output_half_the_time(self):
        tokens, bits = torch.arange(20_000), torch.arange(32)[:, None]
        flips = [
            hash32((1, 2), 3, tokens).bitwise_xor(hash32((1, 2), 3, tokens ^ (1 << bit))) >> bits
            & 1
            for bit in range(17)
        ]
        rates = torch.stack(flips).double().mean(-1)
        pairs = len(tokens) / 2  # a pair is met from both its ends
        assert float((rates - 0.5).abs().max()) * 2 * math.sqrt(pairs) < 5.0  # the worst of 544


class TestNoise:
    def test_is_finite_for_every_edge_hash(self):
        edges = torch.cat([torch.arange(-200, 200), torch.tensor([2**31 - 1, -(2**31)])]).to(
            torch.int32
        )
        assert gumbel(edges).isfinite().all()
        assert gumbel(edges).dtype == torch.float32

    def test_equals_the_formula_in_float64(self):
        h = torch.cat(
            [torch.arange(0, 2**32, 65521), torch.arange(2000), 2**32 - 1 - torch.arange(2000)]
        )
        w = ((h.double() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
        found = gumbel(torch.where(h >= 2**31, h - 2**32, h).to(torch.int32))
        exact = -torch.log(-torch.log1p(-w))
        # w is rounded once, to 2^-25 at worst, which an E = -log(1 - w) far out magnifies by e^E
        bound = 2.0**-24 * torch.exp(-torch.log1p(-w)) / -torch.log1p(-w) + 4e-6
        assert ((found.double() - exact).abs() <= bound).all()

    def test_falls_as_the_hash_rises(self):
        h = torch.arange(0, 2**32, 99991)
        noise = gumbel(torch.where(h >= 2**31, h - 2**32, h).to(torch.int32))
        assert (noise.diff() <= 0).all()

    def test_does_not_depend_on_who_asks_along(self):
        sampler, tokens = Sampler(1.0, seed=4, stream="s"), torch.arange(VOCABULARY)
        row = sampler.noise(11, tokens)
        for asked in (
            tokens.flip(0),
            tokens[::3],
            tokens[5:1029],
            tokens[[17]],
            tokens[40000:40003],
        ):
            assert sampler.noise(11, asked).equal(row[asked])
        assert sampler.noise(11, tokens.view(2, -1)).equal(row.view(2, -1))
        assert sampler.noise(11, tokens[123]).equal(row[123])

    def test_moments_and_tail(self):
        g = torch.stack(
            [Sampler(seed=3).noise(p, torch.arange(VOCABULARY)) for p in range(40)]
        ).double()
        n, variance = g.numel(), math.pi**2 / 6
        assert abs(float(g.mean()) - 0.5772156649) * math.sqrt(n / variance) < Z
        # the kurtosis of a Gumbel variate is 3 + 12/5
        assert abs(float(g.var()) - variance) / (variance * math.sqrt(4.4 / n)) < Z
        for tail in (1e-2, 1e-3, 1e-4):
            above = int((g > -math.log(-math.log1p(-tail))).sum())
            assert abs(above - n * tail) / math.sqrt(n * tail) < Z

    @pytest.mark.parametrize("axis", ["position", "token", "stream", "seed"])
    def test_neighbours_are_independent_at_the_real_vocabulary(self, axis):
        tokens = torch.arange(VOCABULARY)
        row = {
            "position": lambda i: Sampler(seed=9).noise(100 + i, tokens),
            "token": lambda i: Sampler(seed=9).noise(200 + i, tokens),
            "stream": lambda i: Sampler(seed=9, stream=f"{i}").noise(300, tokens),
            "seed": lambda i: Sampler(seed=i).noise(300, tokens),
        }[axis]
        g = torch.stack([row(i) for i in range(48)]).double()
        g = g.T if axis == "token" else g
        a, b = g[::2], g[1::2]
        assert a.numel() > 1e6
        assert abs(correlation_z(a, b)) < Z
        assert abs(joint_z(*(torch.exp(-torch.exp(-x)) for x in (a, b)))) < Z

    def test_every_token_wins_a_flat_row_as_often(self):
        sampler, tokens = Sampler(1.0, seed=6), torch.arange(VOCABULARY)
        rows = [sampler.noise(position, tokens) for position in range(1500)]
        winners = torch.tensor([int(row.argmax()) for row in rows])
        assert abs(uniformity_z(winners / VOCABULARY, bins=48)) < Z
        best = torch.tensor([float(row.max()) for row in rows], dtype=torch.float64)
        # the largest of V is a Gumbel variate moved by log V
        assert abs(uniformity_z(torch.exp(-torch.exp(math.log(VOCABULARY) - best)), bins=50)) < Z


@pytest.mark.parametrize("draws", [10_000, pytest.param(200_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "sampler", [Sampler(1.0, seed=1), Sampler(0.6, top_k=4), Sampler(1.5, top_p=0.9), Sampler(0.8)]
)
def test_the_empirical_law_of_next(sampler, draws):
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.7])
    law = sampler.law(logits)
    with torch.inference_mode():
        chosen = torch.tensor([sampler.next(logits, position) for position in range(draws)])
    counts = torch.bincount(chosen, minlength=5).double()
    assert counts[law == 0].sum() == 0
    assert abs(chi_square_z(counts[law > 0], law[law > 0] * draws)) < Z
    pairs = torch.bincount(chosen[::2] * 5 + chosen[1::2], minlength=25).double()
    expected = (law[:, None] * law).flatten() * (draws // 2)
    assert abs(chi_square_z(pairs[expected > 0], expected[expected > 0])) < Z


def test_dice_are_uniform_and_their_rolls_independent():
    dice = Sampler(seed=11, stream="dice").dice(40, "draft")
    u = torch.tensor([dice.uniform() for _ in range(20_000)], dtype=torch.float64)
    assert 0 < u.min() < u.max() < 1
    cell = (u * 10).long()
    assert abs(chi_square_z(torch.bincount(cell, minlength=10).double(), 2000.0)) < Z
    assert (
        abs(chi_square_z(torch.bincount(cell[:-1] * 10 + cell[1:], minlength=100).double(), 199.99))
        < Z
    )


def test_dice_share_nothing_across_purposes_positions_seeds_and_streams():
    def rolls(position=5, purpose="draft", seed=0, stream=""):
        dice = Sampler(1.0, seed=seed, stream=stream).dice(position, purpose)
        return [dice.uniform() for _ in range(8)]

    others = [rolls(position=6), rolls(purpose="verify"), rolls(seed=1), rolls(stream="x")]
    assert rolls() == rolls()
    assert len({roll for found in [rolls(), *others] for roll in found}) == 5 * 8


@pytest.mark.nightly
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_hundred_million_draws(lag):
    """Uniformity, its tail, and independence across positions `lag` apart and across neighbouring tokens."""
    sampler, tokens, rows = Sampler(seed=17, stream="nightly"), torch.arange(VOCABULARY), 2048
    bins = torch.zeros(4096, dtype=torch.float64)
    across, along = (
        torch.zeros(64 * 64, dtype=torch.float64),
        torch.zeros(64 * 64, dtype=torch.float64),
    )
    tail, window = 0, []
    for position in range(rows):
        u = uniform(hash32(sampler.key, position, tokens))
        bins += torch.bincount((u * 4096).long(), minlength=4096)
        tail += int((u < 1e-3).sum())  # small hashes are large noise
        cell = (u * 64).long()
        along += torch.bincount(cell[:-1] * 64 + cell[1:], minlength=64 * 64)
        window.append(cell)
        if len(window) > lag:
            across += torch.bincount(window.pop(0) * 64 + cell, minlength=64 * 64)
    n = rows * VOCABULARY
    assert bins.sum() == n > 1e8
    assert abs(chi_square_z(bins, n / 4096)) < Z
    assert abs(chi_square_z(along, along.sum() / 64**2)) < Z
    assert abs(chi_square_z(across, across.sum() / 64**2)) < Z
    assert abs(tail - n * 1e-3) / math.sqrt(n * 1e-3) < Z
