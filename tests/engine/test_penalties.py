"""Penalties: transformers' own where it has them, and the definition of served engines else."""

import pytest
import torch

from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.penalties import CountPenalty, Penalties
from fspad_bench.util.errors import BenchError


def adjusted(penalties, text, prompt_length, logits):
    sampler = Sampler(processors=penalties.processors)
    return sampler.adjust(torch.tensor(logits), torch.tensor(text), prompt_length).tolist()


def test_without_settings_there_are_no_processors():
    assert Penalties().processors == ()


def test_presence_and_frequency_count_the_output_alone():
    penalties = Penalties(presence_penalty=0.5, frequency_penalty=0.25)
    text = [0, 0, 1, 3, 3]
    assert adjusted(penalties, text, 2, [1.0, 1.0, 1.0, 1.0]) == [1.0, 0.25, 1.0, 0.0]
    assert adjusted(penalties, text, 5, [1.0, 1.0, 1.0, 1.0]) == [1.0, 1.0, 1.0, 1.0]


def test_repetition_counts_the_prompt_too_and_comes_first():
    penalties = Penalties(repetition_penalty=2.0, presence_penalty=0.5)
    assert adjusted(penalties, [0, 1], 1, [4.0, -4.0, 4.0]) == [2.0, -8.5, 4.0]


def test_no_ngram_comes_twice():
    penalties = Penalties(no_repeat_ngram_size=2)
    assert adjusted(penalties, [1, 2, 0, 1], 3, [0.0, 0.0, 0.0]) == [0.0, 0.0, -torch.inf]


@pytest.mark.parametrize("penalty", [1e-6, 1e6])
def test_the_strongest_penalties_leave_finite_logits(penalty):
    penalties = Penalties(penalty, 1e6, -1e6)
    rows = adjusted(penalties, [0, 0, 1], 0, [60.0, -60.0, 1.0])
    assert all(abs(value) < 1e9 for value in rows)
    assert rows[2] == 1.0


def test_equal_settings_share_their_processors():
    penalties = Penalties(presence_penalty=1.0)
    assert penalties.processors is penalties.processors
    assert penalties.processors == (CountPenalty(1.0, 0.0),)


@pytest.mark.parametrize(
    "wrong",
    [
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": 1e-40},
        {"repetition_penalty": 1e39},
        {"presence_penalty": float("nan")},
        {"presence_penalty": -1e39},
        {"frequency_penalty": float("inf")},
        {"frequency_penalty": 1e300},
        {"no_repeat_ngram_size": -1},
        {"no_repeat_ngram_size": 2.5},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(BenchError, match=name.replace("_", "-")):
        Penalties(**wrong)
