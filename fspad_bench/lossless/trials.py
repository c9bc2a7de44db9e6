"""Each wrong rule against the checks that must refuse it and those that cannot see it: the tests of the tests.

A trial compares what runs under the wrong line with references made before it was put in: vanilla's outputs, the
target's own laws. An exception counts as a refusal only where the wrong rule says that the code raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property

from fspad_bench.core.loop import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Method, build
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless import exact
from fspad_bench.lossless.distribution import ALPHA, VOCABULARY, check_pit, law_p
from fspad_bench.lossless.identity import CACHE_BOUND, PROMPTS, Cell, outputs, reference
from fspad_bench.lossless.mutations import WrongRule
from fspad_bench.lossless.proofs import noise_is_finite
from fspad_bench.lossless.report import PASS, Check
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.lossless.witness import Sights

DECODER = "fspad"
TOKENS = 24
PIT_TOKENS = 64
TEMPERATURES = {"greedy": 0.0, "T=0.5": 0.5, "T=1": 1.0}
TEST_DISTANCE = 0.05


class Ground:
    """The tiny target with a decoder that branches and is often right, and vanilla's word on it."""

    def __init__(self, target: TransformersTarget) -> None:
        self.target = target
        self.vanilla = {kind: reference(target, cells) for kind, cells in self.cells.items()}

    @cached_property
    def prompts(self) -> list[list[int]]:
        texts = [f"{prompt} {i}" for i in range(3) for prompt in PROMPTS]
        return [list(self.target.tokenizer(text)["input_ids"]) for text in texts]

    @cached_property
    def cells(self) -> dict[str, list[Cell]]:
        """Kind of identity -> its generations."""
        found = {kind: self._cells(Sampler(t), frozenset()) for kind, t in TEMPERATURES.items()}
        stops = frozenset(range(0, self.target.config.vocab_size, 5))
        return found | {"stops": self._cells(Sampler(1.0), stops)}

    def _cells(self, sampler: Sampler, stops: frozenset[int]) -> list[Cell]:
        limit = Limit(TOKENS, stops)
        return [
            Cell(f"{i}", p, sampler.streamed(f"trial {i}"), limit)
            for i, p in enumerate(self.prompts)
        ]

    def method(self) -> Method:
        return build(DECODER, self.target, {})


def holds(check: str, wrong: WrongRule, ground: Ground) -> bool:
    """Whether a check passes while the wrong line is in."""
    with wrong.applied():
        try:
            return TRIALS[check](wrong, ground)
        except Exception as error:
            if wrong.raises and isinstance(error, wrong.raises):
                return False
            raise


def _exact(law: str) -> Callable[[WrongRule, Ground], bool]:
    def trial(wrong: WrongRule, _: Ground) -> bool:
        return exact.worst(exact.scripted(wrong.rule, wrong.way), [law], Sights()) <= exact.BOUND

    return trial


def _identity(kind: str) -> Callable[[WrongRule, Ground], bool]:
    def trial(_: WrongRule, ground: Ground) -> bool:
        made = outputs(ground.method(), ground.target, ground.cells[kind], Sights())
        return made.tokens == ground.vanilla[kind]

    return trial


def _cache(_: WrongRule, ground: Ground) -> bool:
    made = outputs(ground.method(), ground.target, ground.cells["greedy"], Sights())
    return made.cache_error <= CACHE_BOUND[ground.target.dtype]


def _g_test(wrong: WrongRule, _: Ground) -> bool:
    target = ScriptedTarget(VOCABULARY, 5)
    return law_p(target, exact.scripted(wrong.rule, wrong.way)(target), TEST_DISTANCE)[0] >= ALPHA


def _pit(_: WrongRule, ground: Ground) -> bool:
    return check_pit(ground.method(), ground.target, ground.prompts, PIT_TOKENS).verdict == PASS


TRIALS: dict[str, Callable[[WrongRule, Ground], bool]] = {
    **{f"exact law {law}": _exact(law) for law in ("greedy", "T=0.6", "T=1")},
    **{f"identity {kind}": _identity(kind) for kind in TEMPERATURES},
    "identity with stops": _identity("stops"),
    "cache": _cache,
    "G-test": _g_test,
    "PIT": _pit,
    "noise is finite": lambda *_: noise_is_finite(),
}


def judge(wrong: WrongRule, ground: Ground, *, without: Collection[str] = ()) -> Check:
    """All checks listed refuse it, all that are listed as blind pass it; `without` the checks that take long."""
    listed = [check for check in wrong.caught if check not in without] or list(wrong.caught)
    missed = [check for check in listed if holds(check, wrong, ground)]
    seen = [
        check for check in wrong.blind if check not in without and not holds(check, wrong, ground)
    ]
    figure = f"refused by {', '.join(listed)}"
    figure = f"not refused by {', '.join(missed)}" if missed else figure
    figure += f"; refused by {', '.join(seen)}, which theory calls blind" if seen else ""
    return Check.of(wrong.name, "", not missed and not seen, figure, "as listed")
