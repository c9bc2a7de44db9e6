"""The search visits what a slow transcription of its description visits."""

import math
import random

import pytest

from fspad_bench.drafts.monte_carlo import most_visited
from fspad_bench.drafts.trigrams import Trigrams


def transcription(after, pair, dice, iterations):
    """Return paths by visits: everything is looked up again in every iteration."""
    visits = {(): 0}
    rewards = {(): 0.0}

    def successors(path):
        return dict(after(*(pair + path)[-2:]))

    def score(path, token):
        child = (*path, token)
        if not visits.get(child):
            return math.inf
        n = visits[child]
        explore = 32 + math.log((visits[path] + 8 + 1) / 8)
        prior = successors(path)[token]
        return rewards[child] / n + explore * prior * math.sqrt(visits[path]) / (1 + n)

    for _ in range(iterations):
        path = ()
        while len(path) < 3 and visits[path] and successors(path):
            path = (*path, max(successors(path), key=lambda token: score(path, token)))
            visits.setdefault(path, 0)
            rewards.setdefault(path, 0.0)
        whole = path
        while len(whole) < 3 and successors(whole):
            values = successors(whole)
            mark = dice.random() * sum(values.values())
            running = 0.0
            for token, value in values.items():
                running += value
                if running > mark:
                    whole = (*whole, token)
                    break
        reward = 1 + sum(successors(whole[:i])[whole[i]] for i in range(len(whole)))
        for length in range(len(path) + 1):
            visits[path[:length]] += 1
            rewards[path[:length]] += reward
    del visits[()]
    return sorted(visits, key=lambda path: -visits[path])


@pytest.mark.parametrize("symbols", [2, 4, 9])
def test_equals_the_transcription(symbols):
    """The values are multiples of 1/64, so that sums do not depend on their order."""
    dice = random.Random(symbols)
    for seed in range(5):
        trigrams = Trigrams()
        for _ in range(30 * symbols):
            pair = (dice.randrange(symbols), dice.randrange(symbols))
            value = dice.randrange(1, 64) / 64
            trigrams.values.setdefault(pair, {})[dice.randrange(symbols)] = value
        pair = (0, 1)
        found = most_visited(trigrams.after, pair, random.Random(seed), 60)
        assert found == transcription(trigrams.after, pair, random.Random(seed), 60)


def test_a_pair_without_successors_has_no_paths():
    assert most_visited(Trigrams().after, (1, 2), random.Random(0), 10) == []


def test_the_strongest_path_is_visited_most():
    trigrams = Trigrams()
    for token in range(5, 10):
        trigrams.learn([1, 2, token, token])
    for _ in range(20):
        trigrams.learn([1, 2, 3, 4, 5])
    found = most_visited(trigrams.after, (1, 2), random.Random(0), 150)
    assert found[0] == (3,)
    assert (3, 4, 5) in found[:3]
