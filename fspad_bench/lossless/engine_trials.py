"""Trials of the engine, the noise's key and ties, for mutations (`engine_faults`).

A trial is the check of a certification itself, on the small engines and the quick effort's sizes.
It ends where the first engine is first wrong.
"""

from __future__ import annotations

import torch

from fspad_bench.core.verification import RULES, Rule, match
from fspad_bench.lossless import depths, engine, noise_key, paths, proofs
from fspad_bench.lossless.checks import PASS
from fspad_bench.lossless.identity import generated
from fspad_bench.lossless.mutations import Applied, Patch
from fspad_bench.lossless.rounding import rounds_otherwise
from fspad_bench.lossless.trial_target import Trial, TrialTarget
from fspad_bench.lossless.witness import Observations

SIZES = engine.FEW


def _positions(_: Applied, tiny: TrialTarget) -> bool:
    return all(
        engine.check_positions(target) <= engine.ROPE_BOUND[target.dtype]
        for target in tiny.engines.targets
    )


def _attention(_: Applied, tiny: TrialTarget) -> bool:
    return all(
        engine.check_attention(target, SIZES.lengths) <= engine.attention_bound(target)
        for target in tiny.engines.targets
    )


def _tree_scores(_: Applied, tiny: TrialTarget) -> bool:
    return all(engine.trees_hold(reference, SIZES) for reference in tiny.engines.references)


def _compaction(_: Applied, tiny: TrialTarget) -> bool:
    return not any(engine.wrong_compactions(target) for target in tiny.engines.targets)


def _paths(_: Applied, tiny: TrialTarget) -> bool:
    return all(
        paths.paths_hold(target, found)
        for target in tiny.engines.targets
        if not rounds_otherwise(target)
        for found in paths.host_steps(target)
    )


def _device_paths(_: Applied, tiny: TrialTarget) -> bool:
    return all(
        paths.paths_hold(target, found)
        for target in tiny.engines.on_kernels
        for found in paths.device_steps(target)
    )


def _rule(applied: Applied) -> Rule:
    """Return the wrong rule, or the right one that a patch concerns."""
    if isinstance(applied.mutation.fault, Patch):
        return RULES[applied.mutation.rule]
    return Rule(applied.counted(applied.mutation.fault))


def _every_depth(applied: Applied, _: TrialTarget) -> bool:
    drawn = applied.mutation.draft != "ranked"
    everywhere = range(depths.DEEPEST + 1)
    found = depths.distances(_rule(applied), drawn=drawn, depths=everywhere)
    return all(distance <= depths.BOUND for _, distance in found)


def _ties(applied: Applied, _: TrialTarget) -> bool:
    greedy = applied.mutation.rule != match.name
    cpu = torch.device("cpu")
    return depths.ties_hold(_rule(applied), greedy=greedy, dtype=torch.float32, device=cpu)


def _vacuity(applied: Applied, tiny: TrialTarget) -> bool:
    observations = Observations()
    generations = (
        generation
        for kind in ("greedy", "stops")
        for generation in generated(
            tiny.decoder(applied), tiny.target, tiny.cells[kind], observations
        )
    )
    return any(observations.deepest for _ in generations)


ENGINE_TRIALS: dict[str, Trial] = {
    "positions": _positions,
    "attention": _attention,
    "tree scores": _tree_scores,
    "compaction": _compaction,
    "paths": _paths,
    "paths, device": _device_paths,
    depths.NAME: _every_depth,
    "ties": _ties,
    "noise key": lambda *_: not noise_key.key_faults(),
    "processed distribution": lambda *_: proofs.check_warpers().verdict == PASS,
    "non-vacuity": _vacuity,
}
