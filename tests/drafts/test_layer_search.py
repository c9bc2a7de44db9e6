"""The search for layers: the first set is scored first, the others beside it, and always alike."""

import itertools

import pytest
import torch

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.drafts.layer_search import Effort, LayerSearch, odd_layers, posterior

LAYERS = 8
SPARED = {("attention", 2), ("attention", 5), ("mlp", 3), ("mlp", 4), ("mlp", 6)}
"""The sublayers that a text does without."""


def sublayers(plan):
    return {("attention", i) for i in plan.skip_attention} | {("mlp", i) for i in plan.skip_mlp}


def spared(plan):
    """A score: the share of what is skipped that can be."""
    return len(sublayers(plan) & SPARED) / len(sublayers(plan))


def searched(steps, score=spared, **effort):
    search = LayerSearch(LAYERS, odd_layers(LAYERS), 5, Effort(**effort))
    for _ in range(steps):
        search.step(score)
    return search


def test_the_first_set_is_every_odd_layer_and_is_scored_first():
    first = LayerPlan(frozenset({1, 3, 5}), frozenset({1, 3, 5}))
    assert odd_layers(LAYERS) == first
    search = searched(1)
    assert search.tried == [first]
    assert search.best == first
    assert search.best_score == spared(first)


def test_a_candidate_is_of_the_given_size_and_spares_the_first_and_the_last_layer():
    search = searched(60, suggest=10)
    for plan in search.tried[1:]:
        assert len(sublayers(plan)) == 5
        assert {layer for _, layer in sublayers(plan)} <= set(range(1, LAYERS - 1))
    assert len(set(search.tried)) > 40


def test_the_best_set_is_the_first_of_the_highest_score():
    search = searched(80)
    assert search.best_score == max(search.scores) > search.scores[0]
    assert search.best == search.tried[search.scores.index(max(search.scores))]


def test_a_candidate_must_beat_the_best_set_on_the_same_window():
    """On a text that is twice as hard the best set is scored anew before any candidate."""
    search = searched(80)
    best = search.best
    search.move()
    search.step(lambda plan: spared(plan) / 2)
    assert search.tried[-1] == best
    assert search.best_score == spared(best) / 2
    search.step(lambda plan: 0.0)
    assert search.best == best


def test_the_same_scores_lead_the_same_way():
    one, other = searched(60, suggest=7), searched(60, suggest=7)
    assert one.tried == other.tried


def test_it_ends_when_the_score_is_enough():
    search = LayerSearch(LAYERS, odd_layers(LAYERS), 5, Effort(enough=0.6))
    while search.active:
        search.step(spared)
    assert search.best_score >= 0.6
    assert max(search.scores[:-1]) < 0.6


@pytest.mark.parametrize(("effort", "tried"), [({"patience": 9}, 10), ({"trials": 6}, 6)])
def test_it_ends_in_vain(effort, tried):
    search = LayerSearch(LAYERS, odd_layers(LAYERS), 5, Effort(**effort))
    while search.active:
        search.step(lambda plan: 0.0)
    assert len(search.tried) == tried
    assert search.best == odd_layers(LAYERS)


def test_two_layers_leave_one_to_skip():
    search = LayerSearch(2, odd_layers(2), 1, Effort())
    for _ in range(12):
        search.step(lambda plan: 0.0)
    alone = {LayerPlan(frozenset({1})), LayerPlan(skip_mlp=frozenset({1}))}
    assert set(search.tried[1:]) == alone
    assert odd_layers(2) == LayerPlan(frozenset({1}), frozenset({1}))


def test_suggestions_find_better_sets_than_chance():
    """Of the same number of candidates, on a score that depends on each sublayer alone."""
    rows = []
    for salt in range(6):
        salted = [f"{salt}{kind}{i}" for kind in ("a", "m") for i in range(LAYERS)]
        worth = {name: (hash_of(name) % 97) / 97 for name in salted}

        def score(plan, worth=worth, salt=salt):
            total = sum(worth[f"{salt}{kind[0]}{i}"] for kind, i in sublayers(plan))
            return total / len(sublayers(plan))

        rows.append([searched(40, score, suggest=k, enough=2.0).best_score for k in (0, 2)])
    chance, suggested = map(sum, zip(*rows, strict=True))
    assert suggested > chance


def hash_of(text):
    return int.from_bytes(text.encode()) * 2654435761 % 2**32


def test_the_process_is_that_of_the_textbook():
    """Mean and deviation against the joint normal distribution, and at what it has seen."""
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).double()
    y = torch.linspace(0.1, 0.8, 8).double()
    mean, deviation = posterior(x[:5], y[:5], x)
    scale = y[:5].var(correction=0)
    kernel = scale * torch.exp(-(torch.cdist(x, x) ** 2) / 1.5)
    known = torch.linalg.inv(kernel[:5, :5] + 1e-2 * torch.eye(5))
    expected = y[:5].mean() + kernel[:, :5] @ known @ (y[:5] - y[:5].mean())
    variance = kernel.diagonal() - (kernel[:, :5] @ known * kernel[:, :5]).sum(1)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(deviation, variance.sqrt())
    assert deviation[5:].min() > deviation[:5].max()
