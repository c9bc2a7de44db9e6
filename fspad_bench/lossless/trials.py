"""Each mutation against the checks that must refuse it and those that cannot see it.

- A trial compares a run under the mutation with references made before it: vanilla's outputs, the
  target's own distributions. It ends with the first output that is refused.
- An exception counts as a refusal only where the mutation says that the production code raises it.
- A trial in which the wrong function never ran says nothing. It fails, unless the mutation lists it
  as unreached.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

from fspad_bench.benchmark.uniform import ALPHA
from fspad_bench.lossless import exact
from fspad_bench.lossless.checks import PASS, Check
from fspad_bench.lossless.distribution import SALT, VOCABULARY, check_pit, loop_p_values
from fspad_bench.lossless.engine_trials import ENGINE_TRIALS
from fspad_bench.lossless.identity import generated
from fspad_bench.lossless.mutations import Applied, Mutation
from fspad_bench.lossless.proofs import noise_is_finite
from fspad_bench.lossless.rounding import cache_bound, cache_error
from fspad_bench.lossless.scripted import ScriptedDrafter, ScriptedTarget
from fspad_bench.lossless.trial_target import TEMPERATURES, Trial, TrialTarget
from fspad_bench.lossless.witness import Observations

PIT_TOKENS = 64
EXACT = ("greedy", "T=0.6", "T=1", "T=0.6 penalties")
TEST_DISTANCES = (0.1, 0.07, 0.058, 0.05)  # fewer draws than the last one's show most mistakes


def _scripted(applied: Applied, target: ScriptedTarget) -> ScriptedDrafter:
    drafter = exact.scripted(applied.mutation.rule, applied.mutation.draft)(target)
    applied.spoil(drafter)
    return drafter


def _exact(sampler: str) -> Trial:
    def trial(applied: Applied, _: TrialTarget) -> bool:
        make = partial(_scripted, applied)
        distances = (
            exact.largest_distance(make, [sampler], Observations(), [salt]) for salt in exact.SALTS
        )
        return all(distance <= exact.BOUND for distance in distances)

    return trial


def _identity(kind: str) -> Trial:
    def trial(applied: Applied, tiny: TrialTarget) -> bool:
        outputs = generated(tiny.decoder(applied), tiny.target, tiny.cells[kind], Observations())
        return all(tokens == tiny.vanilla[kind][cell.name] for cell, tokens in outputs)

    return trial


def _cache(applied: Applied, tiny: TrialTarget) -> bool:
    bound = cache_bound(tiny.target)
    outputs = generated(tiny.decoder(applied), tiny.target, tiny.cells["greedy"], Observations())
    return all(cache_error(tiny.target, cell.prompt, tokens) <= bound for cell, tokens in outputs)


def _g_test(applied: Applied, _: TrialTarget) -> bool:
    target = ScriptedTarget(VOCABULARY, SALT)
    p_values = loop_p_values(target, _scripted(applied, target), TEST_DISTANCES)
    return all(p_value >= ALPHA for p_value, _draws in p_values)


def _pit(applied: Applied, tiny: TrialTarget) -> bool:
    check = check_pit(tiny.decoder(applied), tiny.target, tiny.prompts, PIT_TOKENS)
    return check.verdict == PASS


TRIALS: dict[str, Trial] = {
    **{f"{exact.NAME} {name}": _exact(name) for name in EXACT},
    **{f"identity {kind}": _identity(kind) for kind in TEMPERATURES},
    "identity with stops": _identity("stops"),
    "identity penalties": _identity("penalties"),
    "cache": _cache,
    "G-test": _g_test,
    "PIT": _pit,
    "noise is finite": lambda *_: noise_is_finite(),
    **ENGINE_TRIALS,
}


class Outcome(NamedTuple):
    """The outcome of a trial. `reached`: the wrong function ran."""

    passed: bool
    reached: bool


def run_trial(check: str, mutation: Mutation, tiny: TrialTarget) -> Outcome:
    """Run a check under a mutation. Raises any exception that the mutation does not list."""
    if check in ENGINE_TRIALS:
        assert tiny.engines.targets  # built before the mistake is in force
    with mutation.applied() as applied:
        try:
            passed = TRIALS[check](applied, tiny)
        except Exception as error:
            if mutation.raises is None or not isinstance(error, mutation.raises):
                raise
            passed = False
    return Outcome(passed, applied.calls > 0)


def judge(
    mutation: Mutation, tiny: TrialTarget, *, without: Collection[str] = (), blind_too: bool = True
) -> Check:
    """Check that all listed checks refuse a mutation and that all blind ones pass it.

    `without` names slow checks to skip, unless no other would be left to refuse it. Without
    `blind_too` the blind ones are not run.
    """
    caught = [check for check in mutation.caught if check not in without] or list(mutation.caught)
    blind = [check for check in mutation.blind if blind_too and check not in without]
    outcomes = {check: run_trial(check, mutation, tiny) for check in [*caught, *blind]}
    missed = [check for check in caught if outcomes[check].passed]
    seen = [check for check in blind if not outcomes[check].passed]
    unreached = mutation.unreached
    idle = [c for c, outcome in outcomes.items() if not outcome.reached and c not in unreached]
    busy = [c for c, outcome in outcomes.items() if outcome.reached and c in unreached]
    figure = f"not refused by {_names(missed)}" if missed else f"refused by {_names(caught)}"
    figure += f"; refused by {_names(seen)}, which theory calls blind" if seen else ""
    figure += f"; never called in {_names(idle)}" if idle else ""
    figure += f"; called in {_names(busy)}, listed as unreached" if busy else ""
    holds = not (missed or seen or idle or busy)
    return Check.of(mutation.name, "", holds, figure, "as listed")


def _names(checks: list[str]) -> str:
    return ", ".join(checks)
