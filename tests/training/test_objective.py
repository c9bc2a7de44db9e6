"""Learning rates and noise are the published ones; recipes that cannot work are refused."""

import pytest
import torch

from fspad_bench.training.objective import Recipe, uniform_noise
from fspad_bench.util.errors import BenchError

CPU = torch.device("cpu")


def test_rates_rise_and_fall_linearly():
    recipe = Recipe(lr=1.0, warmup=10)
    rates = [recipe.rate(step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(
    "settings",
    [{"supervise": "prompts"}, {"vocabulary": "all"}, {"epochs": 0.0}, {"lr": float("nan")}],
)
def test_a_bad_recipe_is_refused(settings):
    (name,) = settings
    with pytest.raises(BenchError, match=name):
        Recipe(**settings)


def test_noise_is_uniform_and_scaled_by_length():
    noise = uniform_noise(torch.Size([2, 511, 400]), [512, 128], 0.2, [(3, 0), (3, 1)], CPU)
    assert noise[0].abs().max() == pytest.approx(0.1, rel=1e-3)
    assert noise[1].abs().max() == pytest.approx(0.4, rel=1e-3)
    assert not noise[1, 128:].any()
    assert abs(float(noise[0].mean())) < 1e-3


def test_the_noise_of_a_sequence_follows_from_its_key_alone():
    pair = uniform_noise(torch.Size([2, 30, 8]), [31, 20], 0.2, [(3, 0), (3, 1)], CPU)
    alone = uniform_noise(torch.Size([1, 19, 8]), [20], 0.2, [(3, 1)], CPU)
    other = uniform_noise(torch.Size([1, 19, 8]), [20], 0.2, [(4, 1)], CPU)
    assert torch.equal(alone[0], pair[1, :19])
    assert not torch.equal(other[0], pair[1, :19])
