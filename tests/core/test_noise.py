"""The sampler's noise and dice against plain integers, and the statistics that they must obey.

Seeds are fixed, so a bound holds or fails for good; true noise would exceed |z| = 4.5 for 1 seed in
100,000. `chi_square_z` maps a chi-square to a standard normal (Wilson and Hilferty 1931).
"""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch

from fspad_bench.core.sampling import Sampler, gumbel, hash32, hash_word

Z = 4.5
VOCABULARY = 49152
WORD = 0xFFFFFFFF


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


@functools.cache
def hashes_over(axis: str) -> torch.Tensor:
    """Return hash bits `[4096, 256]`: the named axis counts up along rows, tokens along columns."""
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
            words = [word & WORD for word in hash32(key, position, tokens).tolist()]
            assert words == [plain_hash(key, position, token) for token in tokens.tolist()]
            assert words == [hash_word(key, position, token) for token in tokens.tolist()]

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

    @pytest.mark.sampled(3)
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

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("axis", AXES)
    def test_each_token_is_uniform_along(self, axis):
        """The 256 columns alone: their statistics follow a chi-square distribution too."""
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
        noise = gumbel(torch.where(h >= 2**31, h - 2**32, h).to(torch.int32))
        exact = -torch.log(-torch.log1p(-w))
        # w is rounded once, to 2^-25 at worst, which an E = -log(1 - w) far out magnifies by e^E
        bound = 2.0**-24 * torch.exp(-torch.log1p(-w)) / -torch.log1p(-w) + 4e-6
        assert ((noise.double() - exact).abs() <= bound).all()

    def test_falls_as_the_hash_rises(self):
        h = torch.arange(0, 2**32, 99991)
        noise = gumbel(torch.where(h >= 2**31, h - 2**32, h).to(torch.int32))
        assert (noise.diff() <= 0).all()

    def test_does_not_depend_on_the_other_tokens(self):
        sampler = Sampler(1.0, seed=4, stream="s")
        tokens = torch.arange(VOCABULARY)
        row = sampler.noise(11, tokens)
        for some in (
            tokens.flip(0),
            tokens[::3],
            tokens[5:1029],
            tokens[[17]],
            tokens[40000:40003],
        ):
            assert sampler.noise(11, some).equal(row[some])
        assert sampler.noise(11, tokens.view(2, -1)).equal(row.view(2, -1))
        assert sampler.noise(11, tokens[123]).equal(row[123])

    def test_moments_and_tail(self):
        g = torch.stack(
            [Sampler(seed=3).noise(p, torch.arange(VOCABULARY)) for p in range(40)]
        ).double()
        n = g.numel()
        variance = math.pi**2 / 6
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

    @pytest.mark.wide
    def test_every_token_wins_a_flat_row_as_often(self):
        sampler = Sampler(1.0, seed=6)
        tokens = torch.arange(VOCABULARY)
        rows = [sampler.noise(position, tokens) for position in range(1500)]
        winners = torch.tensor([int(row.argmax()) for row in rows])
        assert abs(uniformity_z(winners / VOCABULARY, bins=48)) < Z
        best = torch.tensor([float(row.max()) for row in rows], dtype=torch.float64)
        # the largest of V is a Gumbel variate moved by log V
        assert abs(uniformity_z(torch.exp(-torch.exp(math.log(VOCABULARY) - best)), bins=50)) < Z


@pytest.mark.sampled(4)
@pytest.mark.parametrize("draws", [3_000, pytest.param(200_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "sampler", [Sampler(1.0, seed=1), Sampler(0.6, top_k=4), Sampler(1.5, top_p=0.9), Sampler(0.8)]
)
def test_the_empirical_distribution_of_next(sampler, draws):
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.7])
    p = sampler.distribution(logits)
    with torch.inference_mode():
        chosen = torch.tensor([sampler.next(logits, position) for position in range(draws)])
    counts = torch.bincount(chosen, minlength=5).double()
    assert counts[p == 0].sum() == 0
    assert abs(chi_square_z(counts[p > 0], p[p > 0] * draws)) < Z
    pairs = torch.bincount(chosen[::2] * 5 + chosen[1::2], minlength=25).double()
    expected = (p[:, None] * p).flatten() * (draws // 2)
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
    assert len({roll for each in [rolls(), *others] for roll in each}) == 5 * 8


@pytest.mark.nightly
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_hundred_million_draws(lag):
    """Test uniformity, its tail, independence of positions `lag` apart and of adjacent tokens."""
    sampler = Sampler(seed=17, stream="nightly")
    tokens = torch.arange(VOCABULARY)
    rows = 2048
    bins = torch.zeros(4096, dtype=torch.float64)
    across = torch.zeros(64 * 64, dtype=torch.float64)
    along = torch.zeros(64 * 64, dtype=torch.float64)
    tail = 0
    window = []
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
