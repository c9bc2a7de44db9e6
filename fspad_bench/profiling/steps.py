"""Where a step's time goes: drafting, the target's forward, verification, the cache, the host.

- In the host's loop every part of a step is timed; a GPU is waited for after each, which takes
  away what the parts overlap.
- A step that runs whole on a device is timed as it runs: replayed, and its drafting replayed
  alone. Verification and cache compaction then belong to the forward.
- Beside the parts: the cost of forwards, and the speedup that tokens per step and these costs
  predict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ParamSpec, Protocol, TypeVar

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import ALL, Drafter, Generation, LayerPlan, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Rule
from fspad_bench.decoders.border import blamed
from fspad_bench.decoders.build import Decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.sizing import timing
from fspad_bench.engine.device_loop import DeviceLoop, replayed
from fspad_bench.engine.session import Scores, Session
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.profiling import forward
from fspad_bench.profiling.forward import ForwardCosts, check_context, forward_costs, milliseconds
from fspad_bench.util.grid import grid
from fspad_bench.util.progress import Progress

PARTS = ("draft", "forward", "verify", "commit", "observe")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Profile:
    """Totals over all measured steps; times in seconds.

    `tokens`: committed by steps, the prefill's tokens left out; `vanilla_per_token`: vanilla's
    decode seconds per token; `parts`: seconds by part of a step. Answers of one token, which the
    prefill makes, have no step: figures of a step are then None.
    """

    label: str
    steps: int
    tokens: int
    decode: float
    vanilla_per_token: float | None
    parts: dict[str, float]
    forward: ForwardCosts

    @property
    def host(self) -> float:
        """Decode seconds that no part accounts for."""
        return self.decode - sum(self.parts.values())

    @property
    def tokens_per_step(self) -> float | None:
        return self.tokens / self.steps if self.steps else None

    @property
    def measured(self) -> float | None:
        """Speedup over vanilla on the same prompts; None where no step was made."""
        if not self.steps or self.vanilla_per_token is None:
            return None
        return self.vanilla_per_token / (self.decode / self.tokens)

    @property
    def modelled(self) -> float | None:
        """Speedup without host work on either side: tokens/step * c(1) / (forward + draft)."""
        networks = self.parts["forward"] + self.parts["draft"]
        return self.tokens * self.forward.curve[1] / networks if self.steps else None


def profile(
    target: TransformersTarget,
    decoder: Decoder,
    prompts: Sequence[list[int]],
    sampler: Sampler,
    length: int,
) -> Profile:
    """Decode prompts with vanilla and with a decoder in our loop, and measure the target's
    forwards.

    The first prompt is decoded once more before, as a warm-up. Raises ValueError for an engine of
    its own, BenchError for a context that is too short.
    """
    if decoder.drafter is None:
        raise ValueError(f"{decoder.label} is an engine of its own")
    check_context(target)
    baseline = Decoder("vanilla", target, drafter=Vanilla(target))
    vanilla: Loop = HostLoop(target, Vanilla(target))
    steps: Steps = HostSteps(target, decoder.drafter)
    if decoder.loop:
        vanilla = baseline.loop or vanilla
        steps = DeviceSteps(decoder.loop)
    limit = Limit(length, target.stop_ids)
    generations = []
    plain = []
    # room for all now: a larger cache later means new graphs, on the clock
    target.reserve(max(map(len, prompts)) + length)
    with Progress("generations", 2 * len(prompts)) as progress:
        with blamed(decoder.label, "a generation"):
            steps.generate(sampler.streamed("0"), prompts[0], limit)
        vanilla.generate(sampler.streamed("0"), prompts[0], limit)
        steps.forget()
        for number, prompt in enumerate(prompts, 1):
            own_sampler = sampler.streamed(str(number))
            with blamed(decoder.label, "a generation"):
                generations.append(steps.generate(own_sampler, prompt, limit))
            plain.append(vanilla.generate(own_sampler, prompt, limit))
            progress.advance(2)
    step_count = sum(len(generation.committed) for generation in generations)
    return Profile(
        decoder.label,
        steps=step_count,
        tokens=_tokens(generations),
        decode=_decode_seconds(generations),
        vanilla_per_token=_decode_seconds(plain) / _tokens(plain) if _tokens(plain) else None,
        parts=steps.parts(prompts[-1], sampler, step_count),
        forward=forward_costs(target),
    )


def _tokens(generations: Sequence[Generation]) -> int:
    return sum(sum(generation.committed) for generation in generations)


def _decode_seconds(generations: Sequence[Generation]) -> float:
    return sum(generation.decode_seconds for generation in generations)


class Loop(Protocol):
    """A decoding loop, on the host or on a device."""

    def generate(self, sampler: Sampler, prompt: Sequence[int], limit: Limit) -> Generation: ...


class Steps(Loop, Protocol):
    """A decoding loop whose steps are timed by part."""

    def forget(self) -> None:
        """Drop what was measured so far."""

    def parts(self, prompt: Sequence[int], sampler: Sampler, steps: int) -> dict[str, float]:
        """Return the seconds of each part over so many steps."""


@dataclass
class Clock:
    """Seconds by part of a step."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def timed(self, part: str, run: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Return `run` with its time added to a part, even if it raises."""

        def timed_run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
            began = perf_counter()
            try:
                return run(*arguments, **options)
            finally:
                self.seconds[part] += perf_counter() - began

        return timed_run


class TimedDrafter(Drafter):
    """A drafter whose calls are timed; `begin` counts as drafting."""

    def __init__(self, drafter: Drafter, clock: Clock) -> None:
        self.rule = drafter.rule
        self.capture = drafter.capture
        self.begin = clock.timed("draft", drafter.begin)  # type: ignore[method-assign]
        self.propose = clock.timed("draft", drafter.propose)  # type: ignore[method-assign]
        self.observe = clock.timed("observe", drafter.observe)  # type: ignore[method-assign]


