"""Where a round's time goes: drafting, the target's forward, verification, the cache, and what is left for the host.

A round that runs whole on a device is timed as it runs: replayed, and its drafting replayed alone.
Beside it what the machine could do: the cost c(n) of a forward of n tree nodes, the bytes of weights read a second
against a measured copy, what a longer prefix adds against the bytes of its keys and values, and the speedup that tokens
a step and these costs make one expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tabulate import tabulate

from fspad_bench.core.loop import Drafter, Generation, Limit, generate, rule_of
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.sizing import costs
from fspad_bench.engine.device_loop import DeviceLoop, device_loop, replayed
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util.progress import Progress

NODES = (1, 2, 4, 8, 16, 32, 64, 128)
LENGTHS = (256, 512, 1024, 2048, 4096)
COPIED = 1 << 28  # bytes; far more than any processor's cache
PARTS = ("draft", "forward", "verify", "commit", "observe")


@dataclass
class Clock:
    """Seconds by part, of a drafter and a target whose steps pass through it."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def timed(self, part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            began = perf_counter()
            try:
                return run(*arguments)
            finally:
                self.seconds[part] += perf_counter() - began

        return step


class Observed:
    """A drafter on the clock; `begin` counts as drafting."""

    def __init__(self, drafter: Drafter, clock: Clock) -> None:
        self.begin = clock.timed("draft", drafter.begin)
        self.propose = clock.timed("draft", drafter.propose)
        self.observe = clock.timed("observe", drafter.observe)
        self.verify = clock.timed("verify", rule_of(drafter))


@dataclass(frozen=True)
class Forward:
    """What a target's forward costs, in seconds: of n tree nodes, and of one node behind so many tokens."""

    curve: dict[int, float]
    lengths: dict[int, float]
    weight_bytes: int
    row_bytes: int
    copy_bandwidth: float

    def expected(self, length: int) -> float:
        """A one-token step behind so many tokens, were a cached row as cheap to read as a byte of a copy."""
        shortest = min(self.lengths)
        return self.lengths[shortest] + (length - shortest) * self.row_bytes / self.copy_bandwidth


@dataclass(frozen=True)
class Profile:
    """What was measured; seconds throughout. `parts` is of all rounds together, `host` what no part accounts for; of
    rounds on a device verification and compaction belong to the forward."""

    label: str
    rounds: int
    tokens: int
    decode: float
    vanilla_a_token: float
    parts: dict[str, float]
    forward: Forward

    @property
    def host(self) -> float:
        return self.decode - sum(self.parts.values())

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.rounds

    @property
    def measured(self) -> float:
        """The speedup over vanilla on the same prompts."""
        return self.vanilla_a_token / (self.decode / self.tokens)

    @property
    def modelled(self) -> float:
        """tokens a step * c(1) / (forward + draft): a round without host work against a vanilla without any."""
        return (
            self.tokens_per_step
            * self.forward.curve[1]
            * self.rounds
            / (self.parts["forward"] + self.parts["draft"])
        )


def profile(
    target: TransformersTarget,
    label: str,
    drafter: Drafter,
    prompts: Sequence[list[int]],
    sampler: Sampler,
    length: int,
) -> Profile:
    """Decode each prompt with vanilla and with the drafter, the first one twice, and time what a forward costs."""
    vanilla = Vanilla(target)
    loop = device_loop(target, drafter)
    plain_loop = device_loop(target, vanilla)
    timed = _Replayed(loop) if loop else _Hosted(target, drafter)
    made = []
    vanillas = []
    limit = Limit(length, target.stop_ids)
    with Progress("generations", 2 * len(prompts)) as progress:
        for number, prompt in enumerate([prompts[0], *prompts]):
            law = sampler.streamed(str(number))
            found = timed.generate(law, prompt, limit)
            plain = (
                plain_loop.generate(law, prompt, limit)
                if loop
                else generate(target, vanilla, law, prompt, limit)
            )
            if not number:  # the first is a warm-up
                timed.forget()
                continue
            made.append(found)
            vanillas.append(plain)
            progress.advance(2)
    rounds = sum(len(found.committed) for found in made)
    return Profile(
        label,
        rounds=rounds,
        tokens=sum(sum(found.committed) for found in made),
        decode=sum(found.decode_seconds for found in made),
        vanilla_a_token=_a_token(vanillas),
        parts=timed.parts(prompts[-1], sampler, rounds),
        forward=forward_costs(target),
    )


class _Hosted:
    """The host's loop with every part of a round on the clock."""

    def __init__(self, target: TransformersTarget, drafter: Drafter) -> None:
        self.target = target
        self.clock = Clock()
        self.observed = Observed(drafter, self.clock)

    def generate(self, sampler: Sampler, prompt: Sequence[int], limit: Limit) -> Generation:
        with _on_the_clock(self.target, self.clock):
            return generate(self.target, self.observed, sampler, prompt, limit)

    def forget(self) -> None:
        self.clock.seconds.update(dict.fromkeys(PARTS, 0.0))

    def parts(self, prompt: Sequence[int], sampler: Sampler, rounds: int) -> dict[str, float]:
        return dict(self.clock.seconds)


class _Replayed:
    """The device's loop, left alone; its parts are replayed afterwards."""

    def __init__(self, loop: DeviceLoop) -> None:
        self.loop = loop
        self.generate = loop.generate

    def forget(self) -> None:
        pass

    def parts(self, prompt: Sequence[int], sampler: Sampler, rounds: int) -> dict[str, float]:
        """From a round behind this prompt, again and again, and from its drafting alone."""
        whole, draft = costs.best_of(replayed(self.loop, prompt, sampler), self.loop.target)
        return {"draft": rounds * draft, "forward": rounds * max(0.0, whole - draft)}


