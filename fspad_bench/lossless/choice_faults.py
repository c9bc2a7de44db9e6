"""Mistakes in choosing tokens: the noise's key, ties, cuts, and rules wrong from some depth on.

Each shows where the texts of a small target do not look: at another seed or turn, beyond position
256, where logits tie, four tokens deep.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fspad_bench.core import sampling
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import (
    Accepted,
    Chooser,
    drawn,
    match,
    normalised,
)
from fspad_bench.lossless.mutations import Mutation, Patch
from fspad_bench.lossless.scripted import ScriptedDrafter

IDENTITY = ("identity greedy", "identity T=1")
RIGHT_NOISE = Sampler.noise
RIGHT_HASH = sampling.hash32
RIGHT_LEADING = sampling._leading
RIGHT_CHOICES = ScriptedDrafter._choices


def stream_without_turn(task: str, sample: str, turn: int, repeat: int = 0) -> str:
    return f"{task}\n{sample}\n{repeat}"  # wrong: the turns of a conversation share their noise


def noise_without_seed(self: Sampler, position: int, tokens: Tensor) -> Tensor:
    return RIGHT_NOISE(replace(self, seed=0), position, tokens)  # wrong: every seed is 0


def noise_of_256_positions(key: tuple[int, int], position: int, token: Tensor) -> Tensor:
    return RIGHT_HASH(key, position % 256, token)  # wrong: it repeats


def noise_of_4096_tokens(key: tuple[int, int], position: int, token: Tensor) -> Tensor:
    return RIGHT_HASH(key, position, token % 4096)  # wrong: far tokens share their noise


def ties_to_the_highest_id(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    if sampler.greedy and len(tree) > 1:
        # wrong: only vanilla's tree of one node gives a tie to the lowest id
        last = logits.shape[1] - 1
        path, bonus = match(_mirrored(tree, last), logits.flip(1), sampler, position)
        return Accepted(path, last - bonus)
    return match(tree, logits, sampler, position)


def _mirrored(tree: Tree, last: int) -> Tree:
    return Tree([last - token for token in tree.tokens], tree.parents)


def bonus_tie_to_the_highest_id(
    tree: Tree, logits: Tensor, sampler: Chooser, position: int
) -> Accepted:
    path, bonus = match(tree, logits, sampler, position)
    row = logits[path[-1]]
    if sampler.greedy and len(path) > 1:
        bonus = int((row == row.max()).nonzero()[-1])  # wrong: a tie after accepted drafts
    return Accepted(path, bonus)


def no_residual_from_depth_two(
    tree: Tree, logits: Tensor, sampler: Chooser, position: int
) -> Accepted:
    dice = sampler.dice(position, "verify")
    path = [0]
    while True:
        p = sampler.distribution(logits[path[-1]])
        accepted = None
        for child, q in drawn(tree, path[-1], p):
            if dice.accept(float(p[tree.tokens[child]] / q[tree.tokens[child]])):
                accepted = child
                break
            if len(path) <= 2:  # wrong: deeper, what follows a refusal is drawn from p itself
                p = normalised((p - q).clamp(min=0), p)
        if accepted is None:
            return Accepted(path, dice.draw(p))
        path.append(accepted)


def likely_from_depth_four(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    path, bonus = match(tree, logits, sampler, position)
    p = sampler.distribution(logits[path[-1]])
    likely = [child for child in tree.offspring[path[-1]] if p[tree.tokens[child]] > 0.3]
    if len(path) <= 4 or sampler.greedy or not likely:
        return Accepted(path, bonus)
    # wrong: four tokens deep a likely child is good enough
    return Accepted([*path, likely[0]], sampler.next(logits[likely[0]], position + len(path)))


def ties_kept_at_the_cut(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    best, tokens = RIGHT_LEADING(scores, len(scores))
    kept = int((best >= best[size - 1]).sum())  # wrong: more than top-k where the last one ties
    return best[:kept], tokens[:kept]


def cut_by_the_highest_id(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    best, tokens = RIGHT_LEADING(scores.flip(0), size)
    return best, len(scores) - 1 - tokens  # wrong: of equal scores the last ones are kept


def top_p_before_top_k(self: Sampler, logits: Tensor) -> Tensor:
    if self.greedy:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    scores = logits.double() / self.temperature
    best, tokens = RIGHT_LEADING(scores, len(scores))
    kept = self._nucleus(best, best)  # wrong: verification cuts by top-p first
    kept = min(kept, self.top_k or kept)
    return torch.zeros_like(scores).scatter_(0, tokens[:kept], best[:kept].softmax(0))


def drawn_in_bfloat16(self: ScriptedDrafter, q: Tensor, width: int, dice: Any) -> list[int]:
    rounded = q.to(torch.bfloat16).double()
    return RIGHT_CHOICES(self, rounded, width, dice)  # wrong: the ratio is taken of q itself


def patched(
    name: str,
    owner: object,
    right: Any,
    wrong: Any,
    caught: tuple[str, ...],
    blind: tuple[str, ...],
    unreached: tuple[str, ...] = (),
    **others: Any,
) -> Mutation:
    return Mutation(name, Patch(owner, right, wrong), caught, blind, unreached, **others)


CHOICE_FAULTS = [
    patched(
        "the turn left out of the noise",
        sampling,
        sampling.stream_of,
        stream_without_turn,
        caught=("noise key",),
        blind=IDENTITY,
        unreached=IDENTITY,
    ),
    patched(
        "the seed left out of the noise",
        Sampler,
        RIGHT_NOISE,
        noise_without_seed,
        caught=("noise key", "ties"),
        blind=("identity T=1",),
    ),
    patched(
        "noise that repeats every 256 positions",
        sampling,
        RIGHT_HASH,
        noise_of_256_positions,
        caught=("noise key", "ties"),
        blind=("identity T=1", "noise is finite"),
        unreached=("noise is finite",),
    ),
    patched(
        "noise that tokens 4096 apart share",
        sampling,
        RIGHT_HASH,
        noise_of_4096_tokens,
        caught=("noise key",),
        blind=("identity T=1",),
    ),
    Mutation(
        "greedy ties by the highest id on trees",
        ties_to_the_highest_id,
        caught=("ties",),
        blind=("identity greedy", "exact distribution greedy"),
    ),
    Mutation(
        "a tie after accepted drafts by the highest id",
        bonus_tie_to_the_highest_id,
        caught=("ties",),
        blind=("identity greedy", "exact distribution greedy"),
    ),
    Mutation(
        "no residual from depth two on",
        no_residual_from_depth_two,
        caught=("every depth",),
        blind=("exact distribution T=1", "exact distribution T=0.6"),
        rule="rejection",
        draft="drawn",
    ),
    Mutation(
        "likely children accepted from depth four on",
        likely_from_depth_four,
        caught=("every depth",),
        blind=("exact distribution T=1", "exact distribution T=0.6", "identity greedy"),
    ),
    patched(
        "ties kept at the edge of top-k",
        sampling,
        RIGHT_LEADING,
        ties_kept_at_the_cut,
        caught=("ties",),
        blind=("processed distribution", "exact distribution T=1"),
        unreached=("exact distribution T=1",),
    ),
    patched(
        "of ties at the edge the highest ids",
        sampling,
        RIGHT_LEADING,
        cut_by_the_highest_id,
        caught=("ties",),
        blind=("processed distribution",),
    ),
    patched(
        "top-p before top-k in verification",
        Sampler,
        Sampler.distribution,
        top_p_before_top_k,
        caught=("processed distribution",),
        blind=("identity T=1", "exact distribution T=1"),
        unreached=("identity T=1",),
    ),
    patched(
        "drawn in bfloat16, judged in float64",
        ScriptedDrafter,
        RIGHT_CHOICES,
        drawn_in_bfloat16,
        caught=("exact distribution T=1",),
        blind=("exact distribution greedy",),
        rule="rejection",
        draft="drawn",
    ),
]