class TimedTarget:
    """A target whose forwards, verification and commits are timed until the device has finished
    them.
    """

    def __init__(self, target: TransformersTarget, clock: Clock) -> None:
        self.target = target
        self.clock = clock
        self.synchronize = target.synchronize

    @property
    def forwards(self) -> int:
        return self.target.forwards

    @property
    def partial_forwards(self) -> int:
        return self.target.partial_forwards

    def verifier(self, rule: Rule) -> Rule:
        return Rule(self.clock.timed("verify", self.target.verifier(rule)))

    def session(
        self,
        capacity: int,
        *,
        layers: LayerPlan = ALL,
        capture: Sequence[int] = (),
        share: Session | None = None,
    ) -> TimedSession:
        session = self.target.session(capacity, layers=layers, capture=capture, share=share)
        return TimedSession(session, self.clock)


class TimedSession:
    """A session whose forwards and commits are timed."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self.session = session
        self.prefill = session.prefill
        self.extend = session.extend
        self.rollback = session.rollback
        self.score = clock.timed("forward", self._score)
        self.commit = clock.timed("commit", self._commit)

    @property
    def length(self) -> int:
        return self.session.length

    def __enter__(self) -> TimedSession:
        return self

    def __exit__(self, *_: Any) -> None:
        self.session.close()

    def _score(self, tree: Tree) -> Scores:
        scores = self.session.score(tree)
        self.session.target.synchronize()
        return scores

    def _commit(self, path: Sequence[int]) -> None:
        self.session.commit(path)
        self.session.target.synchronize()


class HostLoop:
    """The host's loop over a target and a drafter."""

    def __init__(self, target: TransformersTarget, drafter: Drafter) -> None:
        self.target = target
        self.drafter = drafter

    def generate(self, sampler: Sampler, prompt: Sequence[int], limit: Limit) -> Generation:
        return generate(self.target, self.drafter, sampler, prompt, limit)


class HostSteps:
    """The host's loop with every part of a step timed."""

    def __init__(self, target: TransformersTarget, drafter: Drafter) -> None:
        self.clock = Clock()
        self.target = TimedTarget(target, self.clock)
        self.drafter = TimedDrafter(drafter, self.clock)

    def generate(self, sampler: Sampler, prompt: Sequence[int], limit: Limit) -> Generation:
        return generate(self.target, self.drafter, sampler, prompt, limit)

    def forget(self) -> None:
        self.clock.seconds.update(dict.fromkeys(PARTS, 0.0))

    def parts(self, prompt: Sequence[int], sampler: Sampler, steps: int) -> dict[str, float]:
        return dict(self.clock.seconds)


class DeviceSteps:
    """A device's loop, run unchanged; its parts are replayed afterwards."""

    def __init__(self, loop: DeviceLoop) -> None:
        self.loop = loop
        self.generate = loop.generate

    def forget(self) -> None:
        pass

    def parts(self, prompt: Sequence[int], sampler: Sampler, steps: int) -> dict[str, float]:
        """Time a step after this prompt, replayed whole and its drafting alone."""
        whole, draft = timing.best_of(replayed(self.loop, prompt, sampler), self.loop.target)
        return {"draft": steps * draft, "forward": steps * max(0.0, whole - draft)}


def render(profile: Profile) -> str:
    """Return the tables of a profile, then its speedups."""
    parts = []
    for part, seconds in {**profile.parts, "host": profile.host}.items():
        if profile.steps:
            share = f"{seconds / profile.decode:.1%}"
            parts.append([part, milliseconds(seconds / profile.steps), share])
        else:
            parts.append([part, "-", "-"])
    networks = profile.parts["draft"] + profile.parts["forward"]
    outside = f"{1 - networks / profile.decode:.1%}" if profile.steps else "-"
    summary = (
        f"{_shown(profile.tokens_per_step)} tokens/step; "
        f"speedup {_shown(profile.measured)} measured, {_shown(profile.modelled)} modelled; "
        f"{outside} of a step outside the two networks"
    )
    return "\n\n".join(
        [
            grid(parts, [f"{profile.label}, per step", "", "share"]),
            forward.render(profile.forward),
            summary,
        ]
    )


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.2f}"


def draw(profile: Profile, picture: Path) -> None:
    """Draw a step's parts, the cost of a forward by nodes, and a step by prefix length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    parts_axes, curve_axes, lengths_axes = figure.subplots(1, 3)
    parts = {**profile.parts, "host": profile.host}
    steps = max(1, profile.steps)
    parts_axes.barh(list(parts), [1e3 * seconds / steps for seconds in parts.values()])
    parts_axes.invert_yaxis()
    parts_axes.set_title(f"{profile.label}, per step")
    parts_axes.set_xlabel("ms")
    curve = profile.forward.curve
    curve_axes.plot(list(curve), [s / curve[1] for s in curve.values()], marker=".")
    curve_axes.set_xscale("log", base=2)
    curve_axes.set_title("cost of a forward, c(n) / c(1)")
    curve_axes.set_xlabel("nodes")
    curve_axes.grid(alpha=0.3)
    lengths = list(profile.forward.lengths)
    measured = [1e3 * seconds for seconds in profile.forward.lengths.values()]
    expected = [1e3 * profile.forward.expected(length) for length in lengths]
    lengths_axes.plot(lengths, measured, marker=".", label="measured")
    lengths_axes.plot(lengths, expected, "--", label="by the bytes added")
    lengths_axes.set_title("a one-token step, ms")
    lengths_axes.set_xlabel("prefix")
    lengths_axes.set_ylim(bottom=0)
    lengths_axes.legend(fontsize=7)
    lengths_axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