def forward_costs(target: TransformersTarget) -> Forward:
    """c(n), the cost of a longer prefix as far as the target's context goes, and what to hold them against."""
    lengths = [n for n in LENGTHS if n + LARGEST_TREE <= target.max_length]
    return Forward(
        curve=dict(
            zip(NODES, costs.forward_seconds(target, [(n, costs.NEAR) for n in NODES]), strict=True)
        ),
        lengths=dict(
            zip(lengths, costs.forward_seconds(target, [(1, n) for n in lengths]), strict=True)
        ),
        weight_bytes=_read_bytes(target),
        row_bytes=_row_bytes(target),
        copy_bandwidth=copy_bandwidth(target.device),
    )


def _read_bytes(target: TransformersTarget) -> int:
    """Bytes of the weights that a step reads: of an embedding that is not the LM head too, it reads a few rows."""
    every = sum(p.numel() * p.element_size() for p in target.model.parameters())
    embedding = target.embedding.weight
    return (
        every
        - (embedding is not target.lm_head.weight) * embedding.numel() * embedding.element_size()
    )


def _row_bytes(target: TransformersTarget) -> int:
    """Bytes that one token's keys and values take in the cache of all layers."""
    return sum(
        x.element_size() * x.shape[1] * x.shape[3]
        for layer in target.cache.layers
        for x in (layer.keys, layer.values)
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a large copy, the best of a few."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    best = float("inf")
    if device.type == "cuda":  # a host's clock would add its launches
        from triton.testing import do_bench

        return 2 * COPIED / (do_bench(lambda: goal.copy_(source), return_mode="median") / 1e3)
    for _ in range(5):
        began = perf_counter()
        goal.copy_(source)
        best = min(best, perf_counter() - began)
    return 2 * COPIED / best


def render(found: Profile) -> str:
    """The tables of a profile, with the two speedups under them."""
    whole = {**found.parts, "host": found.host}
    parts = [
        [part, f"{1e3 * seconds / found.rounds:.2f} ms", f"{seconds / found.decode:.1%}"]
        for part, seconds in whole.items()
    ]
    outside = 1 - (found.parts["draft"] + found.parts["forward"]) / found.decode
    return "\n\n".join(
        [
            tabulate(parts, [f"{found.label}, a round", "", "share"], disable_numparse=True),
            render_forward(found.forward),
            f"{found.tokens_per_step:.2f} tokens a step; speedup {found.measured:.2f} measured, {found.modelled:.2f} "
            f"modelled; {outside:.1%} of a round outside the two networks",
        ]
    )


def render_forward(found: Forward) -> str:
    """c(n), and a one-token step against the prefix."""
    reads = found.weight_bytes / found.copy_bandwidth
    curve = [
        [n, f"{1e3 * s:.2f} ms", f"{s / found.curve[1]:.2f}", f"{reads / s:.0%}"]
        for n, s in found.curve.items()
    ]
    lengths = [
        [
            n,
            f"{1e3 * s:.2f} ms",
            f"{1e3 * found.expected(n):.2f} ms",
            f"{s / found.expected(n):.2f}",
        ]
        for n, s in found.lengths.items()
    ]
    return "\n\n".join(
        [
            tabulate(
                curve,
                ["nodes", "forward", "c(n) / c(1)", "of a copy's bandwidth"],
                disable_numparse=True,
            ),
            tabulate(
                lengths,
                ["prefix", "one-token step", "by the bytes added", "ratio"],
                disable_numparse=True,
            ),
        ]
    )


def draw(found: Profile, picture: Path) -> None:
    """A round's parts in milliseconds, the cost of a forward against its nodes, and a step's against the prefix."""
    from matplotlib.figure import Figure

    parts = {
        part: seconds / found.rounds
        for part, seconds in [*found.parts.items(), ("host", found.host)]
    }
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    bars, line, long = figure.subplots(1, 3)
    bars.barh(list(parts), [1e3 * seconds for seconds in parts.values()])
    bars.invert_yaxis()
    bars.set_title(f"{found.label}, a round")
    bars.set_xlabel("ms")
    line.plot(
        list(found.forward.curve),
        [seconds / found.forward.curve[1] for seconds in found.forward.curve.values()],
        marker=".",
    )
    line.set_xscale("log", base=2)
    line.set_title("cost of a forward, c(n) / c(1)")
    line.set_xlabel("nodes")
    line.grid(alpha=0.3)
    long.plot(
        list(found.forward.lengths),
        [1e3 * seconds for seconds in found.forward.lengths.values()],
        marker=".",
        label="measured",
    )
    long.plot(
        list(found.forward.lengths),
        [1e3 * found.forward.expected(n) for n in found.forward.lengths],
        "--",
        label="by the bytes added",
    )
    long.set_title("a one-token step, ms")
    long.set_xlabel("prefix")
    long.set_ylim(bottom=0)
    long.legend(fontsize=7)
    long.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


def _a_token(made: Sequence[Generation]) -> float:
    return sum(found.decode_seconds for found in made) / sum(sum(found.committed) for found in made)


@contextmanager
def _on_the_clock(target: TransformersTarget, clock: Clock) -> Iterator[None]:
    """The target's two steps timed; a GPU is waited for after each, which costs it what overlap it had."""

    def score(tree: Any) -> Any:
        scores = type(target).score(target, tree)
        target.synchronize()
        return scores

    def commit(path: Any) -> None:
        type(target).commit(target, path)
        target.synchronize()

    target.score = clock.timed("forward", score)
    target.commit = clock.timed("commit", commit)
    try:
        yield
    finally:
        del target.score, target.commit
