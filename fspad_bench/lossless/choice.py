"""The choice of a token by the definition, in plain Python numbers: a reference for the sampler.

- Order: score descending, token id ascending; the cuts of top-k, then top-p, then min-p, follow it.
- Noise: two rounds of an integer hash of (key, position, token), w = (h + 1/2) 2^-32 bounded by
  1 - 2^-24, G = -log(-log(1 - w)). The key is a hash of seed and stream.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from itertools import accumulate

import torch

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted

WORD = 2**32
LARGEST = 1 - 2.0**-24
CLEAR = 1e-4  # no choice is closer than this, in units of score or probability
LEVELS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # of logits: few, so that many tokens tie


def key_of(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}\n{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")


def mixed(word: int) -> int:
    word = (word ^ (word >> 16)) * 0x7FEB352D % WORD
    word = (word ^ (word >> 15)) * 0x846CA68B % WORD
    return word ^ (word >> 16)


def hashed(key: tuple[int, int], position: int, token: int) -> int:
    """Return the 32 bits of a token at a position."""
    row = mixed((position + key[0]) % WORD)
    return mixed((mixed(token ^ row) + mixed(row ^ key[1])) % WORD)


def noise(key: tuple[int, int], position: int, token: int) -> float:
    w = min((hashed(key, position, token) + 0.5) / WORD, LARGEST)
    return -math.log(-math.log1p(-w))


def kept(scores: Sequence[float], top_k: int, top_p: float, min_p: float = 0.0) -> list[int]:
    """Return the tokens that the cuts keep, best first."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    order = order[: top_k or len(order)]
    weights = [math.exp(scores[token] - scores[order[0]]) for token in order]
    total = sum(weights)
    above = 0.0
    nucleus: list[int] = []
    for token, weight in zip(order, weights, strict=True):
        if top_p < 1 and nucleus and above >= top_p * total:
            break
        nucleus.append(token)
        above += weight
    best = scores[order[0]]
    return [token for token in nucleus if math.exp(scores[token] - best) >= min_p]


def is_clear(scores: Sequence[float], top_k: int, top_p: float, min_p: float = 0.0) -> bool:
    """Return whether no cut falls so near a sum or a weight that rounding could move it."""
    order = sorted(scores, reverse=True)[: top_k or len(scores)]
    weights = [math.exp(score - order[0]) for score in order]
    if min_p and any(abs(weight - min_p) <= CLEAR for weight in weights):
        return False
    total = sum(weights)
    above = accumulate(weights[:-1])
    return top_p == 1 or all(abs(mass / total - top_p) > CLEAR for mass in above)


def choice(logits: Sequence[float], sampler: Sampler, position: int) -> tuple[int, bool]:
    """Return the token at `position`, and whether it leads clearly."""
    if not sampler.temperature:
        return max(range(len(logits)), key=lambda token: (logits[token], -token)), True
    scores = [logit / sampler.temperature for logit in logits]
    key = key_of(sampler.seed, sampler.stream)
    cuts = (sampler.top_k, sampler.top_p, sampler.min_p)
    tokens = kept(scores, *cuts)
    z = sorted(((scores[t] + noise(key, position, t), t) for t in tokens), reverse=True)
    leads = len(z) == 1 or z[0][0] - z[1][0] > CLEAR
    return z[0][1], leads and is_clear(scores, *cuts)


def distribution(logits: Sequence[float], sampler: Sampler) -> list[float]:
    """Return the processed probabilities."""
    p = [0.0] * len(logits)
    if not sampler.temperature:
        p[choice(logits, sampler, 0)[0]] = 1.0
        return p
    scores = [logit / sampler.temperature for logit in logits]
    tokens = kept(scores, sampler.top_k, sampler.top_p, sampler.min_p)
    weights = {token: math.exp(scores[token] - scores[tokens[0]]) for token in tokens}
    for token, weight in weights.items():
        p[token] = weight / sum(weights.values())
    return p


def walked(
    tree: Tree, logits: Sequence[Sequence[float]], sampler: Sampler, position: int
) -> Accepted:
    """Return the path that agrees with the choice at each of its nodes, and the token after it."""
    path = [0]
    while True:
        token, _ = choice(logits[path[-1]], sampler, position + len(path) - 1)
        agreeing = [
            node
            for node in range(1, len(tree))
            if tree.parents[node] == path[-1] and tree.tokens[node] == token
        ]
        if not agreeing:
            return Accepted(path, token)
        path += agreeing


def tied_logits(
    dice: random.Random, vocabulary: int, sampler: Sampler, position: int
) -> list[float]:
    """Return logits of which many tie, and whose choice at this position is clear."""
    while True:
        row = [dice.choice(LEVELS) for _ in range(vocabulary)]
        if choice(row, sampler, position)[1]:
            return row


def tied_case(
    dice: random.Random, nodes: int, right: int, vocabulary: int, sampler: Sampler, position: int
) -> tuple[Tree, torch.Tensor]:
    """Return a tree of at least `nodes` nodes, and its logits `[N, V]`.

    The target chooses a path of `right` nodes.
    A wrong sibling stands before every node of the path; all other nodes are children of the root.
    """
    tokens = [0]
    parents = [-1]
    rows = [tied_logits(dice, vocabulary, sampler, position)]
    node = 0
    for depth in range(1, right + 2):
        token, _ = choice(rows[node], sampler, position + depth - 1)
        wrong = [other for other in range(vocabulary) if other != token]
        dice.shuffle(wrong)
        count = max(1, nodes - 1 - 2 * right) if depth == 1 else 1
        children = wrong[:count] + ([token] if depth <= right else [])
        tokens += children
        parents += [node] * len(children)
        rows += [[dice.choice(LEVELS) for _ in range(vocabulary)] for _ in children]
        node = len(tokens) - 1
        rows[node] = tied_logits(dice, vocabulary, sampler, position + depth)
    return Tree(tokens, parents), torch.tensor(rows, dtype=torch.float64)
