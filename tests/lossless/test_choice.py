"""The definition of a choice, by hand, and the sampler held to it where logits tie."""

import pytest
import torch

from fspad_bench.core import sampling
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.lossless import choice, depths, noise_key


@pytest.mark.parametrize(
    ("logits", "top_k", "top_p", "kept"),
    [
        ([1.0, 3.0, 3.0, 3.0], 2, 1.0, [1, 2]),
        ([3.0, 1.0, 3.0, 3.0], 3, 1.0, [0, 2, 3]),
        ([0.0, 0.0, 0.0, 0.0], 0, 0.6, [0, 1, 2]),
        ([0.0, 0.0, 0.0, 0.0], 3, 0.6, [0, 1]),
        ([9.0, 0.0, 0.0], 0, 0.5, [0]),
        ([0.0, 1.0], 0, 1.0, [1, 0]),
    ],
)
def test_cuts_keep_the_best_and_of_ties_the_lowest_ids(logits, top_k, top_p, kept):
    assert choice.kept(logits, top_k, top_p) == kept
    sampler = Sampler(1.0, top_k, top_p)
    assert sorted(sampler.process(torch.tensor(logits))[1].tolist()) == sorted(kept)
    right = torch.tensor(choice.distribution(logits, sampler), dtype=torch.float64)
    ours = sampler.distribution(torch.tensor(logits, dtype=torch.float64))
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-15)


def test_min_p_keeps_what_is_near_the_best():
    logits = [0.0, 2.0, 1.0, 2.0]
    assert choice.kept(logits, 0, 1.0, 0.3) == [1, 3, 2]
    assert choice.kept(logits, 0, 1.0, 0.4) == [1, 3]
    assert choice.kept(logits, 1, 1.0, 0.3) == [1]
    sampler = Sampler(1.0, min_p=0.3)
    right = torch.tensor(choice.distribution(logits, sampler), dtype=torch.float64)
    ours = sampler.distribution(torch.tensor(logits, dtype=torch.float64))
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-15)
    assert not choice.is_clear([0.0, -1.0], 0, 1.0, 0.36788)  # e^-1
    assert choice.is_clear([0.0, -1.0], 0, 1.0, 0.36)


def test_a_greedy_tie_goes_to_the_lowest_id():
    assert choice.choice([1.0, 2.0, 2.0], Sampler(), 7) == (1, True)
    assert choice.distribution([1.0, 2.0, 2.0], Sampler()) == [0.0, 1.0, 0.0]


def test_a_walk_follows_the_choice():
    tree = Tree([0, 1, 2, 3], [-1, 0, 0, 2])
    rows = [[0, 0, 5, 0], [9, 0, 0, 0], [0, 0, 0, 5], [0, 7, 7, 0]]
    assert choice.walked(tree, rows, Sampler(), 4) == ([0, 2, 3], 1)


def test_the_key_is_that_of_the_definition_and_every_word_matters():
    check = noise_key.check_key()
    assert check.verdict == "PASS", check.figure


@pytest.mark.parametrize(
    ("name", "wrong", "word"),
    [
        ("stream_of", lambda task, sample, turn, repeat=0: f"{task}\n{sample}", "the turn"),
        ("stream_of", lambda task, sample, turn, repeat=0: f"{task}\n{turn}", "the sample"),
        ("mix", lambda word: word & 0xFF, "a position 256 further"),
    ],
)
def test_a_word_that_does_not_matter_is_named(name, wrong, word, monkeypatch):
    monkeypatch.setattr(sampling, name, wrong)
    assert f"{word} does not matter" in noise_key.key_faults()


def test_a_rule_that_changes_logits_leaves_the_tied_cases_whole():
    def spoiling(tree, logits, sampler, position):
        walk = depths.RULES["match"](tree, logits.clone(), sampler, position)
        logits.zero_()
        return walk

    cpu = torch.device("cpu")
    for _ in range(2):
        assert depths.ties_hold(spoiling, greedy=False, dtype=torch.float64, device=cpu)
    assert len(depths.tied_cases()) == len(depths.TIED_POSITIONS) * len(depths.TIED_SAMPLERS)


def test_the_sampler_walks_ties_as_the_definition_does(tiny):
    check = depths.check_ties(
        "match", tiny.verifier(depths.RULES["match"]), greedy=False, target=tiny
    )
    assert check.verdict == "PASS", check.figure
