"""Wrong rules: each is the production code with one line changed. What cannot fail proves nothing.

Every rule carries the checks that must refuse it and those that theory says are blind to it; a certification runs
both, and fails where one behaves otherwise than listed. The changed line is looked up in the source of the function,
so a fixture cannot drift away from the code it spoils. Sources: published harnesses and papers that ship, or warn of,
these very mistakes (EAGLE-2 and Spec-Bench: the raw bonus token; Medusa: typical acceptance, a nucleus a row).
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fspad_bench.core import sampling, verification
from fspad_bench.core.loop import Limit
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.cache import TreeCache
from fspad_bench.lossless.scripted import ScriptedDrafter


@dataclass(frozen=True)
class WrongRule:
    """`right` is replaced by `wrong` in the source of `function`; `rule` and `way` say which drafting it concerns.

    `raises` is set where the code itself refuses what the wrong line makes: that is what its checks then meet.
    """

    name: str
    function: Callable
    right: str
    wrong: str
    caught: tuple[str, ...]
    blind: tuple[str, ...]
    rule: str = "match"
    way: str = "ranked"
    raises: type[Exception] | None = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Every caller of the function runs the wrong line until the block ends, and the host walks the trees."""
        source = textwrap.dedent(inspect.getsource(self.function))
        if source.count(self.right) != 1:
            raise LookupError(
                f"{self.name}: '{self.right}' is not a line of {self.function.__qualname__} any more"
            )
        made: dict[str, object] = {}
        lazily = "from __future__ import annotations\n"  # as the function's own module has it
        exec(lazily + source.replace(self.right, self.wrong), self.function.__globals__, made)
        original = self.function.__code__
        self.function.__code__ = made[self.function.__name__].__code__
        used = os.environ.get(kernels.VARIABLE, "")
        os.environ[kernels.VARIABLE] = kernels.HOST
        try:
            yield
        finally:
            self.function.__code__ = original
            os.environ[kernels.VARIABLE] = used


WRONG_RULES = [
    WrongRule(
        "bonus token without the temperature",
        verification.ask_along,
        "token = sampler.next(logits[path[-1]], position + len(path) - 1)",
        "token = sampler.next(logits[path[-1]] * ((not tree.offspring[path[-1]] and sampler.temperature) or 1), "
        "position + len(path) - 1)",
        caught=("exact law T=0.6", "identity T=0.5", "G-test", "PIT"),
        blind=("exact law T=1", "identity T=1", "exact law greedy", "identity greedy"),
    ),
    WrongRule(
        "soft-max q for top-k children",
        ScriptedDrafter.propose,
        "if self.drawn else None)",
        "if True else None)",
        caught=("exact law T=0.6", "exact law T=1", "G-test"),
        blind=("exact law greedy",),
        rule="rejection",
    ),
    WrongRule(
        "typical acceptance",
        verification.ask_along,
        "child = tree.children.get((path[-1], token))",
        "child = next((c for c in tree.offspring[path[-1]] if sampler.law(logits[path[-1]])[tree.tokens[c]] > 0.09), "
        "tree.children.get((path[-1], token)))",
        caught=("exact law T=0.6", "exact law T=1", "identity T=1", "G-test"),
        blind=("exact law greedy", "identity greedy"),
    ),
    WrongRule(
        "a nucleus a row: the refused answer is thrown away",
        verification.ask_along,
        "return Accepted(path, token)",
        "return Accepted(path, sampler.next(logits[path[-1]], position + len(path) + 2**20))",
        caught=("exact law T=0.6", "exact law T=1", "identity T=1", "G-test"),
        blind=("exact law greedy", "identity greedy"),
    ),
    WrongRule(
        "drawn children dropped if unlikely",
        ScriptedDrafter._choices,
        "return found",
        "return [choice for choice in found if law[choice] > 0.3]",
        caught=("exact law T=0.6", "exact law T=1", "G-test"),
        blind=("exact law greedy",),
        rule="rejection",
        way="drawn",
    ),
    WrongRule(
        "draws with replacement",
        ScriptedDrafter._choices,
        "q = without(q, found[-1])",
        "q = law",
        caught=("exact law T=0.6", "exact law T=1", "G-test"),
        blind=("exact law greedy",),
        rule="rejection",
        way="drawn",
        raises=ValueError,  # a tree has no two siblings of one token
    ),
    WrongRule(
        "one fixed q, draws without replacement",
        verification.drawn,
        "q = without(q, token)",
        "q = q",
        caught=("exact law T=0.6", "exact law T=1"),
        blind=("exact law greedy",),
        rule="rejection",
        way="drawn",
    ),
    WrongRule(
        "a position too far",
        verification.ask_along,
        "position + len(path) - 1",
        "position + len(path)",
        caught=("identity T=0.5", "identity T=1"),
        blind=("exact law T=0.6", "exact law T=1", "identity greedy", "PIT"),
    ),
    WrongRule(
        "a stale KV row",
        TreeCache.keep,
        "if path[-1] != len(path) - 1:",
        "if False:",
        caught=("cache", "identity greedy", "identity T=1"),
        blind=("exact law T=0.6", "G-test"),
    ),
    WrongRule(
        "one token past the stop",
        Limit.cut,
        "ends[0] + 1",
        "ends[0] + 2",
        caught=("identity with stops",),
        blind=("identity greedy", "identity T=1", "exact law T=1", "cache"),
    ),
    WrongRule(
        "draft vocabulary not mapped",
        ScriptedDrafter._over_the_target,
        "q[: len(laws), self.vocabulary]",
        "q[: len(laws), : len(self.vocabulary)]",
        caught=("exact law T=0.6", "exact law T=1"),
        blind=("identity T=1",),
        rule="rejection",
        way="drawn, own vocabulary",
        raises=ValueError,  # a child that its law could not have drawn
    ),
    WrongRule(
        "draft and verification share their dice",
        sampling.Sampler.dice,
        "{purpose}",
        "shared",
        caught=("G-test",),
        blind=("exact law T=1", "identity T=1"),
        rule="rejection",
        way="drawn",
    ),
    WrongRule(
        "noise that can be infinite",
        sampling.gumbel,
        "high.add_(low).clamp_(max=1 - 2.0**-24)",
        "high.add_(low)",
        caught=("noise is finite",),
        blind=("identity T=1", "exact law T=1"),
    ),
]
